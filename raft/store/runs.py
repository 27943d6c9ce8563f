"""A run on disk, and the one verb that carries it: `once`.

`once(name, stage, section, **inputs)` returns an artifact, making it only if the same section and the
same inputs have not already made it. An artifact is written under a temporary name, synced and renamed;
its stamp is written last, and the stamp's existence means done. Resume, caching and `raft status` follow.
What was changed or cut since is refused before it is read (`raft.store.stamps`); what was deleted is made again.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from raft.config.jobs import JOB_RESULTS, Align
from raft.config.recipe import Loaded, read_resolved
from raft.core import compressed, given, logs, records, signals, timing
from raft.core.atomic import (
    commit,
    disk_faults,
    fsync,
    read_object,
    remove,
    write_json,
)
from raft.core.errors import UserError
from raft.core.progress import Progress
from raft.core.protocols import REQUESTS
from raft.core.run_paths import RunPaths
from raft.core.versions import versions
from raft.launch.local import Local
from raft.metrics import reward_metrics
from raft.models import jinja
from raft.store import expected, measuring, stamps, words
from raft.store.artifact_writer import ArtifactWriter
from raft.store.changes import told
from raft.store.inherited import inherit, leads_to
from raft.store.keys import Artifact, describe, digest, plain, speed_options
from raft.store.stamps import checkpoints_path, partial_path, read_stamp, stamp_path

LOG = logging.getLogger(__name__)
FORMAT = 7  # of artifacts and keys: raised when an older run could no longer be continued
DESCRIBING = ("diagnose", "measure")  # stages that only describe what others made: repeated when that changes


class Conflict(UserError):
    """A finished artifact at `path` that was made from something else; `changes` are the keys, with both values."""

    def __init__(self, path: Path, changes: list[str]):
        self.path, self.changes = path, changes
        super().__init__(
            f"{path} was made from something else; what changed:\n"
            + "".join(f"  {change}\n" for change in changes[:12])
            + "nothing was overwritten. Go back to what it was, or write to another place"
        )


class Folder:
    """A folder of artifacts: the run itself, or one of its iterations."""

    def __init__(self, folder: Path, number: int, run: "Run"):
        self.folder, self.number, self.run = folder, number, run

    def once(self, name: str, stage: Callable[..., None], section: Any = None, **inputs: Any) -> Artifact:
        """The artifact `name`, made by `stage(section, output, **inputs)` unless that has been done already.

        What is shared with the original run of a branch is used as it is, whatever made it. Conflict if the
        artifact was made from something else: the message names what changed; nothing is overwritten. Only what
        describes other artifacts is then made again.
        """
        path = self.folder / name
        if self.run.shares(path):
            return self.existing(name)
        stamp = read_stamp(path)
        key = self.key(stage, section, inputs, stamp)
        if stamp is not None and not (compressed.exists(path) or stamp.get("pruned")):
            stamp = None
        changes = [] if stamp is None else list(told(path, stamp["key"], key))
        if changes and stage.__name__ not in DESCRIBING:
            raise Conflict(path, changes)
        if stamp is None or changes:
            return self.run.foresee(path, key) or self._make(path, stage, section, inputs, key)
        partial_path(path).unlink(missing_ok=True)  # a kill can come between the stamp and this
        remove(checkpoints_path(path))
        stamps.require(path, stamp, whole=False)
        return Artifact(path, stamp)

    def key(
        self, stage: Callable[..., None], section: Any, inputs: dict[str, Any], stamp: stamps.Stamp | None = None
    ) -> dict[str, Any]:
        """What an artifact of this folder is made from.

        Of what the section names and is not on this machine that is what `stamp` says, the artifact's own of before, or
        the stamp of an input that was made by the same section.
        """
        earlier = [stamp, *(value.stamp for value in inputs.values() if isinstance(value, Artifact))]
        before = [one["key"].get("section") for one in earlier if one is not None and "key" in one]
        return plain(
            {
                "format": FORMAT,
                "stage": stage.__name__,
                "seed": self.run.seed,
                "iteration": self.number,
                "section": describe(section, stage.__name__, next(filter(None, before), None)),
                "inputs": {
                    name: describe(value, stage.__name__)
                    for name, value in inputs.items()
                    if not getattr(value, "in_no_key", False)
                },
            }
        )

    @property
    def shared(self) -> bool:
        """Whether it is an iteration of the run that this one branched off, in which nothing is ever made."""
        return self is not self.run and self.run.shares(self.folder)

    def existing(self, name: str) -> Artifact:
        """A finished artifact as it is. UserError if it is missing."""
        path = self.folder / name
        if (stamp := read_stamp(path)) is None or not (compressed.exists(path) or stamp.get("pruned")):
            raise UserError(f"{path}, of the run that this one branched off, is gone; put that run back in its place")
        return Artifact(path, stamp)

    def is_done(self, name: str) -> bool:
        """Whether an artifact is finished."""
        return stamp_path(self.folder / name).exists()

    def _make(
        self, path: Path, stage: Callable[..., None], section: Any, inputs: dict[str, Any], key: dict[str, Any]
    ) -> Artifact:
        signals.check()
        self.run.refuse_links(path)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        if stamp_path(path).exists():  # of what was deleted since
            stamp_path(path).unlink()
            fsync(path.parent)
        for torn in (path, compressed.beside(path)):  # without a stamp they may be, and their room is needed
            remove(torn)
        remove(temporary)
        if (found := inherit(self.run.folder, self.folder, path, key)) is not None:
            self._list_drops(found[1], stage.__name__)
            return self._stamped(path, found[0])
        rest, after = expected.rest(self.run.folder, self.number, self.run.wanted)
        output = ArtifactWriter(
            temporary,
            partial_path(path),
            digest(key),
            self.run.seed,
            self.number,
            Progress(
                f"{path.relative_to(self.run.folder)}", words.unit(stage.__name__), RunPaths(self.run.folder).progress,
                words.of(stage.__name__, path), self.number, self.run.wanted, rest, after,
            ),
            stage=stage.__name__,
            key=key,
            launch=self.run.launch,
            workers=RunPaths(self.run.folder).workers,
        )  # fmt: skip
        LOG.info("%s: %s", path, words.of(stage.__name__, path))
        began = time.time()
        timing.taken()
        self.run.launch.taken()
        logs.silence_libraries()
        with output.progress, disk_faults():
            stage(section, output, **inputs)
        whole = sum(drop.index is None for drop in output.drops)
        assert output.rows_in is None or output.rows_in == output.rows + whole, f"{stage.__name__} lost rows"
        with timing.part("sync"):
            commit(temporary, path)
        with timing.part("hash"):
            content = stamps.content_of(path)
        self._list_drops([drop.row() for drop in output.drops], output.stage)
        stamp = {
            "hash": output.hash,
            "key": key,
            "rows": output.rows,
            "rows_in": output.rows_in,
            "dropped": len(output.drops),
            "drops": stamps.drops_digest(drop.row() for drop in output.drops),
            "measured": output.measured,
            "began": round(began, 3),
            "seconds": round(time.time() - began, 3),
            "parts": timing.taken(),
            "speed": speed_options(section),
            "versions": versions(),
            "content": content,
        }
        if output.requests:
            stamp[REQUESTS] = output.requests
        if lanes := self.run.launch.taken():
            stamp["workers"] = lanes
        RunPaths(self.run.folder).workers.unlink(missing_ok=True)
        made = self._stamped(path, stamp, output.progress.before)
        output.partial.unlink(missing_ok=True)
        remove(checkpoints_path(path))
        return made

    def _stamped(self, path: Path, stamp: stamps.Stamp, before: int = 0) -> Artifact:
        """The artifact, which is finished now; `before` of its rows an earlier attempt had made."""
        write_json(stamp_path(path), stamp)
        _log(path, stamp, before)
        if self.run.mirror is not None:
            self.run.mirror.ask()
        return Artifact(path, stamp)

    def _list_drops(self, drops: list[dict[str, Any]], stage: str) -> None:
        """dropped.jsonl of this folder: the drops of other stages as they were, and those of this one."""
        listed = RunPaths(self.folder).dropped
        others = [row for row in (records.read(listed) if listed.exists() else []) if row["stage"] != stage]
        if not others and not drops and not listed.exists():
            return
        temporary = listed.with_name(".dropped.jsonl.tmp")
        records.write(temporary, [*others, *drops])
        commit(temporary, listed)


def _log(path: Path, stamp: stamps.Stamp, before: int) -> None:
    """What an artifact took, and each worker of a cluster; `before` of its rows an earlier attempt had made."""
    rows, seconds = stamp["rows"], stamp["seconds"]
    made = rows - before
    more = f"{before} rows were there, " if before else ""
    rate = f"{more}{made} rows, {made / seconds:.3g} a second" if rows and seconds else ""
    LOG.info("%s is made: %s", path, ", ".join(filter(None, (f"{seconds:.1f} s", rate))))
    for lane in stamp.get("workers", ()):
        did = f"{lane['done']} in {lane['ended'] - lane['began']:.1f} s{', then it died' if lane['died'] else ''}"
        LOG.info("worker %s: %s", lane["worker"], did)


class Run(Folder):
    """A run's folder, locked while it works."""

    makes: ClassVar[bool] = True  # whether what is missing is made

    def __init__(self, folder: Path, seed: int):
        self.seed, self.incomplete = seed, False  # whether there is something to make in it though it was finished
        self.wanted = 0  # the number of its last iteration, as far as it has any
        self.launch: Any = Local()
        self.mirror: Any = None  # while it has one (raft.store.mirror)
        super().__init__(folder, 0, self)
        self._shared = {folder / name for name in shared_names(folder)}

    def shares(self, path: Path) -> bool:
        """Whether it belongs to the original run of this branch, and is a link here."""
        return not self._shared.isdisjoint([path, *path.parents])

    def owns(self, path: Path) -> bool:
        """Whether it lies in this run itself, behind no link, so that it may be changed."""
        return not self.shares(path) and path.parent.resolve().is_relative_to(self.folder.resolve())

    def refuse_links(self, path: Path) -> None:
        """UserError if a folder on the way from the run to `path` is a link: raft writes nothing outside a run."""
        for folder in path.parents:
            if folder == self.folder:
                return
            if folder.is_symlink():
                raise UserError(
                    f"{folder} is a link to {folder.readlink()}, and raft writes through no link inside a run; put "
                    "the folder itself in its place, or move the whole run and link that"
                )

    def iteration(self, number: int) -> Folder:
        """The folder of one iteration: policy `number` is made in it out of policy `number - 1`."""
        return Folder(RunPaths(self.folder).iteration(number).folder, number, self)

    def subfolder(self, *names: str) -> Folder:
        """A folder inside the run that is not an iteration."""
        return Folder(self.folder.joinpath(*names), 0, self)

    def iterations(self, count: int) -> Iterator[Folder]:
        """Iterations 1 to `count`."""
        return (self.iteration(number) for number in range(1, count + 1))

    @classmethod
    @contextmanager
    def opened(cls, loaded: Loaded) -> "Iterator[Run]":
        """The run of a recipe, new or as it was left, locked until the block ends."""
        folder = loaded.folder
        refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", f"{folder}", "give this one a name of its own (name=...)"):
            require_parent(folder)
            run = cls(folder, loaded.recipe.seed)
            run.wanted = loaded.recipe.iterations if isinstance(loaded.recipe, Align) else 0
            for file in (RunPaths(folder).progress, RunPaths(folder).workers):
                file.unlink(missing_ok=True)  # of an earlier process
            run.launch = loaded.recipe.launch
            run.look_over()
            begun = about(folder).get("date") if RunPaths(folder).about.exists() else None
            with jinja.dated(loaded.recipe.date or begun or jinja.today()), closing(run.launch):
                yield run

    def foresee(self, path: Path, key: dict[str, Any]) -> Artifact | None:
        """What stands for an artifact that is to be made, in a run that makes nothing."""
        return None

    def look_over(self) -> None:
        """Takes away the stamps of what was deleted, which is made again. UserError if an artifact is damaged."""
        for path, stamp in stamps.stamped(self.folder):
            if self.owns(path) and not compressed.exists(path) and not stamp.get("pruned"):
                stamp_path(path).unlink()
                self.incomplete = True
        stamps.require_all(self.folder)

    def rebuild_metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl out of the files of the iterations: one row for each policy, never a row twice."""
        rows = metrics_rows(self.folder)
        temporary = self.folder / ".metrics.jsonl.tmp"
        records.write(temporary, rows)
        os.replace(temporary, RunPaths(self.folder).rows)
        return rows

    def prune(self, keep: str, best: int) -> None:
        """Deletes policies that `keep` does not ask for; the first stays, and the last, which the next is made of."""
        trained = [it for it in RunPaths(self.folder).iterations() if stamp_path(it.policy).exists()]
        stay = {0, *(it.number for it in trained[-1:]), *([best] if keep == "best" else [])}
        for place, path in ((self.iteration(it.number), it.policy) for it in trained if keep != "all"):
            if place.number not in stay and path.exists() and not place.folder.is_symlink():
                write_json(stamp_path(path), {**place.existing("policy").stamp, "pruned": True})
                remove(path)

    def link_best(self, best: int) -> None:
        """Points the link `best` to a policy, or takes it away where that policy has been deleted."""
        link, policy = RunPaths(self.folder).best, RunPaths(self.folder).iteration(best).policy
        target = policy.relative_to(self.folder) if policy.exists() else None
        if link.is_symlink() and link.readlink() != target:
            link.unlink()
        if target is not None and not os.path.lexists(link):  # what is there without being a link is the user's own
            link.symlink_to(target)


def last_artifact(folder: Path, job: Any) -> Path:
    """What a run of this recipe makes last: with its stamp the run is finished."""
    return result(folder, job.job, job.iterations if isinstance(job, Align) else 0)


def result(folder: Path, job: str, iterations: int) -> Path:
    """What a job makes last; `iterations` are those of job: align."""
    return RunPaths(folder).iteration(iterations).metrics if job == "align" else folder / JOB_RESULTS[job]


def wanted(folder: Path, job: str) -> int | None:
    """How many iterations the run is to have, None if its resolved recipe cannot be read; 0 for a job without any."""
    if job != "align":
        return 0
    with suppress(UserError):
        found = read_resolved(folder).get("iterations", Align.__dataclass_fields__["iterations"].default)
        return found if isinstance(found, int) else None
    return None


def outcome(folder: Path, job: str) -> dict[str, Any]:
    """What a job without iterations measured as it made its last artifact; empty before that, and for job: align."""
    stamp = None if job == "align" else read_stamp(result(folder, job, 0))
    return stamp["measured"] if stamp else {}


def metrics_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl: row i holds what is known of policy i. UserError if a metrics.json is damaged.

    A branch with another reward than its original run had has no rewards of what it shares: they compare with none.
    """
    made = (it for it in RunPaths(folder).iterations() if it.metrics.exists())
    return reward_metrics.merged(measuring.comparable(folder, {it.number: read_metrics(it.metrics) for it in made}))


