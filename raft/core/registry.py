"""`kind:` in a recipe -> the class that does it, and that class built from its options.

Building a component imports nothing heavy. A kind is a short name from the table below, or `package.module:Name` of the
user's own. `raft/core/options.py` has the marks of its fields.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Any

from raft.core import given, library_options, user_code
from raft.core.errors import Stopped, UserError
from raft.core.options import Fault, short, suggest, suggest_own

NAME = re.compile(r"\w[\w.-]{0,99}")
EXACT = 2**63  # of any whole number
LARGE = 2**1023  # of a whole number where a number is asked; floats end at twice that
TINY = 1e-300

TABLE = {
    "launch": {
        "local": "raft.launch.local:Local",
        "ray": "raft.launch.ray:Ray",
    },
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
    "sampling": {
        "fixed": "raft.pipeline.sampling:Fixed",
        "until-success": "raft.pipeline.sampling:UntilSuccess",
        "expected-gain": "raft.pipeline.sampling:ExpectedGain",
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
        "reward-weighted": "raft.pipeline.selection:RewardWeighted",
        "expected-best": "raft.pipeline.selection:ExpectedBest",
        "advantage": "raft.pipeline.selection:Advantage",
        "best-vs-worst": "raft.pipeline.selection:BestVsWorst",
        "all-pairs": "raft.pipeline.selection:AllPairs",
    },
    "trainer": {
        "sft": "raft.trainers.sft:SFT",
        "policy-gradient": "raft.trainers.policy_gradient:PolicyGradient",
        "distillation": "raft.trainers.distillation:Distillation",
        "reward-model": "raft.trainers.reward_model:BradleyTerry",
        "dpo": "raft.trainers.trl:DPO",
        "kto": "raft.trainers.trl:KTO",
    },
}

PAIRS = "trainer.kind: dpo and kto learn from them, and job: label writes them for other programs (docs/dpo.md)"
DPO = (
    "dpo and kto learn from pairs of the policy's own responses: job: align with selection.kind: best-vs-worst "
    "(docs/dpo.md); for a fixed set of pairs use TRL's DPOTrainer"
)
ELSEWHERE = {  # kinds that other libraries have, and the way to those
    "trainer": {"grpo": "raft learns from selected responses; TRL has a GRPOTrainer"},
}

PLAIN: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list", type(None): "null",
    Any: "any",
}  # fmt: skip
COMMANDS = {  # what no key of a recipe says, and the command that does
    "seeds": "raft run RECIPE --seeds 0,1 makes a run for each of several seeds; a recipe has one, seed",
}

# what the stages call of a kind; the rest has defaults (raft/core/protocols.py, and the base classes of the others)
METHODS = {
    "launch": ("answers", "scored", "train", "call"),
    "prompts": ("parts",),
    "examples": ("rows", "answered"),
    "generator": ("generate",),
    "sampling": ("each", "asked"),
    "reward": ("score",),
    "selection": ("pick",),
    "trainer": ("train",),
}


def kinds(item: dataclasses.Field) -> list[str]:
    """The kinds of a section that a field can hold."""
    section, refuses = item.metadata["section"], item.metadata.get("refuses")
    return [kind for kind in TABLE[section] if refuses is None or refuses(find(section, kind)) is None]


def refused(instance: Any) -> Iterator[tuple[str, str]]:
    """The faults of the components that a dataclass holds in fields that cannot hold them."""
    for item in dataclasses.fields(instance):
        refuses, value = item.metadata.get("refuses"), getattr(instance, item.name)
        if refuses is not None and value is not None and (why := refuses(value)) is not None:
            yield f"{item.name}.kind", f"{why}; allowed: {', '.join(sorted(kinds(item)))}"


def find(section: str, kind: Any) -> type:
    """The class of a kind. ValueError says what is allowed."""
    known = TABLE[section]
    target = known.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(target, str) or ":" not in target:
        hint = ELSEWHERE.get(section, {}).get(str(kind), "")
        allowed = suggest_own(str(kind), list(known), "Class")
        raise ValueError("; ".join(filter(None, (f"unknown kind {kind!r}", allowed, hint))))
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
            way = "" if where else COMMANDS.get(name, "")
            faults.append(Fault(_join(where, str(name)), f"unknown key; {way or suggest(str(name), list(known))}"))
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
            hint = _of_choices(hints[name], item.metadata.get("choices", ()))
            values[name] = _value(hint, options[name], key, item.metadata.get("section"), faults)
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


def sound(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a class that have no fault, each built by itself."""
    found, hints = {}, typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if options.get(item.name) is None or item.metadata.get("named"):
            continue
        faults: list[Fault] = []
        value = _value(hints[item.name], options[item.name], item.name, item.metadata.get("section"), faults)
        if not faults:
            found[item.name] = value
    return found


