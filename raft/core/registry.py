"""`kind:` in a recipe -> the class that does it, and that class built from its options.

A component is a frozen dataclass: its fields are its options, and building one imports nothing heavy.
A kind is a short name from the table below, or `package.module:Name` of the user's own.
Fields carry marks that the run's keys understand (see `runs.describe`):

- `speed()`: the option changes how fast, never what; it is in no key.
- `source("file" | "model" | "code" | "template" | "served")`: the option names something outside; its content is in the
  key, its name is not. A template is one of raft's own by its short name, or a file; what is served is a model, or the
  name of one on a server of which no more is known.
"""

import dataclasses
import difflib
import re
import stat
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from raft.core import given, user_code
from raft.core.errors import Stopped, UserError

NAME = re.compile(r"\w[\w.-]{0,99}")
WHOLE = 10**9  # where an option has no upper bound of its own
EXACT = 2**63  # of any whole number
TINY = 1e-300

TABLE = {
    "prompts": {
        "file": "raft.data.prompts:File",
        "hub": "raft.data.prompts:Hub",
        "list": "raft.data.prompts:Inline",
        "mixture": "raft.data.prompts:Mixture",
    },
    "examples": {
        "file": "raft.data.examples:FileExamples",
        "hub": "raft.data.examples:HubExamples",
        "list": "raft.data.examples:InlineExamples",
    },
    "generator": {
        "vllm": "raft.generators.vllm:VLLM",
        "transformers": "raft.generators.transformers:Transformers",
        "remote": "raft.generators.remote:Remote",
    },
    "reward": {
        "model": "raft.rewards.model:RewardModel",
        "ensemble": "raft.rewards.ensemble:Ensemble",
        "decision-tree": "raft.rewards.decision_tree:DecisionTree",
        "rule": "raft.rewards.rule:Rule",
        "judge": "raft.rewards.judge.judge:Judge",
    },
    "selection": {
        "best-of-k": "raft.pipeline.selection:BestOfK",
        "top-fraction": "raft.pipeline.selection:TopFraction",
        "threshold": "raft.pipeline.selection:Threshold",
        "softmax": "raft.pipeline.selection:Softmax",
        "random": "raft.pipeline.selection:RandomPick",
        "best-vs-worst": "raft.pipeline.selection:BestVsWorst",
        "all-pairs": "raft.pipeline.selection:AllPairs",
    },
    "trainer": {
        "sft": "raft.trainers.sft:SFT",
        "reward-model": "raft.trainers.reward_model:BradleyTerry",
    },
}


# what the stages call of a kind; the rest has defaults (raft/core/protocols.py, and the base classes of the others)
METHODS = {
    "prompts": ("parts",),
    "examples": ("rows", "answered"),
    "generator": ("generate",),
    "reward": ("score",),
    "selection": ("pick",),
    "trainer": ("train",),
}


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a recipe: the dotted key, and what to do about it."""

    key: str
    message: str


def speed(default: Any = MISSING, **options: Any) -> Any:
    """A field that changes only how fast the same result is made."""
    return field(default=default, metadata={"speed": True}, **options)


def source(kind: str, default: Any = MISSING, **options: Any) -> Any:
    """A field that names a file, a model or code; what it names is identified by content."""
    return field(default=default, metadata={"source": kind}, **options)


def is_there(name: str) -> bool:
    """Whether a file or folder of that name can be seen; names that no file can have are not there."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def is_file(name: str) -> bool:
    """Whether it is a regular file, or a link to one."""
    return is_there(name) and Path(name).is_file()


