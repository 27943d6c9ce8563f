"""The figures `gold` and `kl`: policies as numbered points in the plane of two quantities, joined in their order.

`gold` has the reward that selection sees against the gold reward that it never sees, on held-out prompts: while both
rise, what is learned is good; where the gold reward turns, the reward is being over-optimised. Beside it is gold@n, the
gold reward of the best of n held-out responses by the reward (`raft.metrics.reward_metrics.gold_at_n`): what selection
from a policy still gains of what is really wanted.

`kl` has both rewards against the distance from the first policy: what each step away from it bought. The x axis is
sqrt(KL(policy || first policy)), in which over-optimisation has its simplest forms (Gao et al. 2022,
arXiv:2210.10760). The marks are the bound log n - (n - 1) / n on the distance of the best of n (Beirami et al.
2024, arXiv:2401.01879) at n = K, K^2, ...: the best of K of the best of K is the best of K^2, so a policy that learned
t times what selection does, and nothing else, is at most at the mark of K^t, t log K - (1 - K^-t) nats away. A policy
beyond its mark has learned from its winners what selection did not ask for, too.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raft.metrics import reward_metrics
from raft.report import palette
from raft.report.figures import reading, style
from raft.report.figures.best_of_n import over_n, policies_of
from raft.report.figures.lines import numbers as numbers_of
from raft.report.figures.table import Measured, Number, Plot, Recipe
from raft.store.runs import metrics_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROXY, GOLD_REWARD = "reward/eval", "gold/eval"
KL, BOUND = "kl/first", "kl/bound"
SCALES = {PROXY: "reward, held-out prompts", GOLD_REWARD: "gold reward, held-out prompts"}
COLOURS = {PROXY: palette.HELD_OUT.light, GOLD_REWARD: palette.GOLD.light}
WIDTH = 9.4  # inches
MOST_MARKS = 10
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def measure_gold(folder: Path) -> Measured:
    """Both rewards of each policy that has both, and gold@n for n up to the responses that a held-out prompt has."""
    held_out = [one for one in reading.rewards(folder) if one.quantity in SCALES]
    both = set.intersection(*({one.policy for one in held_out if one.quantity == which} for which in SCALES))
    proxies, golds = reading.held_out(folder, "scores"), reading.held_out(folder, "gold")
    at_n = [number for at in sorted(both) for number in _gold_at_n(at, proxies[at], golds[at])]
    return Measured(folder.name, [*(one for one in held_out if one.policy in both), *at_n])


def _gold_at_n(policy: int, proxy: np.ndarray, gold: np.ndarray) -> list[Number]:
    counts = range(1, gold.shape[1] + 1)
    selected = np.stack([reward_metrics.gold_at_n(gold, proxy, n) for n in counts], axis=-1)
    return reading.numbers(policy, [f"gold@{n}" for n in counts], selected, proxy + gold)


def draw_gold(found: list[Recipe]) -> "Figure":
    """One panel with the paths of all recipes, and one for gold@n of each recipe; each panel has its own lines."""
    panels = 1 + len(found)
    figure, grid = style.panels(panels, 2, WIDTH, [3.9] * -(-panels // 2), sharey=True)
    for place, recipe in enumerate(found):
        policies = sorted(set(recipe.find(PROXY)) & set(recipe.find(GOLD_REWARD)))
        x, y = (_ends(recipe.find(quantity), policies) for quantity in (PROXY, GOLD_REWARD))
        _path(grid[0], policies, x, y, place, _label(recipe, found, "each policy at its number"), _own(found, PROXY))
    grid[0].set_xlabel(SCALES[PROXY])
    grid[0].set_ylabel(SCALES[GOLD_REWARD])
    style.panel_legend(grid[0], "both rewards of each policy", WIDTH / 2)
    for panel, recipe in zip(grid[1:], found, strict=True):
        over_n(panel, recipe, "gold", policies_of(found), best=" by the reward")
        title = "gold@n: gold reward of the best of n" + (f"\n{recipe.title()}" if len(found) > 1 else "")
        style.panel_legend(panel, title, WIDTH / 2)
    style.legend(figure, [], [one.band for one in found], _title(found), shape="band, cross")
    return figure


def measure_kl(folder: Path) -> Measured:
    """The distance of each policy, both rewards on held-out prompts, and the bound for n = K^t of policy t."""
    distances = numbers_of(metrics_rows(folder), [KL])
    rewards = [one for one in reading.rewards(folder) if one.quantity in SCALES] if distances else []
    if not rewards:
        return Measured(folder.name, [])
    if distances[0].policy > 0:
        distances.insert(0, Number(0, KL, 0.0))  # of the first policy from itself
    k = reading.k_of(folder)
    bounds = [Number(one.policy, BOUND, reward_metrics.kl_bound(k**one.policy)) for one in distances if k]
    return Measured(folder.name, [*distances, *bounds, *rewards], k)


def draw_kl(found: list[Recipe]) -> "Figure":
    """A panel for each of both rewards that there is, with the paths of all recipes."""
    quantities = [quantity for quantity in SCALES if any(recipe.find(quantity) for recipe in found)]
    figure, grid = style.panels(len(quantities), 1, 6.8, [3.2] * len(quantities), sharex=True)
    for panel, quantity in zip(grid, quantities, strict=True):
        for place, recipe in enumerate(found):
            policies = sorted(set(recipe.find(KL)) & set(recipe.find(quantity)))
            if policies:
                y = _ends(recipe.find(quantity), policies)
                label = _label(recipe, found, f"{SCALES[quantity]}: each policy at its number")
                _path(panel, policies, _roots(recipe, policies), y, place, label, _own(found, quantity))
        panel.set_ylabel(SCALES[quantity])
    _mark(grid, found)
    grid[-1].set_xlabel("distance from the first policy: √KL (KL in nats per response)")
    style.legend(figure, grid, [one.band for one in found], _title(found), shape="cross")
    return figure


def _roots(recipe: Recipe, policies: list[int]) -> np.ndarray:
    """Square roots of distances; an estimate below 0 stands at 0."""
    return np.sqrt(np.clip(_ends(recipe.find(KL), policies), 0.0, None))


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
        for t in style.thinned([t for t in sorted(of_k) if of_k[t] <= right], MOST_MARKS)
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


def _path(
    panel: "Axes", policies: list[int], x: np.ndarray, y: np.ndarray, place: int, label: str, colour: str | None
) -> None:
    """One path; x and y are [3, T]: values, and the lower and upper ends of their intervals (NaN: none)."""
    own, marker, dashes = style.look(place)
    colour = colour or own
    every = math.ceil(len(policies) / style.MOST_MARKERS)
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
    for at, across, up in zip(policies[shown], x[0, shown], y[0, shown], strict=True):
        where: Any = {"ha": "center", "va": "center", "fontsize": 8, "color": "#222222", "zorder": 3.5 + 3 * place}
        panel.annotate(str(at), (across, up), **where)


def _title(found: list[Recipe]) -> str | None:
    """What stands above the legend: the name of the only recipe."""
    return found[0].title() if len(found) == 1 else None


def _label(recipe: Recipe, found: list[Recipe], alone: str) -> str:
    """What the legend calls a path: the recipe, unless it is the only one."""
    return recipe.title() if len(found) > 1 else alone


def _own(found: list[Recipe], quantity: str) -> str | None:
    """The colour of a quantity, unless colours tell recipes apart."""
    return COLOURS[quantity] if len(found) == 1 else None


def _reach(ends: np.ndarray) -> np.ndarray:
    """How far an interval reaches below and above its value, [2, T]; nowhere where there is none."""
    value, low, high = ends
    return np.nan_to_num(np.array([value - low, high - value])).clip(min=0.0)


def _ends(numbers: dict[int, Number], policies: list[int]) -> np.ndarray:
    """Values and both ends of their intervals at some policies, [3, T], NaN where there is no interval."""
    return np.array([(numbers[at].value, numbers[at].low, numbers[at].high) for at in policies], dtype=float).T


GOLD = Plot(
    name="gold",
    title="Gold reward against reward",
    shows="Each policy on held-out prompts: up and to the right is progress; where the path turns downwards, the "
    "reward is being over-optimised.",
    missing="no held-out prompts with both rewards; set evaluation.gold in its recipe for a gold reward, "
    "or, if the run has yet to evaluate a policy, wait for that (raft status shows how far it is)",
    measure=measure_gold,
    draw=draw_gold,
)
DISTANCE = Plot(
    name="kl",
    title="Rewards against the KL from the first policy",
    shows="What each step away from the first policy bought: right of the line of K^t, policy t has also learned "
    "what selection did not ask for.",
    missing="it has no reward on held-out prompts beside a distance from the first policy (kl/first in its "
    "metrics.jsonl); set evaluation.kl: true in its recipe for the distance, or, if the run has yet to "
    "evaluate a policy, wait for that (raft status shows how far it is)",
    measure=measure_kl,
    draw=draw_kl,
)
