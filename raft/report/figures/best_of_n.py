"""The reward of the best of n training responses, for n from 1 to K, one line for each policy.

From all K rewards of a prompt without bias (`reward_metrics.reward_at_n`): n = 1 is the mean, n = K the best of K.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raft.metrics import reward_metrics
from raft.report.figures import reading, style
from raft.report.figures.table import Measured, Plot, Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 8  # in one panel; more cannot be told apart


def measure(folder: Path) -> Measured:
    """reward@n of each policy for all n, with bands over prompts."""
    training = reading.training(folder)
    numbers = [
        number
        for policy, rewards in training.items()
        for number in reading.numbers(
            policy,
            [f"reward@{n}" for n in range(1, rewards.shape[1] + 1)],
            np.stack([reward_metrics.reward_at_n(rewards, n) for n in range(1, rewards.shape[1] + 1)], axis=-1),
            rewards,
        )
    ]
    return Measured(folder.name, numbers, reading.k_of(folder))


def draw(found: list[Recipe]) -> "Figure":
    """A panel for each recipe on one scale of reward."""
    columns = min(len(found), 2)
    heights = [3.6] * -(-len(found) // columns)
    figure, grid = style.panels(len(found), columns, 6.8 if columns == 1 else 9.4, heights, sharey=True)
    for panel, recipe in zip(grid, found, strict=True):
        over_n(panel, recipe, "reward", policies_of(found), best="")
        if len(found) > 1:
            panel.set_title(recipe.title(), fontweight="bold")
    for panel in grid[::columns]:
        panel.set_ylabel("reward@n, training prompts")
    style.legend(figure, grid, [one.band for one in found], found[0].title() if len(found) == 1 else None)
    return figure


def policies_of(found: list[Recipe]) -> list[int]:
    """The policies of several recipes that are drawn; they look the same in the panel of each recipe."""
    return style.thinned(sorted({at for recipe in found for at in recipe.policies}), MOST_LINES)


def over_n(panel: "Axes", recipe: Recipe, quantity: str, policies: list[int], best: str) -> None:
    """The quantities `<quantity>@<n>` of a recipe, on a logarithmic scale of n; `best` says by what the best is."""
    curves = {at: curve for at in recipe.policies if (curve := recipe.over_n(quantity, at))}
    for place, (at, colour) in enumerate(zip(policies, style.gradient(len(policies)), strict=True)):
        if at in curves:
            style.draw(panel, curves[at], place, f"policy {at}", colour)
    most = max((int(curve.x[-1]) for curve in curves.values()), default=1)
    ticks = ticks_to(most)
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [str(n) for n in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlim(0.93, max(most, 2) * 1.08)
    panel.set_xlabel(f"n: the best{best} of n out of K = {most} responses")


def ticks_to(most: int) -> list[int]:
    """The powers of two below a number, and the number."""
    powers = [2**power for power in range(math.ceil(math.log2(most)))] if most > 1 else []
    return [*(n for n in powers if n == 1 or n * 1.4 < most), most]


PLOT = Plot(
    name="best-of-n",
    title="Reward of the best of n responses",
    shows="What choosing the best of n responses gains, estimated without bias from all K: where the right end still "
    "rises, a larger K would pay.",
    missing=reading.NO_TRAINING_REWARDS,
    measure=measure,
    draw=draw,
)
