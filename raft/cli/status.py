"""`raft status`: what a run has made, what it is at, and its curve, in a terminal, from its files alone."""

import sys
from pathlib import Path
from typing import Any

from raft.cli import show
from raft.core import progress, signals
from raft.core.run_paths import RunPaths
from raft.core.terminal import say
from raft.store import runs

EVERY = 2.0  # seconds between two looks
PLAIN_EVERY = 15.0  # the same where there is no terminal to redraw
BLOCKS = "▁▂▃▄▅▆▇█"
CLEAR = "\x1b[H\x1b[2J"
CURVES = {"reward/eval": "held-out reward", "gold/eval": "gold reward", "reward/mean": "training reward"}


def status(folder: Path) -> str:
    """All of it, as text."""
    running = runs.is_running(folder)
    parts = [show.status(folder, running), *([at_work(folder)] if running else []), *curves(runs.metrics_rows(folder))]
    return "\n".join(filter(None, parts))


def at_work(folder: Path) -> str:
    """The artifact that is being made, with its rate and the time that is left."""
    state = progress.read(RunPaths(folder).progress)
    if state is None:
        return ""
    done, total, seconds = state["done"], state["total"], state["seconds"]
    if not total:
        return f"now: {state['artifact']}"
    now = done - state["before"]
    rate, left = now / seconds if seconds else 0.0, progress.left(now, total - state["before"], seconds)
    return f"now: {state['artifact']}: {done} of {total} {state['unit']}, {rate:.3g} a second{left}"


def curves(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each curve: its name, its shape, its first and its last value."""
    lines = []
    for key, name in CURVES.items():
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            lines.append(f"{name:16s} {shape(values)}  {values[0]:.3f} to {values[-1]:.3f} ({len(values)} policies)")
    return lines


def shape(values: list[float]) -> str:
    """Values as blocks, the least and the greatest of them at either end."""
    low, high = min(values), max(values)
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / (high - low) * steps) if high > low else 0] for value in values)


def watch(folder: Path) -> None:
    """Shows the status repeatedly until the run ends."""
    on_terminal = sys.stdout.isatty()
    while True:
        running = runs.is_running(folder)
        if on_terminal:
            print(CLEAR, end="")
        say(status(folder) if on_terminal or not running else at_work(folder))
        if not running:
            return
        signals.sleep(EVERY if on_terminal else PLAIN_EVERY)
