"""What a script or notebook gives a recipe as an object: functions, which a recipe calls `<python>:name`.

A key holds what a function says: its source, its defaults, and the same of whatever of its module it uses. Where that
cannot be known the user names the function (`Named`), and the name is what the key holds.
"""

import dis
import hashlib
import inspect
import json
import math
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from raft.core.atomic import file_digest
from raft.core.errors import UserError

MODULE = "<python>"  # in the place of a module's name, which it cannot be
AS_OBJECT = "was given as a Python object"  # in the fault of a function that is not there
ROWS = "given"  # the folder of a run with the rows that it was given as objects
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})

Functions = dict[str, tuple[Callable[..., Any], str]]  # by name: a function and the hash of what it says

_lent: Functions = {}


@dataclass(frozen=True)
class Named:
    """A callable that runs know by a name of the user's own: another name is another function."""

    call: Callable[..., Any]
    name: str

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.call(*arguments, **options)


class _Unknown(Exception):
    """The source of a function does not identify it; the message says why, as the end of a sentence."""


def refer(function: Callable[..., Any], functions: Functions) -> str:
    """What a recipe calls a function: `module:name` where it can be imported, else `<python>:name`, put in `functions`.

    UserError if it has to be named, or if its name is taken.
    """
    try:
        if isinstance(function, FunctionType) and _is_importable(function):
            _source(function)  # what will be imported is what was given
            return f"{function.__module__}:{function.__name__}"
        if isinstance(function, Named):
            name, known = function.name, (function.call, _digest(["named", function.name]))
        else:
            name, known = getattr(function, "__name__", ""), (function, _digest(_said(function, set())))
    except _Unknown as fault:
        raise UserError(
            f"{_title(function)} cannot be recognised when the run resumes: {fault}. Give it a name, and another "
            "name whenever it changes: raft.named(function, 'my reward v1')"
        ) from None
    first = functions.setdefault(name, known)
    if first[1] != known[1] or (isinstance(function, Named) and first[0] != known[0]):
        raise UserError(f"two functions are called {name!r}; rename one of them: raft.named(function, 'my reward v1')")
    return f"{MODULE}:{name}"


@contextmanager
def lent(functions: Functions) -> Iterator[None]:
    """Inside the block recipes find these functions by their names, those too that are added in it."""
    global _lent
    before, _lent = _lent, functions
    try:
        yield
    finally:
        _lent = before


def function(name: str) -> Callable[..., Any]:
    """A function by its name. ValueError: it is not there."""
    if name not in _lent:
        raise ValueError(f"{name!r} {AS_OBJECT}, so the run resumes only from Python, with the same function")
    return _lent[name][0]


def code(name: str) -> str:
    """What a key holds of a function."""
    return _lent[name][1]


def _is_importable(given: FunctionType) -> bool:
    """Whether it is a function of a module with a file, by its own name; a notebook's or script's own is not."""
    module = sys.modules.get(given.__module__ or "")
    return (
        module is not None
        and module.__name__ != "__main__"
        and getattr(module, "__file__", None) is not None
        and vars(module).get(given.__name__) is given
    )


def _said(given: Any, seen: set[FunctionType]) -> Any:
    """What a function says, as JSON-able data. _Unknown if that is not all that it computes with."""
    if not isinstance(given, FunctionType):
        raise _Unknown(f"it is a {type(given).__name__}, and not a function defined with def")
    if given.__closure__:
        raise _Unknown(f"it is a closure over {', '.join(given.__code__.co_freevars)}")
    seen.add(given)
    used = {name: given.__globals__[name] for name in sorted(_names(given.__code__)) if name in given.__globals__}
    return {
        "source": _source(given),
        "defaults": [_value("a default", default, seen) for default in given.__defaults__ or ()],
        "options": {name: _value(name, default, seen) for name, default in (given.__kwdefaults__ or {}).items()},
        "uses": {name: _value(name, default, seen) for name, default in used.items()},
    }


def _value(name: str, value: Any, seen: set[FunctionType]) -> Any:
    """The value of a name that a function uses: data by value, code by its source, a library's by its name."""
    if (isinstance(value, float) and math.isfinite(value)) or isinstance(value, str | int | None):
        return value
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(_value(name, item, seen) for item in value)]
    if isinstance(value, set | frozenset):
        return ["set", *sorted(json.dumps(_value(name, item, seen)) for item in value)]
    if isinstance(value, dict):
        return ["dict", *([_value(name, key, seen), _value(name, item, seen)] for key, item in value.items())]
    if isinstance(value, re.Pattern):
        return ["pattern", value.pattern if isinstance(value.pattern, str) else repr(value.pattern), value.flags]
    if isinstance(value, ModuleType | type | FunctionType | BuiltinFunctionType):
        return _code(name, value, seen)
    raise _Unknown(f"it uses {name}, a {type(value).__name__} whose content raft cannot hash")


def _code(name: str, value: Any, seen: set[FunctionType]) -> Any:
    module = value if isinstance(value, ModuleType) else sys.modules.get(value.__module__ or "builtins")
    title, file = getattr(value, "__qualname__", ""), getattr(module, "__file__", None)
    own = module is None or module.__name__ == "__main__"
    if module is not None and not own and (file is None or file.startswith(LIBRARIES)):
        return ["library", module.__name__, title]
    if isinstance(value, FunctionType):
        return ["function", title] if value in seen else _said(value, seen)
    if own or file is None or not Path(file).is_file():
        raise _Unknown(f"it uses {name}, a {type(value).__name__} that was made in this session")
    return ["file", file_digest(Path(file)), title]


def _names(code: CodeType) -> set[str]:
    """The global names that code reads, that of functions inside it too."""
    own = {part.argval for part in dis.get_instructions(code) if part.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType)))


def _source(given: FunctionType) -> str:
    """The source of a function, which is proved to be that of the code that runs. _Unknown if it cannot be had."""
    code = given.__code__
    if code.co_name == "<lambda>":
        raise _Unknown("a lambda has no source of its own, as a function defined with def has")
    try:
        text, source = "".join(inspect.findsource(code)[0]), inspect.getsource(code)
        compiled = compile(text, code.co_filename, "exec", dont_inherit=True)
    except (OSError, TypeError, SyntaxError, ValueError):
        raise _Unknown("its source cannot be read") from None
    if code not in _codes(compiled):
        raise _Unknown(f"{code.co_filename} was changed since it was read (reload it, or start Python again)")
    return source


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Code, and all code inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _title(given: Any) -> str:
    return f"the function {getattr(given, '__qualname__', None) or type(given).__name__}"
