"""Reward over iterations: training prompts (best of K, mean), held-out prompts, and their gold reward."""

from pathlib import Path
from typing import TYPE_CHECKING

from raft import metrics, plots
from raft.curves import Measured, Recipe
from raft.figures import reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = plots.REWARDS.missing


def measure(folder: Path) -> Measured:
    """The rewards that stand in metrics.jsonl, with bands from the scores of each prompt."""
    training = reading.training(folder)
    sources = {
        "reward/best_of_k": (training, metrics.prompt_best),
        "reward/mean": (training, metrics.prompt_means),
        "reward/eval": (reading.held_out(folder, "scores"), metrics.prompt_means),
        "gold/eval": (reading.held_out(folder, "gold"), metrics.prompt_means),
    }
    numbers = [
        number
        for metric, (tables, of_prompts) in sources.items()
        for iteration, rewards in tables.items()
        for number in reading.number(iteration, metric, of_prompts(rewards), rewards)
    ]
    return Measured(folder.name, numbers, reading.k_of(folder))


def draw(found: list[Recipe]) -> "Figure":
    """One panel for the reward and one for the gold reward, or of several recipes one for each metric."""
    return plots.figure(found, plots.REWARDS)
