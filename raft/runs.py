"""A run on disk, and the one verb that carries it: `once`. The only file that knows directory names.

`once(name, stage, section, **inputs)` returns an artifact, making it only if the same section and the
same inputs have not already made it. An artifact is written under a temporary name, synced and renamed;
its stamp is written last, and the stamp's existence means done. Resume, caching and `raft status` follow.

A folder, which is a model, is renamed first: it and its stamp come to the disk while the engine reads it already.
Nothing that was made from it is kept before, so a kill never leaves rows of a policy that is made anew.
"""

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raft import logs, metrics, records, timing
from raft.errors import UserError
from raft.files import Disk, flush, put, remove, sync, write_json, write_text
from raft.jobs import FREE
from raft.keys import Artifact, describe, digest, plain, speed_options, versions
from raft.output import Output
from raft.progress import Progress
from raft.recipe import Loaded, differences, speed_keys

FORMAT = 3  # of artifacts and keys: raised when an older run could no longer be continued
PROGRESS = "progress.json"  # what is being made now, for `raft status`; no artifact


class Place:
    """A folder of artifacts: the run itself, or one of its iterations."""

    def __init__(self, folder: Path, number: int, run: "Run"):
        self.folder, self.number, self.run = folder, number, run

    def once(self, name: str, stage: Callable[..., None], section: Any = None, **inputs: Any) -> Artifact:
        """The artifact `name`, made by `stage(section, output, **inputs)` unless that has been done already.

        What is shared with the run that this one branched off stands as it is, whatever made it. UserError if the
        artifact was made from something else: the message names what changed; nothing is overwritten.
        """
        path = self.folder / name
        if self.shared or path.is_symlink():
            return self.made(name)
        key = self.key(stage, section, inputs)
        if (stamp := _stamp(path)) is not None:
            _refuse_other(path, stamp["key"], key)
            partial_path(path).unlink(missing_ok=True)  # a kill can come between the stamp and this
            if path.exists() or stamp.get("pruned"):
                return Artifact(path, stamp)
        return self._make(path, stage, section, inputs, key)

    def key(self, stage: Callable[..., None], section: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """What an artifact of this folder is made from."""
        return plain(
            {
                "format": FORMAT,
                "stage": stage.__name__,
                "seed": self.run.seed,
                "iteration": self.number,
                "section": describe(section),
                "inputs": {name: describe(value) for name, value in inputs.items()},
            }
        )

    @property
    def shared(self) -> bool:
        """Whether it is an iteration of the run that this one branched off, in which nothing is ever made."""
        return self is not self.run and self.folder.is_symlink()

    def made(self, name: str) -> Artifact:
        """A finished artifact as it stands. UserError if it is not there."""
        path = self.folder / name
        if (stamp := _stamp(path)) is None or not (path.exists() or stamp.get("pruned")):
            raise UserError(f"{path}, of the run that this one branched off, is gone; put that run back in its place")
        return Artifact(path, stamp)

    def has(self, name: str) -> bool:
        """Whether an artifact is finished."""
        return stamp_path(self.folder / name).exists()

    def _make(
        self, path: Path, stage: Callable[..., None], section: Any, inputs: dict[str, Any], key: dict[str, Any]
    ) -> Artifact:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        if stamp_path(path).exists():  # of what was deleted since
            stamp_path(path).unlink()
            flush(path.parent)
        remove(path)  # without a stamp it may be torn, and its room is needed
        remove(temporary)
        label = f"{path.relative_to(self.run.folder)}"
        output = Output(
            temporary,
            partial_path(path),
            digest(key),
            self.run.seed,
            self.number,
            Progress(label, "steps" if stage.__name__.startswith("train") else "prompts", self.run.folder / PROGRESS),
            stage=stage.__name__,
            disk=self.run.disk,
        )
        began = time.time()
        timing.taken()
        logs.quieten()
        try:
            stage(section, output, **inputs)
        finally:
            output.progress.close()
        whole = sum(drop.index is None for drop in output.drops)
        assert output.rows_in is None or output.rows_in == output.rows + whole, f"{stage.__name__} lost rows"
        with timing.part("sync"):
            self.run.disk.settle()
            if is_model := temporary.is_dir():
                os.replace(temporary, path)
            else:
                put(temporary, path)
        self._list_drops(output)
        stamp = {
            "hash": output.hash,
            "key": key,
            "rows": output.rows,
            "rows_in": output.rows_in,
            "dropped": len(output.drops),
            "measured": output.measured,
            "began": round(began, 3),
            "seconds": round(time.time() - began, 3),
            "parts": timing.taken(),
            "speed": speed_options(section),
            "versions": versions(),
        }

        def finish() -> None:
            began = time.perf_counter()
            if is_model:
                sync(path)
                flush(path.parent)
            write_json(stamp_path(path), {**stamp, "synced": round(time.perf_counter() - began, 3)})
            output.partial.unlink(missing_ok=True)

        if is_model:
            self.run.disk.meanwhile(finish)
        else:
            finish()
        return Artifact(path, stamp)

    def _list_drops(self, output: Output) -> None:
        """dropped.jsonl of this folder: the drops of other stages as they were, and those of this one."""
        listed = self.folder / "dropped.jsonl"
        others = [row for row in (records.read(listed) if listed.exists() else []) if row["stage"] != output.stage]
        if not others and not output.drops and not listed.exists():
            return
        temporary = listed.with_name(".dropped.jsonl.tmp")
        records.write(temporary, [*others, *(drop.row() for drop in output.drops)])
        put(temporary, listed)


class Run(Place):
    """A run's folder, locked while it works."""

    def __init__(self, folder: Path, seed: int):
        self.seed, self.disk = seed, Disk()
        super().__init__(folder, 0, self)

    def iteration(self, number: int) -> Place:
        """The folder of one iteration: policy `number` is made in it out of policy `number - 1`."""
        return Place(self.folder / "iterations" / f"{number:03d}", number, self)

    def part(self, *names: str) -> Place:
        """A folder inside the run that is no iteration."""
        return Place(self.folder.joinpath(*names), 0, self)

    def iterations(self, count: int) -> Iterator[Place]:
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
            _settle(folder, loaded)
            yield cls(folder, loaded.recipe.seed)

    def rebuild_metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl out of the files of the iterations: one row for each policy, never a row twice."""
        rows = metrics_rows(self.folder)
        temporary = self.folder / ".metrics.jsonl.tmp"
        records.write(temporary, rows)
        os.replace(temporary, self.folder / "metrics.jsonl")
        return rows

    def prune(self, keep: str, best: int) -> None:
        """Deletes policies that `keep` does not ask for; the first stays, and the last, which the next is made of."""
        self.disk.settle()
        made = sorted(int(stamp.parent.name) for stamp in self.folder.glob("iterations/*/policy.stamp.json"))
        stay = {0, *made[-1:], *([best] if keep == "best" else [])}
        for place in map(self.iteration, made if keep != "all" else []):
            path = place.folder / "policy"
            if place.number not in stay and not place.shared and path.exists():
                write_json(stamp_path(path), {**place.made("policy").stamp, "pruned": True})
                remove(path)


def metrics_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl: row i holds what is known of policy i."""
    files = folder.glob("iterations/*/metrics.json")
    return metrics.merged({int(file.parent.name): json.loads(file.read_text(encoding="utf-8")) for file in files})


def stamp_path(path: Path) -> Path:
    """The stamp beside an artifact."""
    return path.with_name(f"{path.name}.stamp.json")


def _stamp(path: Path) -> dict[str, Any] | None:
    file = stamp_path(path)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _refuse_other(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = list(differences(old, new))
    if changed:
        raise UserError(
            f"{path} was made from something else; what changed:\n"
            + "".join(f"  {one}\n" for one in changed[:12])
            + "nothing was overwritten. Go back to what it was, or start a new run (name=...), "
            "or branch off with: raft resume RUN --from-iteration N"
        )


def partial_path(path: Path) -> Path:
    """Where an artifact that is made group by group grows."""
    return path.with_name(f"{path.name}.partial")


def refuse_foreign(folder: Path) -> None:
    """UserError if the folder is something else than a run, or than what a run killed at its birth left."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, but the run needs a folder of that name; choose another name=...")
    begun = {".lock", "recipe.yaml", "resolved.yaml", ".resolved.yaml.tmp", ".run.json.tmp"}  # of a run killed at birth
    begun |= {"forecast.json"}  # of one that was only forecast
    if folder.is_dir() and not (folder / "run.json").exists() and {one.name for one in folder.iterdir()} - begun:
        raise UserError(f"{folder} exists and is not a run; choose another name=..., or move that folder away")


def _settle(folder: Path, loaded: Loaded) -> None:
    """Writes what the run is, or checks that it still is that; only FREE keys may differ."""
    import yaml

    resolved = folder / "resolved.yaml"
    free = {*FREE, *speed_keys(loaded.recipe)}
    if resolved.exists():
        changed = [
            one
            for one in differences(
                yaml.safe_load(resolved.read_text(encoding="utf-8")), yaml.safe_load(loaded.resolved)
            )
            if one.split(":", 1)[0] not in free
        ]
        if changed:
            raise UserError(
                f"{folder} is the run of another recipe; what differs:\n"
                + "".join(f"  {one}\n" for one in changed[:12])
                + "nothing was changed. Give the new recipe a name of its own (name=...), or put these keys back, "
                f"or branch off with: raft resume {folder} --from-iteration N key=value"
            )
    else:
        shutil.copyfile(loaded.path, folder / "recipe.yaml")
    write_text(resolved, loaded.resolved)
    if not (folder / "run.json").exists():
        write_json(
            folder / "run.json",
            {
                "recipe": str(loaded.path.absolute()),
                "job": loaded.recipe.job,
                "seed": loaded.recipe.seed,
                "versions": versions(),
                "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
            },
        )


@contextmanager
def locked(file: Path, what: str, otherwise: str) -> Iterator[None]:
    """Holds a lock until the block ends, or the process. UserError if another process holds it."""
    with open(file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{what} is at work in another process; wait for it, or {otherwise}") from None
        yield


def is_running(folder: Path) -> bool:
    """Whether a process works on the run now."""
    if not (folder / ".lock").exists():
        return False
    with open(folder / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
