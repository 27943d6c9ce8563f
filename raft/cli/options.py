"""`raft options`: the keys of a recipe and of each of its sections, out of the classes that check them."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from raft.config.jobs import DEFAULTS, JOBS, Evaluation, Start, Store
from raft.core import registry
from raft.core.errors import UserError
from raft.core.options import suggest
from raft.metrics.diagnostics import Alerts

SECTIONS: dict[str, type] = {  # which have no kinds
    "store": Store, "policy": Start, "evaluation": Evaluation, "alerts": Alerts,
}  # fmt: skip
INTERPOLATED = {"type": "string", "pattern": r"\$\{"}
JSON = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def listed(name: str | None) -> Iterator[str]:
    """What `raft options NAME` prints: options of a job or of `section.kind`, kinds of a section, one key, or all."""
    known = _by_name()
    if name is None:
        yield "jobs: " + ", ".join(JOBS)
        for section, kinds in registry.TABLE.items():
            yield f"{section}: {', '.join(kinds)}"
        yield f"sections without kinds: {', '.join(SECTIONS)}"
        yield "raft options JOB, raft options SECTION, or raft options SECTION.KIND lists the options;"
        yield "raft options KEY, such as evaluation.gold or trainer.learning_rate, says what one of them takes"
    elif name in known:
        yield from of_class(known[name], DEFAULTS.get(name, {}))
    elif name in registry.TABLE:
        for kind in registry.TABLE[name]:
            yield f"{name}.{kind}: {_summary(registry.find(name, kind))}"
    else:
        yield from _of_key(name, known)


def _of_key(name: str, known: Mapping[str, type]) -> Iterator[str]:
    """What a key takes in each class that has it: `section.key`, `section.kind.key`, or a key of a job by itself."""
    place, _, key = name.rpartition(".")
    if key == "kind" and place in registry.TABLE:
        yield from listed(place)
        return
    within = [title for title in known if title in ([place] if place else JOBS) or title.startswith(f"{place}.")]
    keys = {f"{title}.{item.name}": item for title in within for item in _items(known[title])}
    if not (found := [full for full in keys if full.rpartition(".")[2] == key]):
        own = {f"{place}.{item.name}" if place else item.name for item in keys.values()}
        raise UserError(
            f"no options of the name {name!r}; {suggest(name, [*(within if place and within else names()), *own])}"
        )
    for full in found:
        title = full.rpartition(".")[0]
        hint = typing.get_type_hints(known[title])[key]
        yield f"{full}: {_type(keys[full], hint)}{_default(keys[full], DEFAULTS.get(title, {}))}"


def names() -> list[str]:
    """All that `listed` takes: jobs, sections, and kinds as `section.kind`."""
    kinds = [f"{section}.{kind}" for section, known in registry.TABLE.items() for kind in known]
    return [*JOBS, *SECTIONS, *registry.TABLE, *kinds]


def of_class(cls: type, given: Mapping[str, Any] | None = None) -> Iterator[str]:
    """What the class says of itself, and a line for each option: its name, what it takes, and its default.

    `given` are sections that a job has where a recipe leaves them out.
    """
    yield inspect.getdoc(cls) or ""
    yield ""
    hints = typing.get_type_hints(cls)
    items = _items(cls)
    width = max((len(item.name) for item in items), default=0)
    for item in items:
        yield f"  {item.name:{width}s}  {_type(item, hints[item.name])}{_default(item, given or {})}"


def tables() -> Iterator[str]:
    """docs/options.md: every job and kind with its options, in Markdown."""
    yield "# Options"
    yield ""
    yield "Every job, section and kind with its options. `raft options --markdown` writes this page out of the classes"
    yield "that check a recipe; [recipes.md](recipes.md) explains."
    for name, cls in _classes():
        yield f"\n## {name}\n"
        yield from (line.rstrip() for line in (inspect.getdoc(cls) or "").splitlines())
        yield "\n| key | takes | default |\n|---|---|---|"
        hints = typing.get_type_hints(cls)
        given = DEFAULTS.get(name.removeprefix("job: "), {})
        for item in _items(cls):
            takes = _type(item, hints[item.name]).replace("|", "\\|")
            default = _default(item, given).strip().removeprefix("(").removesuffix(")").removeprefix("default: ")
            yield f"| `{item.name}` | {takes} | {default} |"


def schema() -> dict[str, Any]:
    """A JSON Schema of recipes for editors. It knows keys, kinds and types; `raft check` knows the rest."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "raft recipe",
        "type": "object",
        "properties": {"job": {"enum": list(JOBS)}, "base": {"type": "string"}},
        "allOf": [_of_job(name, cls) for name, cls in JOBS.items()],
        "$defs": {section: _of_section(section) for section in registry.TABLE},
    }