def read_metrics(file: Path) -> dict[str, dict[str, Any]]:
    """A metrics.json: figures of the policy and of the previous policy, each a number, or a list of findings."""
    cure = f"delete {file}; then {stamps.again(file)}"
    content = read_object(file, cure)
    for part in ("policy", "previous"):
        figures = content.get(part)
        if not isinstance(figures, dict):
            raise UserError(f"{file} is damaged: {part} is not a mapping of figures; {cure}")
        for name, figure in figures.items():
            known = isinstance(figure, int | float) and not isinstance(figure, bool)
            if not known and not (isinstance(figure, list) and all(isinstance(entry, dict) for entry in figure)):
                raise UserError(f"{file} is damaged: {part}.{name} is {figure!r}, which is not a number; {cure}")
    return content


def about(folder: Path) -> dict[str, Any]:
    """What run.json says. UserError if it is damaged."""
    file = RunPaths(folder).about
    content = read_object(file, f"delete {file}; then raft run RECIPE writes it again")
    kinds: dict[str, type] = dict.fromkeys(("recipe", "folder", "outputs", "job", "date"), str)
    kinds |= dict.fromkeys(("versions", "machine", "made"), dict) | dict.fromkeys(
        ("overrides", "processes", "shared", "timeline"), list
    )
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name, kind()), kind)]
    if wrong or "job" not in content:
        reason = f"{wrong[0]} is {content[wrong[0]]!r}" if wrong else "it names no job"
        raise UserError(f"{file} is damaged: {reason}; delete it; then raft run RECIPE writes it again")
    return content


