"""Policies as numbered points in the plane of two quantities, joined in the order of their iterations."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from raft.report.figures import style
from raft.report.figures.table import Number, Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(panel: "Axes", iterations: list[int], x: np.ndarray, y: np.ndarray, place: int, label: str) -> None:
    """One path; x and y are [3, T]: values, and the lower and upper ends of their intervals (NaN: none)."""
    colour, marker, dashes = style.look(place)
    every = math.ceil(len(iterations) / style.MOST_MARKERS)
    shown = slice(None, None, every)
    panel.plot(x[0], y[0], color=colour, linestyle=dashes, linewidth=1.3, zorder=2 + 3 * place)
    panel.errorbar(
        x[0, shown],
        y[0, shown],
        xerr=_reach(x[:, shown]),
        yerr=_reach(y[:, shown]),
        fmt="none",
        ecolor=colour,
        elinewidth=2.6,
        alpha=0.35,
        zorder=1 + 3 * place,
    )
    face: Any = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.5, "markersize": 13}
    panel.plot(x[0, shown], y[0, shown], color=colour, linestyle="none", marker=marker, zorder=3 + 3 * place, **face)
    panel.plot(
        [], [], color=colour, linestyle=dashes, linewidth=1.3, marker=marker, label=label, **{**face, "markersize": 9}
    )
    for at, across, up in zip(iterations[shown], x[0, shown], y[0, shown], strict=True):
        where: Any = {"ha": "center", "va": "center", "fontsize": 8, "color": "#222222", "zorder": 3.5 + 3 * place}
        panel.annotate(str(at), (across, up), **where)


def title(found: list[Recipe]) -> str | None:
    """What stands above the legend: the name of the only recipe."""
    return found[0].title() if len(found) == 1 else None


def label(recipe: Recipe, found: list[Recipe]) -> str:
    """What the legend calls a path: the recipe, unless it is the only one."""
    return recipe.title() if len(found) > 1 else "each policy at its number"


def _reach(ends: np.ndarray) -> np.ndarray:
    """How far an interval reaches below and above its value, [2, T]; nowhere where there is none."""
    value, low, high = ends
    return np.nan_to_num(np.array([value - low, high - value])).clip(min=0.0)


def ends(numbers: dict[int, Number], iterations: list[int]) -> np.ndarray:
    """Values and both ends of their intervals at some iterations, [3, T], NaN where there is no interval."""
    return np.array([(numbers[at].value, numbers[at].low, numbers[at].high) for at in iterations], dtype=float).T
