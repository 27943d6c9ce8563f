"""Where the time of a stage goes: named parts, which its stamp carries and the report draws."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

BEGAN = time.time()  # of this process, but for the start of Python itself

_parts: dict[str, float] = {}


@contextmanager
def part(name: str) -> Iterator[None]:
    """Counts the seconds inside the block as this part of the stage that is at work."""
    began = time.perf_counter()
    try:
        yield
    finally:
        _parts[name] = _parts.get(name, 0.0) + time.perf_counter() - began


def taken() -> dict[str, float]:
    """Seconds by part since the last call."""
    rounded = {name: round(seconds, 3) for name, seconds in _parts.items()}
    _parts.clear()
    return rounded
