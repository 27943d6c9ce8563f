"""A run that goes on with a changed recipe: what is finished is compared with what the recipe would make now.

A key may change as long as no finished artifact depends on it. So the loop is walked through once with a run that
makes nothing (`Replay`); where it meets an artifact that was made from something else, the run is refused before
anything is done, and the message names the keys, the artifact, and the commands that lead on.
"""

import glob
import os
import platform
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raft.config.jobs import MUTABLE_KEYS
from raft.config.recipe import Loaded, read_resolved, speed_keys, value_at
from raft.core import compressed
from raft.core.atomic import create, write_json, write_text
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths
from raft.core.versions import versions
from raft.models import jinja
from raft.store import branch, stamps
from raft.store.keys import Artifact, digest
from raft.store.runs import Conflict, Run, about, metrics_rows
from raft.store.stamps import differences

WHOLE_RUN = ("job", "date")  # what all of a run has in common, though no key of an artifact holds it
PLAIN = re.compile(
    r"[A-Za-z][\w./-]*", re.ASCII
)  # a text that needs no quotes in YAML, unless it reads as another value
MEASURING = ("generate", "score")  # the stages that the figures of policies come from
MOST = 12  # changes that a message lists

Walk = Callable[[Run], None]  # the job of a recipe, on a run


class Unmade(Exception):
    """Raised where the content of an artifact is needed that is not finished."""


class Foreseen(Artifact):
    """An artifact that is not finished: its key is known, its content is not."""

    @property
    def path(self) -> Path:
        raise Unmade


class Replay(Run):
    """A run in which nothing is made and nothing is deleted; Conflict where a finished artifact is another one."""

    makes = False

    def foresee(self, path: Path, key: dict[str, Any]) -> Artifact:
        """The artifact that would be made."""
        known = stamps.read_stamp(path)
        if known is not None and compressed.exists(path):  # it only describes others, and what it says is still of use
            return Artifact(path, {**known, "hash": digest(key)})
        empty: dict[str, Any] = {"rows": 0, "rows_in": None, "dropped": 0, "measured": {}}
        return Foreseen(path, {"hash": digest(key), "key": key, **empty})

    def rebuild_metrics(self) -> list[dict[str, Any]]:
        return metrics_rows(self.folder)

    def prune(self, keep: str, best: int) -> None:
        pass

    def link_best(self, best: int) -> None:
        pass


@contextmanager
def continued(loaded: Loaded, walk: Walk) -> Iterator[Run]:
    """The run of a recipe, new or as it was left; UserError if something finished in it was made by another recipe."""
    with Run.opened(loaded) as run:
        try:
            run.incomplete |= _settle(run.folder, loaded, walk)
            yield run
        except Conflict as conflict:
            raise UserError(_refusal(conflict, loaded)) from None


def refusal(loaded: Loaded, walk: Walk) -> str | None:
    """Why a run that is there would be refused with this recipe; None where it would not, or there is none."""
    folder = loaded.folder
    changes = recipe_changes(folder, loaded) if RunPaths(folder).resolved.is_file() else []
    if not changes:
        return None
    try:
        with suppress(Unmade), jinja.dated(loaded.recipe.date or about(folder).get("date") or jinja.today()):
            _refuse_whole(folder, changes)
            walk(Replay(folder, loaded.recipe.seed))
    except Conflict as conflict:
        return _refusal(conflict, loaded)
    return None


def _settle(folder: Path, loaded: Loaded, walk: Walk) -> bool:
    """Writes what the run is, once it is known that it may be that; returns whether its recipe has changed."""
    run = RunPaths(folder)
    changes = recipe_changes(folder, loaded) if run.resolved.exists() else []
    if changes:
        _refuse_whole(folder, changes)
        with suppress(Unmade):
            walk(Replay(folder, loaded.recipe.seed))
    if changes or not run.resolved.exists():
        run.recipe.unlink(missing_ok=True)
        with create(run.recipe) as copy:
            copy.write(loaded.path.read_bytes() if loaded.text is None else loaded.text.encode())
    write_text(run.resolved, loaded.resolved)
    if changes and run.about.exists():
        write_json(run.about, {**about(folder), "overrides": list(loaded.overrides)})
    if not run.about.exists():
        write_json(
            run.about,
            {
                "recipe": str(loaded.path.absolute()),
                "overrides": list(loaded.overrides),
                "folder": str(Path.cwd()),
                "outputs": os.path.relpath(folder.parent.absolute()),
                "job": loaded.recipe.job,
                "seed": loaded.recipe.seed,
                "date": loaded.recipe.date or jinja.today(),
                "versions": versions(),
                "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
            },
        )
    return bool(changes)


def recipe_changes(folder: Path, loaded: Loaded) -> list[str]:
    """The keys in which a recipe differs from the one that a run was last run by, but for those in no key."""
    free = {*MUTABLE_KEYS, *speed_keys(loaded.recipe)}
    return [change for change in _all_changes(folder, loaded) if not _is_free(change.split(":", 1)[0], free)]


def _all_changes(folder: Path, loaded: Loaded) -> list[str]:
    """All keys in which it differs from that one, with both values."""
    import yaml

    return list(differences(read_resolved(folder), yaml.safe_load(loaded.resolved)))


