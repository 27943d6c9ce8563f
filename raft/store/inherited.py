"""What a branch takes over from its original run: artifacts that it would make out of the same.

A branch that only selects or trains otherwise generates and scores nothing again. Files become hard links, which no
later change of the other run reaches, as raft replaces files and never changes them; copies where there can be none.
"""

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from raft.core import compressed, records
from raft.core.atomic import commit, remove
from raft.core.errors import UserError
from raft.core.protocols import REQUESTS
from raft.core.run_paths import RunPaths
from raft.store import stamps
from raft.store.stamps import Stamp, differences, read_stamp

LOG = logging.getLogger(__name__)


def origin(folder: Path) -> Path | None:
    """The run that a branch links to; None where it is no branch, or that run is gone."""
    first = RunPaths(folder).iteration(0).folder
    if not first.is_symlink():
        return None
    found = leads_to(first).parent.parent
    return found if RunPaths(found).about.exists() else None


def leads_to(link: Path) -> Path:
    """Where a link leads, one step far, whether or not anything is there."""
    return Path(os.path.normpath(link.parent.absolute() / link.readlink()))


def inherit(branch: Path, folder: Path, path: Path, key: dict[str, Any]) -> tuple[Stamp, list[dict[str, Any]]] | None:
    """Brings an artifact into a folder of a branch that its original run made with the same key; None if there is none.

    Gives its stamp, and what its stage has dropped, by dropped.jsonl.
    """
    run = origin(branch)
    source = None if run is None else run / path.relative_to(branch)
    stamp = None if source is None else read_stamp(source)
    if run is None or source is None or stamp is None or stamp.get("pruned") or not compressed.exists(source):
        return None
    if any(differences(stamp["key"], key)):
        return None
    try:
        stamps.require(source, stamp)
    except UserError as fault:
        LOG.warning("not taken over: %s", fault)
        return None
    stored = compressed.stored(source)
    temporary = path.with_name(f".{stored.name}.tmp")
    remove(temporary)
    if stored.is_dir():
        shutil.copytree(stored, temporary, copy_function=_link, symlinks=True)
    else:
        _link(str(stored), str(temporary))
    commit(temporary, path.with_name(stored.name))
    LOG.info("%s: taken over from %s, which made it out of the same", path, run)
    listed = RunPaths(run / folder.relative_to(branch)).dropped
    drops = [row for row in (records.read(listed) if listed.exists() else []) if row["stage"] == key["stage"]]
    spent: Stamp = {"began": round(time.time(), 3), "seconds": 0.0, "parts": {}}
    if REQUESTS in stamp:
        spent[REQUESTS] = dict.fromkeys(stamp[REQUESTS], 0)
    return {**{name: value for name, value in stamp.items() if name != "workers"}, **spent}, drops


def _link(source: str, target: str) -> str:
    with suppress(OSError):  # another file system, or one without hard links
        os.link(source, target)
        return target
    return shutil.copy2(source, target)
