"""Which policy of a run is meant by its number, as the best or as the last, and whether it is still there."""

from pathlib import Path
from typing import Literal, NamedTuple

from raft.config.jobs import JOB_OUTPUTS
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths
from raft.pipeline.evaluation import best_policy, compared_by
from raft.store import runs, stamps
from raft.store.keys import Artifact

Which = int | Literal["best", "last"]


class Found(NamedTuple):
    """A policy of a run, compared with its stamp; `number` is None for the one model of a job without iterations."""

    number: int | None
    artifact: Artifact

    @property
    def path(self) -> Path:
        """The model folder."""
        return self.artifact.place


def find(folder: Path, which: Which = "best") -> Found:
    """A policy of a job: align, or the model that a job: sft or reward-model made.

    UserError if the run makes no model, if there is no such policy, or if it was deleted to save room or is damaged:
    the message names the policies that are left.
    """
    job = runs.about(folder)["job"]
    if job != "align":
        return Found(None, _only(folder, job, which))
    number = number_of(folder, which)
    if not (place := RunPaths(folder).iteration(number)).folder.is_dir():
        last = max(stamps.complete(folder), default=0)
        raise UserError(f"{folder} has no iteration {number}; the last complete one is {last}")
    artifact = Artifact.finished(place.policy)
    try:
        if artifact.stamp.get("pruned"):
            raise UserError(f"{place.policy} was deleted to save room (keep_policies:)")
        stamps.require(place.policy, artifact.stamp)
    except UserError as fault:
        meant = f"policy {number}" if which == number else f"policy {number}, the {which},"
        others = ", ".join(str(other) for other in left(folder) if other != number) or "none"
        raise UserError(
            f"{meant} cannot be used: {fault}. Name another by its number; policies that are left: {others} "
            "(a new run with keep_policies: all keeps every policy)"
        ) from None
    return Found(number, artifact)


def before_and_after(folder: Path, job: str, which: Which = "best") -> dict[str, Artifact]:
    """Policy 0 and another one, each by what it is called; only one where they are the same.

    Of a job: sft these are the model that it started from, and the one that it made. UserError as of `find`.
    """
    if job not in ("align", "sft"):
        raise UserError(f"{folder} is a run of job: {job}, which has no policy to talk to; name one of align or sft")
    found = find(folder, which)
    if found.number is None:
        return {"before": Artifact.finished(RunPaths(folder).start), "after": found.artifact}
    return {"policy 0": find(folder, 0).artifact, f"policy {found.number}": found.artifact}


def number_of(folder: Path, which: Which) -> int:
    """The number of a policy of job: align; 0 where no iteration is complete yet."""
    if which == "best" and (rows := runs.metrics_rows(folder)):
        return best_policy(runs.Run(folder, 0), rows)
    return max(stamps.complete(folder), default=0) if isinstance(which, str) else which


def none_better(folder: Path, which: Which = "best") -> str | None:
    """Says that the best policy is policy 0 though there are others; None where it is not, or another was asked for."""
    last = number_of(folder, "last")
    if which != "best" or last == 0 or number_of(folder, which) != 0:
        return None
    by = "gold reward" if compared_by(folder, runs.metrics_rows(folder)) == "gold/eval" else "held-out reward"
    return (
        f"no policy is better than policy 0 by the {by}, so this is the base model; --policy last takes policy {last}"
    )


def left(folder: Path) -> list[int]:
    """The policies that are still on disk, by number."""
    made = [(it.number, it.policy, stamps.read_stamp(it.policy)) for it in RunPaths(folder).iterations()]
    return [number for number, path, stamp in made if stamp and not stamp.get("pruned") and path.exists()]


def _only(folder: Path, job: str, which: Which) -> Artifact:
    what, name = JOB_OUTPUTS.get(job, ("", ""))
    if what != "model":
        raise UserError(f"{folder} is a run of job: {job}, which makes no model; name a run that trains one")
    if not isinstance(which, str):
        raise UserError(f"{folder} is a run of job: {job}, which makes one model and no policy {which}; name none")
    artifact = Artifact.finished(folder / name)
    stamps.require(artifact.place, artifact.stamp)
    return artifact
