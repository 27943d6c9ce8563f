"""The reward that selection sees against the gold reward that it never sees, on held-out prompts.

One panel has a point for each policy: while both rise, what is learned is good; where the gold reward turns, the
reward is being over-optimised. Another has gold@n, the gold reward of the best of n held-out responses by the
reward (`raft.metrics.reward_metrics.gold_at_n`): what selection from a policy still gains of what is really wanted.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raft.metrics import reward_metrics
from raft.report.figures import over_n, paths, reading, style
from raft.report.figures.table import Measured, Number, Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = (
    "no held-out prompts with both rewards; set evaluation.gold in its recipe for a gold reward, "
    "or wait for its first evaluation (raft status shows how far it is), or leave it out"
)
PROXY, GOLD = "reward/eval", "gold/eval"


def measure(folder: Path) -> Measured:
    """Both rewards of each policy, and gold@n for n up to the responses that a held-out prompt has."""
    proxies, golds = reading.held_out(folder, "scores"), reading.held_out(folder, "gold")
    numbers = [
        number
        for iteration in sorted(set(proxies) & set(golds))
        for number in _numbers(iteration, proxies[iteration], golds[iteration])
    ]
    return Measured(folder.name, numbers)


def _numbers(iteration: int, proxy: np.ndarray, gold: np.ndarray) -> list[Number]:
    counts = range(1, gold.shape[1] + 1)
    selected = np.stack([reward_metrics.gold_at_n(gold, proxy, n) for n in counts], axis=-1)
    both = [
        *reading.number(iteration, PROXY, reward_metrics.prompt_means(proxy), proxy),
        *reading.number(iteration, GOLD, reward_metrics.prompt_means(gold), gold),
    ]
    if len(both) < 2:
        return []
    return [*both, *reading.numbers(iteration, [f"gold@{n}" for n in counts], selected, proxy + gold)]


def draw(found: list[Recipe]) -> "Figure":
    """One panel with the paths of all recipes, and one for gold@n of each recipe."""
    panels = 1 + len(found)
    figure, grid = style.panels(panels, 2, 9.4, [3.7] * -(-panels // 2), sharey=True)
    for place, recipe in enumerate(found):
        iterations = sorted(set(recipe.find(PROXY)) & set(recipe.find(GOLD)))
        x, y = (paths.ends(recipe.find(quantity), iterations) for quantity in (PROXY, GOLD))
        paths.draw(grid[0], iterations, x, y, place, paths.label(recipe, found))
    grid[0].set_title("policies on held-out prompts", fontweight="bold")
    grid[0].set_xlabel("reward (own units)")
    grid[0].set_ylabel("gold reward (own units)")
    for panel, recipe in zip(grid[1:], found, strict=True):
        over_n.draw(panel, recipe, "gold", best=" by the reward")
        panel.set_title(
            "gold@n on held-out prompts" if len(found) == 1 else f"gold@n: {recipe.title()}", fontweight="bold"
        )
    style.legend(figure, grid, [one.band for one in found], paths.title(found), shape="band, cross")
    return figure
