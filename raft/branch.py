"""A new run that shares the first iterations of another by reference: `raft resume RUN --from-iteration N`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from raft import recipe
from raft.errors import UserError
from raft.runs import stamp_path

SHARED = ("evaluation.jsonl", "pool.jsonl")


def existing(folder: Path) -> Path:
    """The folder of a run; UserError if it is none."""
    if not (folder / "run.json").exists():
        near = sorted(str(file.parent) for file in folder.parent.glob("*/run.json"))[:5]
        raise UserError(
            f"{folder} is not a run (it has no run.json)" + (f"; runs beside it: {', '.join(near)}" if near else "")
        )
    return folder


def off(folder: Path, number: int, overrides: Sequence[str]) -> recipe.Loaded:
    """The recipe of a new run whose folders before `number` are those of the old one."""
    named = any(one.startswith("name=") for one in overrides)
    loaded = recipe.load_run(folder, overrides if named else [f"name={folder.name}-from-{number}", *overrides])
    new = loaded.folder
    if new.absolute() == folder.absolute():
        raise UserError("a branch needs a name of its own; give name=... that differs from the run it branches off")
    if (new / "run.json").exists():
        return loaded  # the branch was made by an earlier call, and goes on
    _refuse_unfinished(folder, number)
    (new / "iterations").mkdir(parents=True)
    for earlier in range(number):
        _link(folder / "iterations" / f"{earlier:03d}", new / "iterations" / f"{earlier:03d}")
    for name in SHARED:
        _link(folder / name, new / name)
        _link(stamp_path(folder / name), stamp_path(new / name))
    (new / "run.json").write_text((folder / "run.json").read_text(encoding="utf-8"), encoding="utf-8")
    (new / "recipe.yaml").write_text((folder / "recipe.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return loaded


def _refuse_unfinished(folder: Path, number: int) -> None:
    made = [int(file.parent.name) for file in folder.glob("iterations/*/metrics.json.stamp.json")]
    last = max(made, default=-1)
    if not 1 <= number <= last + 1:
        raise UserError(
            f"--from-iteration {number}: {folder} has finished folders 0 to {last}; allowed: 1 to {last + 1}"
        )
    stamp = json.loads(stamp_path(folder / "iterations" / f"{number - 1:03d}" / "policy").read_text(encoding="utf-8"))
    if stamp.get("pruned"):
        raise UserError(
            f"the policy of iteration {number - 1} was deleted to save room; branch off before a folder whose "
            "predecessor is still there (see raft status), or make the run again with keep: all"
        )


def _link(target: Path, link: Path) -> None:
    link.symlink_to(os.path.relpath(target.absolute(), link.parent.absolute()))
