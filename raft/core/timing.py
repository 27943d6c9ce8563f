"""Where the time of a stage goes: named parts, which its stamp carries and the report draws; and times in words."""

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


def words(seconds: float) -> str:
    """A duration as a person says it: 1.2 s, 45 s, 2 min 30 s, 26 min, 1 h 40 min, 3 days 4 h."""
    if seconds < 9.95:
        return f"{round(seconds, 1):g} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    if seconds < 595:
        return _two(round(seconds / 10) * 10, 60, "min", "s")
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600 - 1800:
        return _two(round(seconds / 60), 60, "h", "min")
    return _two(round(seconds / 3600), 24, "days", "h")


def _two(count: int, size: int, large: str, small: str) -> str:
    whole, rest = divmod(count, size)
    return f"{whole} {large}" + (f" {rest} {small}" if rest else "")
