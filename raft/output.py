"""What a stage writes its artifact through: whole, or group by group into a partial file that outlives a kill."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raft import records, timing
from raft.errors import UserError
from raft.files import Disk
from raft.progress import Progress

SYNC_EVERY = 1.0  # seconds between two syncs of a partial file


@dataclass
class Output:
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
    offsets: dict[str, int] = field(default_factory=dict)
    stage: str = ""
    disk: Disk = field(default_factory=Disk)
    _file: Any = None
    _synced: float = 0.0

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """The whole artifact, in order."""
        self.rows = records.write(self.path, rows)

    def drop(self, prompt_id: str, index: int | None, reason: str) -> None:
        """Says that a row goes no further."""
        self.drops.append(records.Drop(prompt_id, index, self.stage, reason))

    def advance(self, done: int, total: int) -> None:
        """Moves the progress bar."""
        self.progress.advance(done, total)

    def resume(self) -> dict[str, int]:
        """Opens the partial file where an earlier attempt left it: ids that are done, and where they stand.

        A record that was cut off in the middle is cut away.
        """
        if self.partial.exists():
            self._recover()
        self._file = open(self.partial, "ab")  # noqa: SIM115 - `close` closes it, or the end of the process
        if self._file.tell() == 0:
            self._file.write(records.dump({"hash": self.hash}))
            self._file.flush()
        self.progress.before = len(self.offsets)
        return self.offsets

    def append(self, row: dict[str, Any]) -> None:
        """Adds a finished group; from here on a kill does not lose it."""
        with timing.part("sync"):
            self.disk.settle()
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
        """The artifact from the partial file, in the order of `ids`."""
        self.close()
        with open(self.partial, "rb") as partial, open(self.path, "wb") as whole:
            for prompt_id in ids:
                partial.seek(self.offsets[prompt_id])
                whole.write(partial.readline())
                self.rows += 1

    def _recover(self) -> None:
        end = 0
        with open(self.partial, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                row = json.loads(line)
                if end == 0 and row.get("hash") != self.hash:
                    raise UserError(
                        f"{self.partial}: half-made from other inputs than those of now; "
                        "delete that file to make it anew, or go back to the inputs that it was made from"
                    )
                if end:
                    self.offsets[row["prompt_id"]] = end
                end += len(line)
        os.truncate(self.partial, end)
