"""What a person sees while a stage works: a bar with rate and time left, or plain lines where there is no terminal."""

import sys
import time
from typing import Any

PLAIN_EVERY = 15.0  # seconds between two plain lines


class Progress:
    """The progress of one stage."""

    def __init__(self, label: str, unit: str):
        self.label, self.unit = label, unit
        self.bar: Any = None
        self.began = self.told = time.monotonic()

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` units are finished."""
        if sys.stderr.isatty():
            self._draw(done, total)
        elif (now := time.monotonic()) - self.told > PLAIN_EVERY:
            self.told = now
            left = (now - self.began) / max(done, 1) * (total - done)
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