def shared_names(folder: Path) -> list[str]:
    """The names of what a branch shares with its original run, each a link into that run."""
    return about(folder).get("shared", []) if RunPaths(folder).about.exists() else []


def require_parent(folder: Path) -> None:
    """UserError if a run that this one branched off, perhaps through others, is gone or was made again."""
    for name in shared_names(folder):
        link = folder / name
        if not link.is_symlink() or link.exists():
            continue
        parent = Path(os.path.normpath(link.parent.resolve() / link.readlink() / os.path.relpath(".", name)))
        if not RunPaths(parent).about.exists():
            raise UserError(
                f"{folder} is a branch, and the run that it branched off is gone: its links lead to {parent}. Put that "
                "run there, or copy the branch again with what its links lead to: cp -rL"
            )
        require_parent(parent)
    for name, then in (about(folder).get("made", {}) if RunPaths(folder).about.exists() else {}).items():
        if (stamp := read_stamp(folder / name)) is not None and stamp["hash"] != then:
            raise UserError(
                f"{folder} is a branch of a run that was made again since, out of something else: {name} is another "
                "one. Put the old run back there, or make the branch again under another name"
            )


def set_aside(folder: Path) -> Path | None:
    """Moves the run of a folder to a name of its own beside it, and gives that; None where there is no run yet.

    Branches of it beside it follow.
    """
    refuse_foreign(folder)
    if not folder.is_dir():
        return None
    with locked(folder / ".lock", f"{folder}", "give the new one a name of its own (name=...)"):
        aside = folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
        if aside.exists():
            raise UserError(f"{aside} exists already; wait a second, and give the same command again")
        folder.rename(aside)
        for branch in folder.parent.glob(f"*/{RunPaths(folder).about.name}"):
            _lead(branch.parent, folder, aside)
    return aside


