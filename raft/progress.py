"""What a person sees while a stage works: a bar with rate and time left, or plain lines where there is no terminal.

The same is written into the run's folder, so that `raft status` can tell it from another terminal.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PLAIN_EVERY = 15.0  # seconds between two plain lines
WRITE_EVERY = 0.5  # seconds between two writes of the file
ROOM = 512  # bytes of the file: always as many, in one write, so that a reader sees an old or a new state and no other


class Progress:
    """The progress of one stage, and the file that tells it to others."""

    def __init__(self, label: str, unit: str, file: Path | None = None):
        self.label, self.unit, self.file = label, unit, file
        self.bar: Any = None
        self.began = self.told = time.monotonic()
        self.written = 0.0
        self._write(0, 0)

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` units are finished."""
        self._write(done, total)
        if sys.stderr.isatty():
            self._draw(done, total)
        elif (now := time.monotonic()) - self.told > PLAIN_EVERY:
            self.told = now
            left = remaining(done, total, now - self.began)
            print(f"{self.label}: {done}/{total} {self.unit}, about {left:.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clears the bar."""
        if self.bar is not None:
            self.bar.close()

    def _draw(self, done: int, total: int) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(desc=self.label, total=total, unit=f" {self.unit}", leave=False, dynamic_ncols=True)
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def _write(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.file is None or now - self.written < WRITE_EVERY:
            return
        self.written = now
        state = {"artifact": self.label, "unit": self.unit, "done": done, "total": total}
        line = json.dumps({**state, "seconds": round(now - self.began, 1)}, ensure_ascii=False).encode()[: ROOM - 1]
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, line.ljust(ROOM - 1) + b"\n", 0)
        finally:
            os.close(descriptor)


def read(file: Path) -> dict[str, Any] | None:
    """The state that a run last wrote, None if there is none."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def remaining(done: int, total: int, seconds: float) -> float:
    """Seconds that are left at the rate so far."""
    return seconds / max(done, 1) * (total - done)