def _of_job(name: str, cls: type) -> dict[str, Any]:
    chosen: dict[str, Any] = {"properties": {"job": {"const": name}}, "required": ["job"]}
    if name == "align":  # which is meant without a word
        chosen = {"anyOf": [chosen, {"not": {"required": ["job"]}}]}
    return {"if": chosen, "then": _of_fields(cls, {"job": {}, "base": {"type": "string"}})}


def _of_section(section: str) -> dict[str, Any]:
    kinds = registry.TABLE[section]
    own = {"properties": {"kind": {"type": "string", "pattern": ":"}}, "required": ["kind"]}  # module:Class
    based = {"not": {"required": ["kind"]}}  # the recipe beneath says it
    each = [_of_fields(registry.find(section, kind), {"kind": {"const": kind}}) for kind in kinds]
    return {"type": "object", "anyOf": [*each, own, based]}


def _of_fields(cls: type, more: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    described = {item.name: _schema_of(item, hints[item.name]) for item in _items(cls)}
    if {"model", "path"} & described.keys():
        more = {"recipe": {"type": ["string", "null"]}, **more}  # another recipe may stand for either
    return {"type": "object", "properties": {**described, **more}, "additionalProperties": False}


def _schema_of(item: Any, hint: Any) -> dict[str, Any]:
    if section := item.metadata.get("section"):
        one: dict[str, Any] = {"$ref": f"#/$defs/{section}"}
        many = {"type": "object", "additionalProperties": one} if item.metadata.get("named") else one
        listed = {"type": "array", "items": one}
        return {"anyOf": [many, listed, {"type": "null"}]}
    return _typed(hint)


def _typed(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_typed(one) for one in arguments]}
    if list in (origin, hint) or dict in (origin, hint):
        return {"anyOf": [{"type": "array" if list in (origin, hint) else "object"}, INTERPOLATED]}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _of_fields(hint, {})
    if hint not in JSON:
        return {}
    own = {"type": JSON[hint]}
    return own if hint in (str, type(None)) else {"anyOf": [own, INTERPOLATED]}


def _by_name() -> dict[str, type]:
    """Every class by the name that `raft options` takes: jobs, sections without kinds, and kinds as `section.kind`."""
    kinds = {f"{section}.{kind}": registry.find(section, kind) for section, of in registry.TABLE.items() for kind in of}
    return {**JOBS, **SECTIONS, **kinds}


def _classes() -> Iterator[tuple[str, type]]:
    """Every job and kind by its title in docs/options.md."""
    yield from ((f"job: {name}", cls) for name, cls in JOBS.items())
    for section, kinds in registry.TABLE.items():
        yield from ((f"{section}.{kind}", registry.find(section, kind)) for kind in kinds)


def _items(cls: type) -> list[Any]:
    return [item for item in dataclasses.fields(cls) if item.init]


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


def _type(item: Any, hint: Any) -> str:
    if item.metadata.get("section"):
        one = f"a section with kind: {', '.join(registry.kinds(item))}"
        return f"a mapping of names, each to {one}" if item.metadata.get("named") else one
    if choices := item.metadata.get("choices"):
        several = typing.get_origin(hint) is list
        return f"{'a list of ' if several else ''}{', '.join(map(str, choices))}"
    return registry.written(hint)


def _default(item: Any, given: Mapping[str, Any]) -> str:
    value = item.default
    if item.name in given:
        return f"  (default: kind: {given[item.name]['kind']})"
    if item.default_factory is not dataclasses.MISSING and (made := item.default_factory()):
        value = made if item.metadata.get("section") or isinstance(made, list) else value
    if value is dataclasses.MISSING:
        return "" if item.default_factory is not dataclasses.MISSING else "  (must be given)"
    words = {None: "null", True: "true", False: "false"}
    if dataclasses.is_dataclass(value):
        return f"  (default: kind: {registry.stable_name(type(value)).rpartition('/')[2]})"
    return f"  (default: {words[value] if value is None or isinstance(value, bool) else value})"
