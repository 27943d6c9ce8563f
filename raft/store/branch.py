"""A new run that shares the first iterations of another by reference: `raft resume RUN --from-iteration N`.

Shared artifacts are links into the other run. Nothing is ever written behind them (`runs.Folder.once`): the metrics of
a shared iteration stay as they are, even if the branch evaluates more.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raft.config import preflight, recipe
from raft.config.recipe import FromPython, Loaded, value_at
from raft.core.atomic import commit, write_json
from raft.core.errors import UserError
from raft.core.run_paths import OUTPUTS, RUN, RunPaths
from raft.core.user_code import importable_in
from raft.store import stamps
from raft.store.runs import about, require_parent
from raft.store.stamps import differences, read_stamp, require_all, stamp_path

KEYS = ("job", "seed", "variables", "policy", "prompts", "evaluation.prompts", "evaluation.count")  # what made them
OWN = "prompts.per_iteration"  # each iteration draws its own


def existing(folder: Path) -> Path:
    """The folder of a run, by its own name; UserError if it is not a run, or its run.json is damaged."""
    folder = folder.resolve() if folder.name in ("", "..") else folder
    if not folder.exists() and RunPaths(OUTPUTS / folder).about.exists():
        folder = OUTPUTS / folder  # a run's name alone, as recipes have it
    if not RunPaths(folder).about.exists():
        near = sorted(str(file.parent) for file in folder.parent.glob(f"*/{RUN}"))[:5]
        raise UserError(
            f"{folder} is not a run (it has no run.json)" + (f"; runs beside it: {', '.join(near)}" if near else "")
        )
    about(folder)
    return folder


@contextmanager
def resumed(run: Path) -> Iterator[Path]:
    """The folder of a run that is to go on, in a block in which its own modules are found.

    They are looked for where the run began (`returned`), then in the run, then in the folder that was the current one.
    """
    require_parent(folder := existing(run))
    with importable_in([str(folder.absolute()), str(Path.cwd())]):
        yield returned(folder)


def returned(folder: Path) -> Path:
    """The run's folder, after this process has gone to where the run began: the paths of its recipe are from there.

    Where a run was copied or moved with all that is around it, that is the same place around the copy.
    """
    known, beside = about(folder), folder.absolute().parent.resolve()
    outputs = Path(known.get("outputs", "."))
    around = [beside, *beside.parents][min(len(outputs.parts), len(beside.parents))]
    began = around if "outputs" in known and around / outputs == beside else Path(known.get("folder", "."))
    if Path.cwd() / outputs == beside or not began.is_dir() or began.samefile("."):
        return folder
    folder = folder.absolute()
    os.chdir(began)
    return folder


def whole(folder: Path) -> Path:
    """The folder of a run whose files of rows are all intact; UserError if one is not, or if it is not a run."""
    require_parent(run := existing(folder))
    require_all(run, rows=True)
    return run


def off(folder: Path, number: int, overrides: Sequence[str], given: FromPython | None = None) -> Loaded:
    """The recipe of a new run whose folders before `number` are those of the old one, which is set up here.

    The same call goes on with it. UserError if the overrides change what is shared, or if it cannot be set up.
    """
    if not any(override.startswith("name=") for override in overrides):
        overrides = [f"name={usual_name(folder, number).name}", *overrides]
    loaded = recipe.load_run(folder, overrides, given)
    if loaded.folder == folder:
        raise UserError("a branch needs a name of its own; give name=... that differs from the run it branches off")
    _refuse_number(folder, number)
    _refuse_changes(folder, loaded)
    if number > loaded.recipe.iterations:
        raise UserError(
            f"no branch from iteration {number}: the recipe has iterations: {loaded.recipe.iterations}, so it would "
            f"make nothing; add iterations={number} or more"
        )
    if loaded.folder.exists():
        _refuse_other(loaded.folder, folder, number)
        return loaded
    _refuse_pruned(folder, number)
    require_all(folder)
    preflight.check(loaded, fetch=True)  # a branch that cannot start would only occupy its name
    _set_up(folder, number, loaded)
    return loaded


def usual_name(folder: Path, number: int) -> Path:
    """The folder of a branch that is given no name."""
    return folder.with_name(f"{folder.name}-from-{number}")


def _set_up(folder: Path, number: int, loaded: Loaded) -> None:
    """The folder of the branch, whole or not at all."""
    new = loaded.folder.with_name(f".{loaded.folder.name}.tmp")
    if new.exists():
        shutil.rmtree(new)
    old, branch = RunPaths(folder), RunPaths(new)
    iterations = branch.iteration(0).folder.parent
    iterations.mkdir(parents=True)
    for earlier in range(number):
        _link(old.iteration(earlier).folder, iterations)
    for file in (old.evaluation, old.pool, old.references):
        if file.exists():
            _link(file, new)
            _link(stamp_path(file), new)
    shutil.copyfile(old.recipe, branch.recipe)
    shared = sorted(link.relative_to(new).as_posix() for link in new.rglob("*") if link.is_symlink())
    known = {name: value for name, value in about(folder).items() if name != "id"}  # it is another run
    made = [branch.evaluation, branch.pool, *(branch.iteration(earlier).policy for earlier in range(number))]
    stamped = {path.relative_to(new).as_posix(): stamp["hash"] for path in made if (stamp := read_stamp(path))}
    write_json(branch.about, {**known, "shared": shared, "made": stamped})
    branch.resolved.write_text(loaded.resolved, encoding="utf-8")
    commit(new, loaded.folder)


def beginnings(folder: Path) -> list[int]:
    """The iterations that a branch of a run can begin with: the policy before each is still there."""
    last = max(stamps.complete(folder), default=-1)
    return [it.number + 1 for it in RunPaths(folder).iterations() if it.number <= last and it.policy.exists()]


def beginning(folder: Path, number: int, loaded: Loaded) -> int | None:
    """The last iteration up to `number` that `off` would make a run of this recipe from, as far as is known."""
    try:
        _refuse_changes(folder, loaded)
    except UserError:
        return None
    return max((one for one in beginnings(folder) if one <= number), default=None)


def _refuse_number(folder: Path, number: int) -> None:
    last = max(stamps.complete(folder), default=None)
    if last is None:
        raise UserError(f"no branch from iteration {number}: {folder} has finished no iteration to branch off from")
    if not 1 <= number <= last + 1:
        raise UserError(
            f"no branch from iteration {number}: {folder} has finished folders 0 to {last}; allowed: {_listed(folder)}"
        )


def _refuse_changes(folder: Path, new: Loaded) -> None:
    run = RunPaths(folder)
    config, _ = recipe.read_one(run.resolved)
    keys = [*KEYS, *(["evaluation.references"] if run.references.exists() else [])]
    own = {OWN, *recipe.speed_keys(new.recipe)}
    changed = [
        change
        for key in keys
        for change in differences(value_at(config, key.split(".")), value_at(new.config, key.split(".")), key)
        if change.split(":", 1)[0] not in own
    ]
    if changed:
        raise UserError(
            f"a branch shares its policy 0 and its prompts with {folder}, so these keys cannot differ:\n"
            + "".join(f"  {change}\n" for change in changed)
            + "nothing was made. Leave them out, or start a new run with them: raft run RECIPE name=... key=value"
        )


def _refuse_other(new: Path, folder: Path, number: int) -> None:
    shared = {link.name: link.resolve() for link in new.glob("iterations/*") if link.is_symlink()}
    wanted = (RunPaths(folder).iteration(earlier).folder for earlier in range(number))
    if shared != {iteration.name: iteration.resolve() for iteration in wanted}:
        raise UserError(
            f"{new} exists and is not a branch of {folder} from iteration {number}; choose another name=..."
        )


def _refuse_pruned(folder: Path, number: int) -> None:
    stamp = read_stamp(RunPaths(folder).iteration(number - 1).policy)
    if stamp is not None and stamp.get("pruned"):
        raise UserError(
            f"no branch from iteration {number}: it begins with policy {number - 1}, which was deleted to save room "
            f"(keep_policies); allowed: {_listed(folder)}. A run with keep_policies=all can branch off anywhere"
        )


def _listed(folder: Path) -> str:
    return ", ".join(map(str, beginnings(folder)))


def _link(target: Path, place: Path) -> None:
    (place / target.name).symlink_to(os.path.relpath(target.absolute(), place.absolute()))
