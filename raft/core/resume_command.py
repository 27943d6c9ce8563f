"""How a run is resumed: by which command, or by which call where it was given functions as Python objects."""

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raft.core import yaml_file
from raft.core.errors import UserError
from raft.core.given import MODULE
from raft.core.run_paths import RunPaths

NONE: Mapping[str, Any] = MappingProxyType({})


class _Word(str):
    """A name in Python code, which is no text."""

    def __repr__(self) -> str:
        return str(self)


FUNCTION = _Word("function")


def to_resume(run: Path, overrides: Mapping[str, Any] = NONE, branch: int | None = None) -> str:
    """The command that resumes a run, or branches off at an iteration; the call in Python where it has its objects."""
    if objects := dict(_objects(run)):
        words = {**objects, **overrides}
        given = [f"**{{{key!r}: {value!r}}}" if "." in key else f"{key}={value!r}" for key, value in words.items()]
        verb, first = ("resume", []) if branch is None else ("branch", [str(branch)])
        return f"raft.open_run({str(run)!r}).{verb}({', '.join([*first, *given])})"
    off = [] if branch is None else ["--from-iteration", str(branch)]
    return shlex.join(["raft", "resume", str(run), *off, *(f"{key}={_yaml(one)}" for key, one in overrides.items())])


def _objects(run: Path) -> Iterator[tuple[str, Any]]:
    """The keys of a run's recipe that were given a function, and what they are to be given again."""
    import yaml

    def found(section: Any, key: str) -> Iterator[tuple[str, Any]]:
        for name, below in section.items() if isinstance(section, dict) else ():
            yield from found(below, f"{key}.{name}" if key else str(name))
        if isinstance(section, dict) and str(section.get("function")).startswith(f"{MODULE}:"):
            alone = section.keys() <= {"kind", "function"}
            yield key, FUNCTION if alone else {**section, "function": FUNCTION}

    try:
        yield from found(yaml.safe_load(yaml_file.read(RunPaths(run).resolved)), "")
    except (UserError, OSError, ValueError, yaml.YAMLError, RecursionError):  # resuming it says what is wrong
        return


def _yaml(value: Any) -> str:
    """A value as an override has it, in one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return str(text).removesuffix("...\n").strip()