def _is_free(key: str, free: set[str]) -> bool:
    """Whether a key, or a section that it is in, may change."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in free for length in range(1, len(parts) + 1))


def _refuse_whole(folder: Path, changes: list[str]) -> None:
    """Conflict if a change is of what all of a run has in common, and something of it is finished."""
    if whole := [change for change in changes if change.split(":", 1)[0] in WHOLE_RUN]:
        for path, _ in stamps.stamped(folder):
            raise Conflict(path, whole)


def _refusal(conflict: Conflict, loaded: Loaded) -> str:
    """What was changed, what depends on it, and the commands that lead on."""
    folder, path = loaded.folder, conflict.path
    changed = recipe_changes(folder, loaded)
    listed = "".join(f"  {change}\n" for change in (changed or conflict.changes)[:MOST])
    of = f"{path} was made from something else"
    if changed:
        depends = ", ".join(change.split(":", 1)[0] for change in conflict.changes[:3])
        of = f"the recipe of {folder} has changed, and {path.relative_to(folder)} depends on it ({depends})"
    lines = [f"{of}; what changed:\n{listed}nothing was made. Put it back, or use one of these:"]
    lines += [f"  {command}\n      {what}" for command, what in _ways(conflict, loaded)]
    return "\n".join(lines)


def _ways(conflict: Conflict, loaded: Loaded) -> Iterator[tuple[str, str]]:
    """Commands that lead on, each with what it does; a branch last but one where it can compare less."""
    folder = loaded.folder
    own = folder if loaded.seeds is None else folder.with_name(folder.name.removesuffix(f"-seed{loaded.recipe.seed}"))
    new = _to_run(loaded, name=_free_name(own)), "a new run; this one stays"
    stamp = stamps.read_stamp(conflict.path)
    measures = stamp is not None and stamp["key"]["stage"] in MEASURING
    if measures:
        yield new
    first = _first_to_repeat(conflict.path, folder)
    number = None if first is None else branch.beginning(folder, first, loaded)
    if number is not None:
        shares = f"a new run, which shares the policies before iteration {number} with this one"
        possible = (one for one in branch.beginnings(folder) if one <= loaded.recipe.iterations)
        others = [str(one) for one in possible if one != number]
        also = f"; --from-iteration {' or '.join(others)} is possible too" if others and not loaded.python else ""
        unlike = ", but not their figures: this key changes how they are measured" if measures else ""
        yield _to_branch(loaded, number), f"{shares}{unlike}{also}"
    if not measures:
        yield new
    yield _to_run(loaded, restart=True), "this run from its beginning; what is there is moved aside"


def _to_run(loaded: Loaded, name: str | None = None, restart: bool = False) -> str:
    """The command, or the call, that runs a recipe under another name, or from its beginning."""
    if loaded.python:
        return f"raft.run(..., {'restart=True' if restart else f'name={name!r}'})"
    several = loaded.seeds is not None and not restart
    words = [word for word in loaded.overrides if not word.startswith(("name=", *(["seed="] if several else [])))]
    named = [word for word in loaded.overrides if word.startswith("name=")] if name is None else [f"name={name}"]
    more = ["--restart"] if restart else ["--seeds", str(loaded.seeds)] if several else []
    return shlex.join(["raft", "run", str(loaded.path), *words, *named, *more])


def _to_branch(loaded: Loaded, number: int) -> str:
    """The command, or the call, that makes a branch with what changed."""
    folder = loaded.folder
    usual = branch.usual_name(folder, number)
    name = _free_name(usual) if usual.exists() else None
    if loaded.python:
        return f"raft.open_run({str(folder)!r}).branch({number}, ...{'' if name is None else f', name={name!r}'})"
    words = [*_changed(folder, loaded), *_changed_freely(folder, loaded), *([] if name is None else [f"name={name}"])]
    return shlex.join(["raft", "resume", str(folder), "--from-iteration", str(number), *words])


def _first_to_repeat(path: Path, folder: Path) -> int | None:
    """The first iteration that a branch would make again, None for what belongs to the whole run."""
    parts = path.relative_to(folder).parts
    if parts[0] != "iterations" or not parts[1].isdecimal():
        return None
    return max(1, int(parts[1]))


def _changed(folder: Path, loaded: Loaded) -> list[str]:
    """The overrides that make the run's recipe this one; none where the recipe is the same and a file changed."""
    return [_override(change.split(":", 1)[0], loaded.config) for change in recipe_changes(folder, loaded)]


def _changed_freely(folder: Path, loaded: Loaded) -> list[str]:
    """The overrides for keys that are in no artifact's key, such as iterations, where they differ too."""
    keys = (change.split(":", 1)[0] for change in _all_changes(folder, loaded))
    return [_override(key, loaded.config) for key in keys if _is_free(key, {*MUTABLE_KEYS} - {"name"})]


def _override(key: str, config: dict[str, Any]) -> str:
    """The override that gives a recipe what this one says at a key, or takes the key out where it says nothing."""
    import json

    import yaml

    *section, name = key.split(".")
    if name not in (value_at(config, section) or ()):
        return f"~{key}"
    value = value_at(config, [*section, name])
    plain = isinstance(value, str) and PLAIN.fullmatch(value) and yaml.safe_load(value) == value
    return f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"


def _free_name(folder: Path) -> str:
    number = 2
    while any(any(folder.parent.glob(glob.escape(f"{folder.name}-{number}") + end)) for end in ("", "-seed*")):
        number += 1
    return f"{folder.name}-{number}"