def filled(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a class with the defaults of those that are left out, at any depth; raft's own kinds only."""
    found, hints = dict(options), typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if item.init and item.name not in found:
            if item.default is MISSING and item.default_factory is MISSING:
                continue
            found[item.name] = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name in found:
            section, named = item.metadata.get("section"), item.metadata.get("named")
            found[item.name] = _filled(hints[item.name], section, named, found[item.name])
    return found


def _filled(hint: Any, section: str | None, named: Any, value: Any) -> Any:
    if named and isinstance(value, Mapping):
        return {name: _filled(Any, section, False, one) for name, one in value.items()}
    if isinstance(value, list) and section:
        return [_filled(Any, section, False, one) for one in value]
    if dataclasses.is_dataclass(value):  # a default
        own = filled(type(value), vars(value))
        return {"kind": stable_name(type(value)).rpartition("/")[2], **own} if section else own
    if not isinstance(value, Mapping):
        return value
    if section:
        return filled(find(section, kind), value) if (kind := str(value.get("kind"))) in TABLE[section] else value
    classes = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
    return filled(typing.cast(type, classes[0]), value) if classes else value


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


def _value(hint: Any, value: Any, key: str, section: str | None, faults: list[Fault], wanted: str | None = None) -> Any:
    """The value as the type asks for it, or None with its faults appended; `wanted` is the type in words."""
    wanted = wanted or written(hint)
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
            result = _value(option, value, key, None, trial, wanted)
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
            faults.append(Fault(key, f"expected {wanted}, found {short(value)}"))
            return None
        return [_value(arguments[0], one, f"{key}[{index}]", None, faults) for index, one in enumerate(value)]
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            faults.append(Fault(key, f"expected {wanted}, found {short(value)}"))
            return None
        return dict(value)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGE:
        return float(value)
    if not isinstance(hint, type):
        return value
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        faults.append(Fault(key, f"expected {wanted}, found {short(value)}"))
        return None
    if isinstance(value, int) and not -EXACT < value < EXACT:
        faults.append(Fault(key, f"{short(value)} is out of range; whole numbers have at most 63 bits"))
        return None
    if isinstance(value, float) and 0 < abs(value) < TINY:
        faults.append(Fault(key, f"{value!r} is out of range; numbers this close to 0 are not supported"))
        return None
    return value


def faults_of_types(option: str, given: Mapping[str, Any], known: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Pairs of option and message for options of a library, whose plain types `known` names (see library_options)."""
    faults: list[Fault] = []
    for name, value in given.items():
        if types := [library_options.PLAIN[one] for one in known.get(name, ())]:
            _value(typing.Union[tuple(types)], value, f"{option}.{name}", None, faults)  # noqa: UP007
    yield from ((fault.key, fault.message) for fault in faults)


def _of_choices(hint: Any, names: tuple[str, ...]) -> Any:
    """The type in which `str` is one of these names, if there are any: of `str`, `str | None` or `list[str]`."""
    if not names:
        return hint
    name: Any = typing.Literal[names]
    return {str: name, str | None: name | None, list[str]: list[name]}[hint]


def written(hint: Any) -> str:
    """What a type is called in messages and in `raft options`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(written, arguments))
    if origin is list:
        return f"a list of {written(arguments[0])}"
    if origin is dict or hint is dict:
        return "a mapping"
    if dataclasses.is_dataclass(hint):
        return "a section: " + ", ".join(item.name for item in dataclasses.fields(hint))
    return PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def _choices(item: dataclasses.Field) -> str:
    return f"; a section with kind: one of {', '.join(sorted(kinds(item)))}" if item.metadata.get("section") else ""


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
