"""What a run holds of its sources, and so does not need again: its policy 0, its prompts.

A run that was pulled to another machine, or whose files were moved away, goes on without them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raft.config.recipe import read_resolved, value_at
from raft.core.errors import UserError
from raft.core.options import Fault, is_there
from raft.core.run_paths import RunPaths, stamp_path


def without(faults: Iterable[Fault], folder: Path, config: Mapping[str, Any]) -> list[Fault]:
    """The faults but for those of absent files and models whose content the run of this recipe holds."""
    faults = list(faults)
    held = list(_sections(folder, config)) if faults else []
    return [fault for fault in faults if not any(_is_absent(fault.key, section, config) for section in held)]


def _is_absent(key: str, section: str, config: Mapping[str, Any]) -> bool:
    """Whether a key of a section names what is not here."""
    within = key.startswith((f"{section}.", f"{section}["))
    return within and not is_there(str(value_at(config, re.findall(r"[^.\[\]]+", key))))


def _sections(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """The sections of a recipe that are what they were, and of which all is made."""
    run, before = RunPaths(folder), None
    with suppress(UserError):  # a damaged run says so when it is opened
        before = read_resolved(folder)
    own = value_at(config, ("evaluation", "prompts")) is not None
    align = config.get("job", "align") == "align"
    made = {
        "policy": [run.iteration(0).policy if align else run.start],
        "prompts": [run.pool, *([run.evaluation] if align and not own else [])],
        "evaluation.prompts": [run.evaluation],
        "evaluation.references": [run.references],
    }
    for section, artifacts in made.items():
        was, now = (value_at(one, section.split(".")) for one in (before, config))
        if was == now and all(path.exists() and stamp_path(path).exists() for path in artifacts):
            yield section
