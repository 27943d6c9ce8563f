"""`raft plot`: a figure by its name, and the numbers behind it as CSV beside the picture.

A figure is a module of this folder:

    MISSING                 why a run may have nothing to draw, and what to do
    measure(folder)         what it needs of one run, from its files
    draw(recipes)           the picture of that
"""

import importlib
from collections.abc import Sequence
from pathlib import Path

from raft.core.atomic import refuse_output
from raft.core.errors import UserError
from raft.core.options import suggest
from raft.report.figures import style
from raft.report.figures.table import is_table, recipes, tabulate

FIGURES = {
    "reward": "raft.report.figures.reward",
    "distribution": "raft.report.figures.distribution",
    "best-of-n": "raft.report.figures.best_of_n",
    "gold": "raft.report.figures.gold",
    "kl": "raft.report.figures.kl",
    "length": "raft.report.figures.length",
}


def file_name(name: str) -> str:
    """What the picture of a figure is called in a run."""
    return "reward_curve.png" if name == "reward" else f"{name}.png"


def refuse(out: Path) -> None:
    """UserError if picture or table would take the place of something that raft plot has not written."""
    refuse_output(out, out.name in map(file_name, FIGURES))
    table = out.with_suffix(".csv")
    refuse_output(table, is_table(table))
    if table.exists() and not is_table(table):
        raise UserError(f"{table}, where the numbers of the figure go, is no table of raft plot; choose another name")


def plot(name: str, folders: Sequence[Path], out: Path) -> Path:
    """Draws a figure of runs into a png, svg or pdf file, and returns the CSV file beside it.

    UserError if there is no such figure, if a run has nothing to draw, or if the file cannot be written.
    """
    if name not in FIGURES:
        raise UserError(f"there is no figure {name!r}; {suggest(name, list(FIGURES))}")
    style.writable(out)
    figure = importlib.import_module(FIGURES[name])
    found = recipes([figure.measure(folder) for folder in folders], figure.MISSING)
    style.save(lambda: figure.draw(found), out)
    table = out.with_suffix(".csv")
    tabulate(found, table)
    return table
