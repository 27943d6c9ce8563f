"""What an artifact was made from, as a key: equal keys, equal content.

A key holds the options that change the result and the content of what they name: files and models by hash or hub
commit, a user's plug-in by its source. Options marked `speed` are in none.
"""

import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raft.core import given, records, registry
from raft.core.errors import UserError
from raft.core.user_code import code_hash, is_own
from raft.models import hub, jinja
from raft.store import stamps


@dataclass(frozen=True)
class Artifact:
    """A file or folder that a stage made, and the stamp that says how; `place` is where it stands, unchecked."""

    place: Path
    stamp: dict[str, Any]

    @classmethod
    def finished(cls, place: Path) -> "Artifact":
        """One that stands in a run with its stamp. UserError if the stamp is gone or damaged."""
        if (stamp := stamps.read_stamp(place)) is None:
            raise UserError(f"{place} is gone, or was not finished; {stamps.again(place)}")
        return cls(place, stamp)

    @property
    def path(self) -> Path:
        """Where to read it. UserError if it is not what its stamp says; it is compared once per process."""
        stamps.require(self.place, self.stamp)
        return self.place

    @property
    def key(self) -> str:
        """What made it, as a hash: equal keys, equal content."""
        return self.stamp["hash"]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stamp["rows"]

    def read(self) -> Iterator[dict[str, Any]]:
        """Its rows, one at a time."""
        return records.read(self.path)


def describe(value: Any, stage: str = "", known: Any = None) -> Any:
    """What of a stage's input belongs to a key: options that change its result, and the content of what they name.

    What it names and is not on this machine is described as in `known`, an earlier description; Absent without one.
    """
    if isinstance(value, Artifact):
        return value.key
    if isinstance(value, list | tuple):
        earlier = known if isinstance(known, list) and len(known) == len(value) else [None] * len(value)
        return [describe(one, stage, before) for one, before in zip(value, earlier, strict=True)]
    if isinstance(value, dict):
        named = known if isinstance(known, dict) else {}
        return {name: describe(one, stage, named.get(name)) for name, one in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    described: dict[str, Any] = {"is": registry.stable_name(type(value))}
    if is_own(value):
        described["code"] = code_hash(type(value))
    known = known if isinstance(known, dict) and known.get("is") == described["is"] else {}
    for item in dataclasses.fields(value):
        unset = item.metadata.get("added") and getattr(value, item.name) == item.default
        if not (item.metadata.get("speed") or unset) and item.metadata.get("only", stage) == stage:
            described[item.name] = _or_known(partial(_described, value, item, stage, known), known, item.name)
    if hasattr(value, "resolved"):  # what is left open follows the device, and floats with it
        described |= value.resolved()
    if hasattr(value, "identify"):
        described["content"] = _or_known(value.identify, known, "content")
    return described


def _or_known(describes: Callable[[], Any], known: dict[str, Any], name: str) -> Any:
    try:
        return describes()
    except hub.Absent:
        if name not in known:
            raise
        return known[name]


def _described(owner: Any, item: dataclasses.Field, stage: str, known: dict[str, Any]) -> Any:
    value, kind = getattr(owner, item.name), item.metadata.get("source")
    if value is None or kind is None:
        if speed_keys := item.metadata.get("speed_keys", ()):
            return {k: v for k, v in value.items() if k not in speed_keys}
        return describe(value, stage, known.get(item.name))
    if kind == "template" and not Path(value).suffix:
        return value
    if kind in ("file", "template"):
        return None if hasattr(owner, "identify") else _with_day(hub.identity(Path(value)), Path(value))
    if kind == "model":
        loaded = getattr(owner, "url", None) is None
        folder = hub.locate_model(value, getattr(owner, "revision", None), weights=loaded)
        return _with_day(hub.identity(folder), folder)
    if kind == "served":
        return value if owner.url else None
    if ":" not in value:
        return {"name": value, "code": "built in"}
    if value.startswith(f"{given.MODULE}:"):
        return {"name": value, "code": given.code(value.partition(":")[2])}
    try:
        target = inspect.unwrap(registry.load(value))
    except ValueError as fault:
        raise UserError(str(fault)) from None
    return {"name": value, "code": code_hash(sys.modules[value.partition(":")[0]], getattr(target, "func", target))}


def _with_day(identity: str, path: Path) -> Any:
    """The identity of a model or file, and the day that its template writes where it has a clock."""
    return {"content": identity, "day": jinja.today()} if jinja.has_clock(path) else identity


def plain(value: Any) -> Any:
    """As JSON would give it back, so that a key read from a stamp compares equal."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def digest(key: dict[str, Any]) -> str:
    """A key as a hash."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def speed_options(section: Any) -> dict[str, Any]:
    """The options of a section that are in no key."""
    fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
    return plain({item.name: getattr(section, item.name) for item in fields if item.metadata.get("speed")})
