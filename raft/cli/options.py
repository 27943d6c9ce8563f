"""`raft options`: the keys of a recipe and of each of its sections, out of the classes that check them."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from raft.config.jobs import JOBS
from raft.core import registry
from raft.core.errors import UserError
from raft.core.options import suggest

PLAIN: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", Any: "any",
}  # fmt: skip


def listed(name: str | None) -> Iterator[str]:
    """What `raft options NAME` prints: the options of a job or of `section.kind`, the kinds of a section, or all."""
    if name is None:
        yield "jobs: " + ", ".join(JOBS)
        for section, kinds in registry.TABLE.items():
            yield f"{section}: {', '.join(kinds)}"
        yield "raft options JOB, raft options SECTION, or raft options SECTION.KIND lists the options"
    elif name in JOBS:
        yield from of_class(JOBS[name])
    elif name in registry.TABLE:
        for kind in registry.TABLE[name]:
            yield f"{name}.{kind}: {_summary(registry.find(name, kind))}"
    else:
        section, _, kind = name.partition(".")
        if kind not in registry.TABLE.get(section, {}):
            every = (f"{table}.{kind}" for table, known in registry.TABLE.items() for kind in known)
            raise UserError(f"no options of the name {name!r}; {suggest(name, [*JOBS, *registry.TABLE, *every])}")
        yield from of_class(registry.find(section, kind))


def of_class(cls: type) -> Iterator[str]:
    """What the class says of itself, and a line for each option: its name, what it takes, and its default."""
    yield inspect.getdoc(cls) or ""
    yield ""
    hints = typing.get_type_hints(cls)
    items = [item for item in dataclasses.fields(cls) if item.init]
    width = max((len(item.name) for item in items), default=0)
    for item in items:
        yield f"  {item.name:{width}s}  {_type(item, hints[item.name])}{_default(item)}"


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


def _type(item: Any, hint: Any) -> str:
    if section := item.metadata.get("section"):
        kinds = ", ".join(registry.TABLE.get(section, ()))
        return f"a section with kind: {kinds}" if kinds else f"a section: {section}"
    if choices := item.metadata.get("choices"):
        several = typing.get_origin(hint) is list
        return f"{'a list of ' if several else ''}{', '.join(map(str, choices))}"
    return _written(hint)


def _written(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_written(one) for one in arguments)
    if origin is list:
        return f"a list of {_written(arguments[0])}"
    if origin is dict or hint is dict:
        return "a mapping"
    if dataclasses.is_dataclass(hint):
        return "a section: " + ", ".join(item.name for item in dataclasses.fields(hint))
    return PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def _default(item: Any) -> str:
    value = item.default
    if value is dataclasses.MISSING:
        return "" if item.default_factory is not dataclasses.MISSING else "  (must be given)"
    words = {None: "null", True: "true", False: "false"}
    return f"  (default: {words[value] if value is None or isinstance(value, bool) else value})"
