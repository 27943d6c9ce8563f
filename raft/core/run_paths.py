"""The files of a run by name: what lies where, for all that read it. The loop names what it makes; a test compares."""

from dataclasses import dataclass
from pathlib import Path

from raft.core.errors import UserError

OUTPUTS = Path("outputs")  # where runs go, in the current folder
RUN = "run.json"
ROUNDS = "rounds"  # of adaptive sampling, a folder in that of an iteration
CANDIDATES = "candidates"  # responses from elsewhere, likewise
DEPTH = 4  # iterations/003/rounds/002/scores.jsonl


@dataclass(frozen=True)
class GroupPaths:
    """The files of one list of prompts and the groups of responses to them, whether they are there or not."""

    folder: Path

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def responses(self) -> Path:
        return self.folder / "responses.jsonl"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.jsonl"

    @property
    def gold(self) -> Path:
        return self.folder / "gold.jsonl"

    @property
    def reference(self) -> Path:
        """The log-probabilities of the responses under the policy and under the first one."""
        return self.folder / "reference.jsonl"

    @property
    def selected(self) -> Path:
        return self.folder / "selected.jsonl"

    @property
    def dropped(self) -> Path:
        return self.folder / "dropped.jsonl"


@dataclass(frozen=True)
class IterationPaths(GroupPaths):
    """The files of an iteration: the training responses of the policy before, and the policy trained on them."""

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def metrics(self) -> Path:
        """metrics.json: what was measured in this iteration."""
        return self.folder / "metrics.json"

    @property
    def evaluation(self) -> GroupPaths:
        """The answers of this iteration's policy; their prompts are the run's `evaluation`."""
        return GroupPaths(self.folder / "evaluation")

    @property
    def candidates(self) -> GroupPaths:
        """The responses from elsewhere to the prompts of this iteration."""
        return GroupPaths(self.folder / CANDIDATES)

    def round(self, number: int) -> GroupPaths:
        """The files of one round of adaptive sampling; the first has the prompts of the iteration."""
        return GroupPaths(self.folder / ROUNDS / f"{number:03d}")


@dataclass(frozen=True)
class RunPaths(GroupPaths):
    """The files of a run. A job without iterations has its groups, its policy or its pairs in the run's own folder."""

    @property
    def about(self) -> Path:
        """run.json: job, seed, date, machine and versions; a folder with it is a run."""
        return self.folder / RUN

    @property
    def recipe(self) -> Path:
        """The recipe as it was written."""
        return self.folder / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """The recipe with every value that holds."""
        return self.folder / "resolved.yaml"

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def start(self) -> Path:
        """The model that a job without iterations begins with."""
        return self.folder / "start"

    @property
    def examples(self) -> Path:
        """What a job without iterations learns from."""
        return self.folder / "examples.jsonl"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.jsonl"

    @property
    def pool(self) -> Path:
        """All training prompts."""
        return self.folder / "pool.jsonl"

    @property
    def evaluation(self) -> Path:
        """The held-out prompts."""
        return self.folder / "evaluation.jsonl"

    @property
    def candidates(self) -> Path:
        """Responses from elsewhere that join the groups."""
        return self.folder / "candidates.jsonl"

    @property
    def references(self) -> Path:
        """Responses from elsewhere, whose perplexity is measured."""
        return self.folder / "references.jsonl"

    @property
    def doctor(self) -> Path:
        """What was found when the rewards were examined."""
        return self.folder / "doctor.jsonl"

    @property
    def metrics(self) -> Path:
        """metrics.json of a job that measures once."""
        return self.folder / "metrics.json"

    @property
    def rows(self) -> Path:
        """metrics.jsonl: a row for each policy."""
        return self.folder / "metrics.jsonl"

    @property
    def accuracy(self) -> Path:
        """What job: evaluate-reward measured; its table and picture have the endings .md and .png."""
        return self.folder / "accuracy.json"

    @property
    def best(self) -> Path:
        """A link to the best policy that is still there."""
        return self.folder / "best"

    @property
    def curve(self) -> Path:
        return self.folder / "reward_curve.png"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def lm_eval(self) -> Path:
        """The folder of what `raft eval` found, a file for each policy and task."""
        return self.folder / "lm_eval"

    @property
    def exported(self) -> Path:
        """Where `raft export` writes a policy: beside the run, because it is no part of it."""
        return self.folder.with_name(f"{self.folder.name}-export")

    @property
    def forecast(self) -> Path:
        """What `raft check --measure` foresaw."""
        return self.folder / "forecast.json"

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard's files are, with `report_to: [tensorboard]`."""
        return self.folder / "tensorboard"

    @property
    def tracked(self) -> Path:
        """What trackers have been sent."""
        return self.folder / "tracked.json"

    @property
    def progress(self) -> Path:
        """What is being made now."""
        return self.folder / "progress.json"

    @property
    def workers(self) -> Path:
        """What the workers of a cluster do now."""
        return self.folder / "workers.json"

    @property
    def log(self) -> Path:
        """A link to the log of the newest launch."""
        return self.folder / "logs" / "latest.log"

    def iteration(self, number: int) -> IterationPaths:
        """The files of an iteration; 0 is the policy that nothing was trained on."""
        return IterationPaths(self.folder / "iterations" / f"{number:03d}")

    def iterations(self) -> list[IterationPaths]:
        """The iterations that have a folder, in order."""
        folders = sorted(self.folder.glob("iterations/[0-9]*"))
        return [IterationPaths(path) for path in folders if path.name.isdecimal() and path.name.isascii()]

    def files(self, pattern: str) -> list[Path]:
        """The files of a pattern in the run and its parts, in order, also in iterations that are links."""
        return [file for depth in range(DEPTH + 1) for file in sorted(self.folder.glob("*/" * depth + pattern))]


def stamp_path(path: Path) -> Path:
    """The stamp beside an artifact."""
    return path.with_name(f"{path.name}.stamp.json")


def run_of(path: Path) -> Path | None:
    """The folder of the run that a file lies in, at any depth; None if it lies in none."""
    return next((folder for folder in (*path.parents, *path.absolute().parents) if (folder / RUN).exists()), None)


def refuse_output(out: Path, ours: bool) -> None:
    """UserError if a command may not write its file there; `ours` says that it may replace a file that it made.

    Devices, links and folders are left alone, and so are all files of a run except raft's figures.
    """
    if out.is_symlink() or (out.exists() and not out.is_file()):
        raise UserError(f"{out} is not a regular file, so nothing is written there; name a file")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no such folder")
    if not ours and out.exists() and (run := run_of(out.absolute())) is not None:
        raise UserError(f"{out} belongs to the run {run}; choose another name")
