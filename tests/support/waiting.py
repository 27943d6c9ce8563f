"""Waits for what another thread or process does."""

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last, f"{condition} did not come true in {seconds} s"
        time.sleep(0.05)
