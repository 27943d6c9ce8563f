"""Quantities of the best of n responses over n, one line for each policy."""

import math
from typing import TYPE_CHECKING

from raft.report.figures import style
from raft.report.figures.table import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 8  # in one panel; more cannot be told apart


def draw(panel: "Axes", recipe: Recipe, quantity: str, best: str) -> None:
    """The quantities `<quantity>@<n>` of a recipe, on a logarithmic scale of n; `best` says by what the best is."""
    curves = {at: curve for at in iterations(recipe) if (curve := recipe.over_n(quantity, at))}
    shown = thinned(list(curves), MOST_LINES)
    for place, (at, colour) in enumerate(zip(shown, style.gradient(len(shown)), strict=True)):
        style.draw(panel, curves[at], place, f"policy {at}", colour)
    most = max((int(curve.x[-1]) for curve in curves.values()), default=1)
    ticks = ticks_to(most)
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [str(n) for n in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlim(0.93, max(most, 2) * 1.08)
    panel.set_xlabel(f"n: the best{best} of n out of K = {most} responses")


def iterations(recipe: Recipe) -> list[int]:
    """The policies that a recipe has a number of."""
    return sorted({one.iteration for one in recipe.numbers})


def thinned(numbers: list[int], most: int) -> list[int]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(numbers) <= most:
        return numbers
    return [numbers[round(at * (len(numbers) - 1) / (most - 1))] for at in range(most)]


def ticks_to(most: int) -> list[int]:
    """The powers of two below a number, and the number."""
    powers = [2**power for power in range(math.ceil(math.log2(most)))] if most > 1 else []
    return [*(n for n in powers if n == 1 or n * 1.4 < most), most]
