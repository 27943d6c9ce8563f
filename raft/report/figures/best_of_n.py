"""The reward of the best of n training responses, for n from 1 to K, one line for each policy.

From all K rewards of a prompt without bias (`reward_metrics.reward_at_n`): n = 1 is the mean, n = K the best of K.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raft.metrics import reward_metrics
from raft.report.figures import over_n, reading, style
from raft.report.figures.table import Measured, Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = (
    "no rewards of training responses that can be compared between prompts; leave it out, or wait for its first "
    "scores (raft status shows how far it is)"
)


def measure(folder: Path) -> Measured:
    """reward@n of each policy for all n, with bands over prompts."""
    training = reading.training(folder)
    numbers = [
        number
        for iteration, rewards in training.items()
        for number in reading.numbers(
            iteration,
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
        over_n.draw(panel, recipe, "reward", best="")
        if len(found) > 1:
            panel.set_title(recipe.title(), fontweight="bold")
    for panel in grid[::columns]:
        panel.set_ylabel("reward@n, training prompts (own units)")
    style.legend(figure, grid, [one.band for one in found], found[0].title() if len(found) == 1 else None)
    return figure
