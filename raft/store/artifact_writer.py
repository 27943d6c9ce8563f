"""What a stage writes its artifact through: whole, or group by group into a partial file that outlives a kill."""

import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raft.core import records, signals
from raft.core.atomic import create, write_json
from raft.core.errors import UserError
from raft.core.progress import Progress
from raft.core.terminal import complain
from raft.launch.local import Local
from raft.models import jinja
from raft.store.changes import told
from raft.store.stamps import checkpoints_path

SYNC_EVERY = 1.0  # seconds between two syncs of a partial file
TELL_EVERY = 1.0  # seconds between two writes of what workers do


@dataclass
class ArtifactWriter:
    """What a stage writes its artifact through: whole (`write`, or anything at `path`), or group by group
    in any order (`resume`, `append`, `gather`), which survives a kill between any two groups."""

    path: Path
    partial: Path
    hash: str
    seed: int
    iteration: int
    progress: Progress
    rows: int = 0
    rows_in: int | None = None
    drops: list[records.Drop] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)  # that judges were sent, by their place in the section
    offsets: dict[str, int] = field(default_factory=dict)
    stage: str = ""
    key: dict[str, Any] = field(default_factory=dict)
    launch: Any = field(default_factory=Local)  # where models compute
    workers: Path | None = None  # the file that says what the workers of a cluster do now
    _file: Any = None
    _synced: float = 0.0
    _told: float = 0.0

    @property
    def checkpoints(self) -> Path:
        """A folder that outlives a kill, for what is half-made from the same inputs."""
        return checkpoints_path(self.partial.with_suffix("")) / self.hash[:12]

    def tell_restart(self) -> None:
        """Says so if the model is half-made from other inputs alone, so that its training begins at its first step."""
        kept = [one for one in self.checkpoints.parent.glob("*") if any(map(Path.is_file, one.rglob("*")))]
        if kept and self.checkpoints not in kept:
            complain(
                f"{self.partial.stem}: half-made from other inputs; training starts again from step 0, and what was "
                f"trained before is kept in {self.checkpoints.parent} until this is made"
            )

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """The whole artifact, in order."""
        self.rows = records.write(self.path, signals.watched(rows))

    def drop(self, prompt_id: str, index: int | None, reason: str) -> None:
        """Says that a row goes no further."""
        self.drops.append(records.Drop(prompt_id, index, self.stage, reason))

    def advance(self, done: int, total: int) -> None:
        """Moves the progress bar, and says what the workers do."""
        self.progress.advance(done, total)
        if self.workers is not None and time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            if lanes := self.launch.lanes():
                write_json(self.workers, lanes)

    def resume(self) -> dict[str, int]:
        """Opens the partial file where an earlier attempt left it: ids that are done, and where they stand.

        A record that was cut off in the middle is cut away. UserError if the file is damaged. What was half-made from
        other inputs waits beside it under the name of its key, and goes on when they come back.
        """
        if self.partial.is_symlink():
            raise UserError(f"{self.partial} is a link, and raft writes through none inside a run; delete it")
        self._change_places()
        if self.partial.exists():
            self._recover()
        self._file = open(self.partial, "ab")  # noqa: SIM115 - `close` closes it, or the end of the process
        if self._file.tell() == 0:
            self._file.write(records.dump({"hash": self.hash, "key": self.key, "day": jinja.today()}))
            self._file.flush()
        self.progress.before = len(self.offsets)
        return self.offsets

    def append(self, row: dict[str, Any]) -> None:
        """Adds a finished group; from here on a kill does not lose it."""
        self.offsets[row["prompt_id"]] = self._file.tell()
        self._file.write(records.dump(row))
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Ends the partial file as it is."""
        self._file.close()

    def gather(self, ids: Iterable[str]) -> None:
        """The artifact from the partial file, in the order of `ids`. Stopped if one is missing because of a signal."""
        self.close()
        with open(self.partial, "rb") as partial, create(self.path) as whole:
            for prompt_id in ids:
                if prompt_id not in self.offsets:
                    signals.check()
                partial.seek(self.offsets[prompt_id])
                whole.write(partial.readline())
                self.rows += 1

    def _recover(self) -> None:
        end = 0
        with open(self.partial, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                row = self._row(number, line)
                if number > 1:
                    name = row.get("prompt_id")
                    if not isinstance(name, str):
                        raise self._damaged(number, "a row without a prompt_id")
                    if name in self.offsets:
                        raise self._damaged(number, f"a second row of prompt {name!r}")
                    self.offsets[name] = end
                end += len(line)
        os.truncate(self.partial, end)

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = records.parse(line)
        except (ValueError, RecursionError) as fault:
            raise self._damaged(number, f"no line of JSON ({' '.join(str(fault).split())[:80]})") from None
        if not isinstance(row, dict):
            raise self._damaged(number, f"expected an object such as {{...}}, found {type(row).__name__}")
        return row

    def _damaged(self, number: int, said: str) -> UserError:
        return UserError(f"{self.partial}:{number}: damaged: {said}; delete that file to make all of it again")

    def _change_places(self) -> None:
        """Moves a partial file of other inputs aside, and one of these inputs, that was moved aside, back."""
        if (head := self._head()) is not None and head.get("hash") != self.hash:
            aside = _aside(self.partial, str(head.get("hash")))
            os.replace(self.partial, aside)
            changed = _listed(self.partial.with_suffix(""), head, self.key)
            complain(f"{self.partial.name}: half-made from other inputs{changed}; kept as {aside}")
        if not self.partial.exists() and (back := _aside(self.partial, self.hash)).is_file() and not back.is_symlink():
            os.replace(back, self.partial)

    def _head(self) -> dict[str, Any] | None:
        """The first record of the partial file, which says what it is made from; None where there is no whole one."""
        if not self.partial.exists():
            return None
        with open(self.partial, "rb") as lines:
            line = lines.readline()
        return self._row(1, line) if line.endswith(b"\n") else None


def _aside(partial: Path, key: str) -> Path:
    """Where the rows of another key wait."""
    return partial.with_name(f"{partial.name}.{key[:12]}")


def _listed(path: Path, head: dict[str, Any], key: dict[str, Any]) -> str:
    """What is different now, as far as the head of a partial file says."""
    changed = told(path, head["key"], key) if isinstance(head.get("key"), dict) and key else ()
    shown = "; ".join(itertools.islice(changed, 3))
    return f" ({shown})" if shown else ""
