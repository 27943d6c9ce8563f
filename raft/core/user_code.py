"""The user's own Python: where it is found, how it is imported, and the hash of what was imported.

A recipe names `module:name`. The module is a file in the folder of the recipe or in the current folder, or it is on the
Python path. A run that is resumed has more such folders (`raft.store.branch.resumed`). They are not on the Python path:
a file beside a recipe that has the name of a library is never seen by a library, and is run only if the recipe, or a
module that the recipe names, imports it.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from raft.core.errors import Stopped, UserError

HOME = str(Path(__file__).parent.parent)
LEFT: set[threading.Thread] = set()  # that code of a user began and did not end: the process does not wait for them
BESIDE: set[str] = set()  # names of modules that were found beside a recipe
HASHES: dict[str, str] = {}  # of source files, as they were when they were imported


class Source(SourceFileLoader):
    """Compiles a file from the very bytes that are hashed; no bytecode of an earlier time is used."""

    def get_code(self, fullname: str) -> Any:
        """The code of the file as it is now."""
        path = self.get_filename(fullname)
        content = self.get_data(path)
        HASHES[path] = hashlib.sha256(content).hexdigest()
        return self.source_to_code(content, path)


class Beside:
    """Finds modules in folders for `module`, and for code that was itself found so; for nothing else."""

    def __init__(self, folders: list[str]):
        self.folders = folders
        self.asked: str | None = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """What Python's import asks of everything on sys.meta_path."""
        spec = None
        if path is None and (name == self.asked or _is_beside(_asking())):
            spec = self.look(name)
        elif path is not None and self._is_ours(name, list(path)):
            spec = PathFinder.find_spec(name, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = Source(spec.loader.name, spec.loader.path)
            BESIDE.add(name)
        return spec

    def _is_ours(self, name: str, path: Sequence[str]) -> bool:
        """Whether a package, with or without a file of its own, is in the folders."""
        top = name.partition(".")[0]
        return any(str(entry).startswith(str(Path(folder) / top)) for folder in self.folders for entry in path[:1])

    def look(self, name: str) -> ModuleSpec | None:
        """Where a top-level module of that name is in the folders."""
        return PathFinder.find_spec(name, self.folders)


@contextmanager
def importable_from(recipe: Path) -> Iterator[None]:
    """Inside the block a recipe's own modules are found beside it and in the current folder."""
    with importable_in([str(recipe.absolute().parent), str(Path.cwd())]):
        yield


@contextmanager
def importable_in(places: Sequence[str]) -> Iterator[None]:
    """Inside the block a recipe's own modules are found in these folders, then in those of the blocks around it."""
    finder = Beside(list(dict.fromkeys([*places, *folders()])))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def folders() -> list[str]:
    """Where a recipe's own modules are found now."""
    return next((entry.folders for entry in sys.meta_path if isinstance(entry, Beside)), [])


def module(name: str) -> ModuleType:
    """The module that a recipe names. ValueError: it is not there, two files have its name, or it raises."""
    top = name.partition(".")[0]
    finder = next((entry for entry in sys.meta_path if isinstance(entry, Beside)), None)
    own = finder.look(top) if finder and top else None
    if finder is not None:
        _forget_others(finder.folders)
    if finder is not None and own is not None and own.origin is not None:
        _refuse_namesake(top, own.origin)
        finder.asked = top
    try:
        return importlib.import_module(name)
    except Stopped:
        raise
    except ImportError as fault:
        where = place(fault, own.origin if own else None)
        reason = f"{fault}{f', {where}' if where else ''}"
        places = [*(f"in {folder}, " for folder in finder.folders), "and "] if finder else []
        raise ValueError(
            f"cannot import {name} ({reason}); it is looked for {''.join(places)}on the Python path"
        ) from None
    except BaseException as fault:  # sys.exit() too: it is the module's, and no way to end a command
        raise ValueError(f"cannot import {name}: {tell(fault, own.origin if own else None)}") from None
    finally:
        if finder is not None:
            finder.asked = None


def _refuse_namesake(name: str, origin: str) -> None:
    """ValueError if `import name` means another file than this."""
    known = sys.modules.get(name)
    other = getattr(known, "__file__", None) if known else _elsewhere(name)
    if (known is not None and other is None) or (other is not None and Path(other).resolve() != Path(origin).resolve()):
        raise ValueError(f"{origin} has the name of another module ({other or 'built in'}); give the file another name")


def _elsewhere(name: str) -> str | None:
    for finder in sys.meta_path:
        spec = None if isinstance(finder, Beside) else finder.find_spec(name, None)
        if spec is not None:
            return spec.origin or "built in"
    return None


def _asking() -> Any:
    """The spec of the module whose code imports something now."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_globals.get("__spec__") if frame else None


def _is_beside(spec: Any) -> bool:
    return isinstance(getattr(spec, "loader", None), Source)


def _forget_others(folders: Sequence[str]) -> None:
    """Forgets modules that were found beside another recipe: theirs may have the same names."""
    for name, spec in _found_beside():
        file = Path(spec.loader.path)
        depth = name.count(".") + (file.name == "__init__.py")
        if str(file.parents[depth]) not in folders:
            del sys.modules[name]


def _found_beside() -> list[tuple[str, Any]]:
    """The modules that were found beside recipes, each with its spec; looking at all modules would take 30 ms."""
    specs = [(name, getattr(sys.modules.get(name), "__spec__", None)) for name in BESIDE]
    return [(name, spec) for name, spec in specs if _is_beside(spec)]


def forget() -> None:
    """Forgets what recipes imported: the next recipe has its files as they are then, as in a new process."""
    for name, _ in _found_beside():
        del sys.modules[name]
    HASHES.clear()


def code_hash(*parts: Any) -> str:
    """The hash of the source files of modules, classes and functions, as they were imported.

    What has no file, as functions written in C, is part of Python, whose version is in every stamp.
    """
    files = sorted({file for part in parts if (file := _file(part)) is not None})
    hashes = [HASHES.setdefault(file, hashlib.sha256(Path(file).read_bytes()).hexdigest()) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _file(part: Any) -> str | None:
    """The source file of a module, a function, or the class of anything else; None if it is written in C."""
    if isinstance(part, ModuleType):
        names: Any = vars(part)
    else:
        kind = part if isinstance(part, type) else type(part)
        names = getattr(part, "__globals__", None) or getattr(vars(kind).get("__init__"), "__globals__", None)
        names = names or vars(sys.modules.get(kind.__module__, sys))
    file = names.get("__file__")
    return file if file is not None and Path(file).is_file() else None


def tell(fault: BaseException, near: str | None = None) -> str:
    """What a user's code raised, in one line: its class, its message, and the file and line."""
    try:
        message = next(iter(str(fault.msg if isinstance(fault, SyntaxError) else fault).splitlines()), "")
    except Exception:  # a message that cannot be made is the user's fault as well
        message = "(its message cannot be read)"
    message = message.encode(errors="backslashreplace").decode()
    where = place(fault, near)
    return type(fault).__name__ + f": {message}" * bool(message) + f" ({where})" * bool(where)


def place(fault: BaseException, near: str | None = None) -> str | None:
    """The last place outside raft, in the file `near` if it is given, that an exception came through."""
    if isinstance(fault, SyntaxError) and fault.filename and fault.lineno:
        return f"{Path(fault.filename).name}, line {fault.lineno}"
    frames = [
        frame for frame in traceback.extract_tb(fault.__traceback__) if not frame.filename.startswith((HOME, "<"))
    ]
    own = [frame for frame in frames if frame.filename == near]
    frames = own or [frame for frame in frames if "importlib" not in frame.filename]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else None


def is_own(component: Any) -> bool:
    """Whether a component's class is the user's own."""
    return not type(component).__module__.startswith("raft.")


def name_of(component: Any) -> str:
    """A component's class as a recipe names it."""
    return f"{type(component).__module__}:{type(component).__qualname__}"


@contextmanager
def guarded(component: Any) -> Iterator[None]:
    """Inside the block a component's code runs: if it is the user's own, its exceptions are reported as theirs.

    UserError with the class, the exception and its place; also for sys.exit() and a KeyboardInterrupt of their own.
    """
    if not is_own(component):
        yield
        return
    with unchanged():
        try:
            yield
        except (UserError, Stopped):
            raise
        except BaseException as fault:
            near = getattr(sys.modules.get(type(component).__module__), "__file__", None)
            raise UserError(f"{name_of(component)} raised {tell(fault, near)}") from fault


@contextmanager
def unchanged() -> Iterator[None]:
    """Restores at the end what a user's code may change in the process; a process that it forked ends here."""
    process, folder, streams = os.getpid(), os.open(".", os.O_RDONLY), (sys.stdout, sys.stderr)
    threads, torch = set(threading.enumerate()), sys.modules.get("torch")
    deepest = sys.getrecursionlimit()
    gradients = torch.is_grad_enabled() if torch is not None and hasattr(torch, "is_grad_enabled") else None
    try:
        yield
    finally:
        if os.getpid() != process:
            os._exit(0)
        LEFT.update(thread for thread in threading.enumerate() if thread not in threads and not thread.daemon)
        os.fchdir(folder)
        os.close(folder)
        sys.stdout, sys.stderr = streams
        sys.setrecursionlimit(deepest)
        if torch is not None and gradients is not None:
            torch.set_grad_enabled(gradients)
