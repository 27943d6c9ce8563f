"""Reward and gold reward against the distance from the first policy: what each step away from it bought.

The x axis is sqrt(KL(policy || first policy)), in which over-optimisation has its simplest forms (Gao et al.
2022, arXiv:2210.10760). The marks are the bound log n - (n - 1) / n on the distance of the best of n (Beirami et al.
2024, arXiv:2401.01879) at n = K, K^2, ...: the best of K of the best of K is the best of K^2, so a policy that learned
t times what selection does, and nothing else, is at most at the mark of K^t, t log K - (1 - K^-t) nats away. A policy
beyond its mark has learned from its winners what selection did not ask for, too.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raft.metrics import reward_metrics
from raft.report.figures import over_n, paths, reading, style
from raft.report.figures.lines import Sheet
from raft.report.figures.lines import numbers as numbers_of
from raft.report.figures.table import Measured, Number, Recipe
from raft.store.runs import metrics_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = (
    "it has no reward on held-out prompts beside a distance from the first policy (kl/first in its metrics.jsonl); "
    "set evaluation.kl: true in its recipe for the distance, or wait for its first evaluation "
    "(raft status shows how far it is), or leave it out"
)
KL, BOUND = "kl/first", "kl/bound"
REWARDS = {"reward/eval": "reward, held-out (own units)", "gold/eval": "gold reward (own units)"}
MOST_MARKS = 10
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def measure(folder: Path) -> Measured:
    """The distance of each policy, both rewards on held-out prompts, and the bound for n = K^iteration."""
    distances = numbers_of(metrics_rows(folder), Sheet({KL: KL}, {}, MISSING))
    rewards = [
        number
        for quantity, name in zip(REWARDS, ("scores", "gold"), strict=True)
        for iteration, table in reading.held_out(folder, name).items()
        for number in reading.number(iteration, quantity, reward_metrics.prompt_means(table), table)
    ]
    if not distances or not rewards:
        return Measured(folder.name, [])
    if distances[0].iteration > 0:
        distances.insert(0, Number(0, KL, 0.0))  # of the first policy from itself
    k = reading.k_of(folder)
    bounds = [Number(one.iteration, BOUND, reward_metrics.kl_bound(k**one.iteration)) for one in distances if k]
    return Measured(folder.name, [*distances, *bounds, *rewards], k)


def draw(found: list[Recipe]) -> "Figure":
    """A panel for each of both rewards that there is, with the paths of all recipes."""
    quantities = [quantity for quantity in REWARDS if any(recipe.find(quantity) for recipe in found)]
    figure, grid = style.panels(len(quantities), 1, 6.8, [3.2] * len(quantities), sharex=True)
    for panel, quantity in zip(grid, quantities, strict=True):
        for place, recipe in enumerate(found):
            iterations = sorted(set(recipe.find(KL)) & set(recipe.find(quantity)))
            if iterations:
                y = paths.ends(recipe.find(quantity), iterations)
                paths.draw(panel, iterations, _roots(recipe, iterations), y, place, paths.label(recipe, found))
        panel.set_ylabel(REWARDS[quantity])
    _mark(grid, found)
    grid[-1].set_xlabel("distance from the first policy: √KL (KL in nats per response)")
    style.legend(figure, grid, [one.band for one in found], paths.title(found), shape="cross")
    return figure


def _roots(recipe: Recipe, iterations: list[int]) -> np.ndarray:
    """Square roots of distances; an estimate below 0 stands at 0."""
    return np.sqrt(np.clip(paths.ends(recipe.find(KL), iterations), 0.0, None))


def _mark(grid: list["Axes"], found: list[Recipe]) -> None:
    """Lines at n = K^t for t = 1, 2, ..., as far as the policies reach but at least the first, named above."""
    right = 1.08 * max(float(np.nanmax(_roots(recipe, sorted(recipe.find(KL))))) for recipe in found)
    bounds = {
        recipe.k: {t: float(np.sqrt(one.value)) for t, one in recipe.find(BOUND).items() if t} for recipe in found
    }
    right = max(right, 1.08 * min((at for of_k in bounds.values() for at in of_k.values()), default=1.0))
    marks = {
        _name(k, t): of_k[t]
        for k, of_k in bounds.items()
        if k
        for t in over_n.thinned([t for t in sorted(of_k) if of_k[t] <= right], MOST_MARKS)
    }
    grid[0].set_xlim(-0.05 * right, right)
    for panel in grid:
        for at in marks.values():
            panel.axvline(at, color="#444444", linewidth=1.0, linestyle=(0, (1, 2)), zorder=0)
    if marks:
        above = grid[0].secondary_xaxis("top")
        above.set_xticks(list(marks.values()), list(marks))
        above.set_xlabel("dotted: the bound on √KL of the best of n, for n = K, K², K³, …", fontsize=9)


def _name(k: int, times: int) -> str:
    return f"{k}{str(times).translate(SUPERSCRIPTS) if times > 1 else ''}"
