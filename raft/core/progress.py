"""What is shown while a stage runs: a bar with rate and time left, or plain lines without a terminal.

The same is written into the run's folder, so that `raft status` can show it in another terminal.
"""

import json
import os
import sys
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

PLAIN_EVERY = 15.0  # seconds between two plain lines
WRITE_EVERY = 0.5  # seconds between two writes of the file
SOME = 0.05  # of the work, before which no remaining time is shown
ROOM = 512  # bytes of the file: always as many, in one write, so that a reader sees an old or a new state and no other
SHOWN = ContextVar("SHOWN", default=True)  # whether it is shown; the file is written anyway


class Progress:
    """The progress of one stage, and the file with it for others."""

    def __init__(self, label: str, unit: str, file: Path | None = None):
        self.label, self.unit, self.file, self.shown = label, unit, file, SHOWN.get()
        self.bar: Any = None
        self.began = self.told = time.monotonic()
        self.written = 0.0
        self.before = 0  # units that an earlier attempt has done
        self._write(0, 0)

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` units are finished."""
        self._write(done, total)
        if not self.shown:
            return
        if sys.stderr.isatty():
            self._draw(done, total)
        elif (now := time.monotonic()) - self.told > PLAIN_EVERY:
            self.told = now
            remaining = left(done - self.before, total - self.before, now - self.began)
            print(f"{self.label}: {done}/{total} {self.unit}{remaining}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clears the bar."""
        if self.bar is not None:
            self.bar.close()

    def _draw(self, done: int, total: int) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(
                desc=self.label, total=total, initial=self.before, unit=f" {self.unit}", leave=False, dynamic_ncols=True
            )
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def _write(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.file is None or now - self.written < WRITE_EVERY:
            return
        self.written = now
        state = {"artifact": self.label, "unit": self.unit, "before": self.before, "done": done, "total": total}
        line = json.dumps({**state, "seconds": round(now - self.began, 1)}, ensure_ascii=False).encode()[: ROOM - 1]
        if self.file.is_symlink():
            self.file.unlink()
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.pwrite(descriptor, line.ljust(ROOM - 1) + b"\n", 0)
        finally:
            os.close(descriptor)


def read(file: Path) -> dict[str, Any] | None:
    """The state that a run last wrote, or None."""
    if not file.is_file():
        return None
    try:
        state = json.loads(file.read_bytes()[: 2 * ROOM])
    except (ValueError, RecursionError):
        return None
    kinds = {"artifact": str, "unit": str, "before": int, "done": int, "total": int, "seconds": int | float}
    whole = isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in kinds.items())
    return state if whole else None


def left(done: int, total: int, seconds: float) -> str:
    """Words on the seconds that are left at the rate so far; none while it says too little, for groups end together."""
    return f", about {seconds / done * (total - done):.0f} s left" if done > 0 and done >= SOME * total else ""
