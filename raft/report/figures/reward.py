"""Reward over iterations: training prompts (best of K, mean), held-out prompts, and their gold reward."""

from pathlib import Path
from typing import TYPE_CHECKING

from raft.metrics import reward_metrics
from raft.report.figures import lines, reading
from raft.report.figures.table import Measured, Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = lines.REWARDS.missing
SOURCES = {
    reading.TRAINING: (("reward/best_of_k", reward_metrics.prompt_best), ("reward/mean", reward_metrics.prompt_means)),
    "evaluation/scores.jsonl": (("reward/eval", reward_metrics.prompt_means),),
    "evaluation/gold.jsonl": (("gold/eval", reward_metrics.prompt_means),),
}


def measure(folder: Path) -> Measured:
    """The rewards that stand in metrics.jsonl, with bands from the scores of each prompt."""
    found = [one for name, quantities in SOURCES.items() for one in reading.means(folder, name, quantities)]
    order = [quantity for quantities in SOURCES.values() for quantity, _ in quantities]
    return Measured(folder.name, sorted(found, key=lambda one: order.index(one.quantity)), reading.k_of(folder))


def draw(found: list[Recipe]) -> "Figure":
    """One panel for the reward and one for the gold reward, or of several recipes one for each metric."""
    return lines.figure(found, lines.REWARDS)