def _lead(branch: Path, old: Path, new: Path) -> None:
    """Points the links of a branch into a run to where that run is now."""
    try:
        names = shared_names(branch)
    except UserError:  # its run.json is damaged, which is for another command to say
        return
    for link in (branch / name for name in names):
        target = leads_to(link) if link.is_symlink() else link
        if target.is_relative_to(old.absolute()):
            place = new.absolute() / target.relative_to(old.absolute())
            temporary = link.with_name(f".{link.name}.tmp")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(os.path.relpath(place, link.parent.absolute()))
            os.replace(temporary, link)


def refuse_foreign(folder: Path) -> None:
    """UserError if the folder is something else than a run, or than the rest of a run that was killed at its start."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, but the run needs a folder of that name; choose another name=...")
    run = RunPaths(folder)
    begun = {
        ".lock",
        ".resolved.yaml.tmp",
        ".run.json.tmp",
        given.ROWS,
    }  # of a run killed at birth, or forecast
    begun |= {file.name for file in (run.recipe, run.resolved, run.forecast)}
    if not folder.is_dir() or run.about.exists() or next(stamps.stamped(folder), None) is not None:
        return
    if {entry.name for entry in folder.iterdir()} - begun:
        raise UserError(f"{folder} exists and is not a run; choose another name=..., or move that folder away")


@contextmanager
def locked(file: Path, what: str, otherwise: str, leave: bool = True) -> Iterator[None]:
    """Holds a lock until the block ends, or the process; then its file goes, unless `leave`.

    UserError if another process holds it, or if it cannot be acquired.
    """
    lock = _lock(file, what, otherwise)
    try:
        yield
    finally:
        if not leave:
            file.unlink(missing_ok=True)
        os.close(lock)


def _lock(file: Path, what: str, otherwise: str) -> int:
    """The descriptor of a lock file that still has its name when it is locked: another process may have deleted it."""
    while True:
        if file.is_symlink():
            raise UserError(f"{file} is a link, and raft writes through none inside a run; delete it")
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), file.stat()):
                    return lock
        except BlockingIOError:
            os.close(lock)
            raise UserError(
                f"{what} is in use already, by another process or by this one; wait for it, or {otherwise}"
            ) from None
        except OSError as fault:
            os.close(lock)
            raise UserError(
                f"{file} cannot be locked ({fault.strerror}), so two processes could work on {what} at once; put it on "
                "a file system that has locks"
            ) from None
        os.close(lock)


def is_running(folder: Path) -> bool:
    """Whether a process works on the run now; False if the folder cannot be locked."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # none, or no file
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False