def text_of(file: str) -> str:
    """The text of a file that an option names. UserError: it cannot be read, or is not UTF-8."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise UserError(f"{file}: not UTF-8 (byte {fault.start}: {fault.reason}); save the file as UTF-8") from None
    except OSError as fault:
        raise UserError(fault_of_file(file) or f"{file} cannot be read ({fault.strerror}); try again") from None


def fault_of_file(name: str) -> str | None:
    """Why a file that an option names cannot be read, None if it can. A pipe or a device is no file: it has no hash."""
    path = Path(name)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return f"{bounded(name)} is {'a folder' if path.is_dir() else 'no regular file'}; give a file"
        with open(path, "rb"):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return f"no file at {bounded(str(path.absolute()))}"
    except OSError as fault:
        return f"{bounded(name)} cannot be read ({fault.strerror}); name a file that can be"
    except ValueError as fault:  # half a character, or a NUL
        return f"{short(name)} names no file ({fault})"


def section(name: str, default: Any = MISSING, **options: Any) -> Any:
    """A field that holds a component: `kind:` chooses it from the table of that name."""
    return field(default=default, metadata={"section": name}, **options)


def sections(name: str, default: Any = MISSING, **options: Any) -> Any:
    """A field that holds several components of one table, each under a name that the user gives it."""
    return field(default=default, metadata={"section": name, "named": True}, **options)


def suggest(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name: the likeliest meant, and all that is allowed."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean {near[0]}? " if near else "") + "allowed: " + ", ".join(sorted(known))


def find(section: str, kind: Any) -> type:
    """The class of a kind. ValueError says what is allowed."""
    known = TABLE[section]
    target = known.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(target, str) or ":" not in target:
        raise ValueError(
            f"unknown kind {kind!r}; {suggest(str(kind), list(known))}, or package.module:Class of your own"
        )
    found = load(target)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{target} is not a dataclass; a component is a frozen dataclass whose fields are its options")
    if lacking := [name for name in METHODS[section] if not callable(getattr(found, name, None))]:
        raise ValueError(f"{target} has no {', '.join(lacking)}, so it is no {section} (see raft/core/protocols.py)")
    return found


def stable_name(cls: type) -> str:
    """What keys call the class of a section, whatever module it stands in and is moved to.

    Of raft's own kinds that is the section and the kind, such as generator/vllm; of other sections the name of the
    class; of the user's own kinds module:Class, as the recipe names them.
    """
    path = f"{cls.__module__}:{cls.__qualname__}"
    if not cls.__module__.startswith("raft."):
        return path
    kinds = ((f"{section}/{kind}", target) for section, known in TABLE.items() for kind, target in known.items())
    return next((name for name, target in kinds if target == path), cls.__qualname__)


def load(target: str) -> Any:
    """The object that `package.module:name` names. ValueError says which part is missing."""
    module_name, _, name = target.partition(":")
    if module_name == given.MODULE:
        return given.function(name)
    module = user_code.module(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ValueError(f"{module_name} has no {name!r}; {suggest(name, public)}") from None


def build(cls: type, options: Any, where: str, faults: list[Fault], chosen: bool = False) -> Any:
    """An instance of the dataclass from a mapping of options, or None with every fault appended to `faults`.

    `where` is the dotted key of the mapping, "" for the whole recipe; `chosen` says that its `kind:` chose the class.
    A class may define
    `faults(self) -> Iterator[tuple[str, str]]` to check its values: pairs of option and message.
    """
    if not isinstance(options, Mapping):
        faults.append(Fault(where, f"expected a mapping of options, found {short(options)}"))
        return None
    before = len(faults)
    known = {item.name: item for item in dataclasses.fields(cls) if item.init}
    hints = typing.get_type_hints(cls)
    for name in options:
        if name not in known and not (name == "kind" and chosen):
            faults.append(Fault(_join(where, str(name)), f"unknown key; {suggest(str(name), list(known))}"))
    values: dict[str, Any] = {}
    for name, item in known.items():
        key = _join(where, name)
        if name not in options:
            if item.default is MISSING and item.default_factory is MISSING:
                faults.append(Fault(key, "missing; it has no default" + _choices(item)))
            continue
        if options[name] is None and item.default is None:
            values[name] = None
            continue
        if item.metadata.get("named"):
            values[name] = _components(item.metadata["section"], options[name], key, faults)
        else:
            values[name] = _value(hints[name], options[name], key, item.metadata.get("section"), faults)
    if len(faults) > before:
        return None
    try:
        instance = cls(**values)
        if hasattr(instance, "faults"):
            faults.extend(Fault(_join(where, name), message) for name, message in instance.faults())
    except (UserError, Stopped):
        raise
    except BaseException as fault:
        if cls.__module__.startswith("raft."):
            raise
        faults.append(Fault(where, f"{cls.__module__}:{cls.__qualname__} raised {user_code.tell(fault)}"))
        return None
    return instance if len(faults) == before else None


def component(section: str, options: Any, where: str, faults: list[Fault]) -> Any:
    """The component that a section of a recipe describes, or None with its faults appended."""
    if not isinstance(options, Mapping):
        faults.append(Fault(where, f"expected one section with kind: and its options, found {short(options)}"))
        return None
    if "kind" not in options:
        faults.append(Fault(_join(where, "kind"), f"missing; allowed: {', '.join(sorted(TABLE[section]))}"))
        return None
    try:
        cls = find(section, options["kind"])
    except ValueError as fault:
        faults.append(Fault(_join(where, "kind"), str(fault)))
        return None
    return build(cls, options, where, faults, chosen=True)


def _components(section: str, options: Any, where: str, faults: list[Fault]) -> dict[str, Any] | None:
    """Components by name; the names become names of files and folders."""
    if not isinstance(options, Mapping) or not options or "kind" in options:
        faults.append(Fault(where, f"expected a mapping of names to sections with kind:, found {short(options)}"))
        return None
    for name in options:
        if not NAME.fullmatch(str(name)):
            faults.append(Fault(_join(where, str(name)), "is no name; up to 100 letters, digits, dots, - and _"))
    return {str(name): component(section, one, _join(where, str(name)), faults) for name, one in options.items()}


def _value(hint: Any, value: Any, key: str, section: str | None, faults: list[Fault]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType) and value is None and type(None) in arguments:
        return None
    if section and origin is list and isinstance(value, list):
        return [component(section, one, f"{key}[{index}]", faults) for index, one in enumerate(value)]
    if section:
        return component(section, value, key, faults)
    if origin in (typing.Union, types.UnionType):
        attempts: list[list[Fault]] = []
        for option in (option for option in arguments if option is not type(None)):
            trial: list[Fault] = []
            result = _value(option, value, key, None, trial)
            if not trial:
                return result
            attempts.append(trial)
        faults.extend(attempts[0])
        return None
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, key, faults)
    if origin is typing.Literal:
        if value not in arguments:
            faults.append(
                Fault(key, f"{value!r} is not allowed; {suggest(str(value), [str(one) for one in arguments])}")
            )
        return value
    if origin is list:
        if not isinstance(value, list):
            faults.append(Fault(key, f"expected a list, found {short(value)}"))
            return None
        return [_value(arguments[0], one, f"{key}[{index}]", None, faults) for index, one in enumerate(value)]
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            faults.append(Fault(key, f"expected a mapping, found {short(value)}"))
            return None
        return dict(value)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(hint, type):
        return value
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        faults.append(Fault(key, f"expected {_name(hint)}, found {short(value)}"))
        return None
    if isinstance(value, int) and not -EXACT < value < EXACT:
        faults.append(Fault(key, f"{short(value)} is out of range; whole numbers have at most 63 bits"))
        return None
    if isinstance(value, float) and 0 < abs(value) < TINY:
        faults.append(Fault(key, f"{value!r} is out of range; nothing is reckoned so near to 0"))
        return None
    return value


def faults_of_types(hints: Mapping[str, Any], options: Mapping[str, Any], where: str) -> list[Fault]:
    """Faults of options of a library, whose types are `hints`, so far as these are plain ones."""
    faults: list[Fault] = []
    for name in options:
        if {hints[name], *typing.get_args(hints[name])} <= {int, float, bool, str, types.NoneType, hints[name]}:
            _value(hints[name], options[name], _join(where, name), None, faults)
    return faults


def short(value: Any, most: int = 80) -> str:
    """A value as a message shows it."""
    try:
        shown = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def bounded(text: str, most: int = 400) -> str:
    """A path or another text as a message shows it: its beginning and its end, where it is long."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def _name(hint: type) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, hint.__name__)


def _choices(item: dataclasses.Field) -> str:
    name = item.metadata.get("section")
    return f"; a section with kind: one of {', '.join(sorted(TABLE[name]))}" if name else ""


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def faults_of_text(name: str, file: str) -> Iterator[tuple[str, str]]:
    """The pair of option and message for an option that names a file which is not there or no text."""
    try:
        text_of(file)
    except UserError as fault:
        yield name, str(fault)


def faults_of_range(options: Any, **bounds: tuple[float, float]) -> Iterator[tuple[str, str]]:
    """Pairs of option and message for each numeric option outside its closed bounds; None is let through."""
    for name, (low, high) in bounds.items():
        value = getattr(options, name)
        if isinstance(value, int) and high == float("inf") and value > WHOLE:
            yield name, f"{value!r} is out of range; it must be at most {WHOLE:,}"
        elif value is not None and not low <= value <= high:
            limit = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
            yield name, f"{value!r} is out of range; it must be {limit}"
