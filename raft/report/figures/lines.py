"""The figures `reward` and `length`: metrics over iterations as lines.

One recipe has a panel for each scale: of rewards, that is the classic RAFT figure, with the training reward, the
best of K and the held-out reward in one panel and the gold reward below. Several recipes are overlaid, one panel for
each metric.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.metrics.reward_metrics import NORMAL_95
from raft.report.figures import reading, style
from raft.report.figures.table import Measured, Number, Plot, Recipe
from raft.store.runs import metrics_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]  # of one metrics.jsonl


@dataclass(frozen=True)
class Sheet:
    """Which metrics a figure shows: their labels, and the scale of each, by the name of the metric."""

    labels: Mapping[str, str]
    scales: Mapping[str, str]


REWARDS = Sheet(
    labels={
        "reward/best_of_k": "training prompts, best of K",
        "reward/mean": "training prompts, mean of K",
        "reward/eval": "held-out prompts, mean",
        "gold/eval": "held-out prompts, gold reward",
    },
    scales={
        "reward/best_of_k": "reward (own units)",
        "reward/mean": "reward (own units)",
        "reward/eval": "reward (own units)",
        "gold/eval": "gold reward (own units)",
    },
)
LENGTHS = Sheet(
    labels={
        "response/tokens": "training prompts, tokens",
        "eval/tokens": "held-out prompts, tokens",
        "diversity/distinct_1": "distinct-1 (different words)",
        "diversity/distinct_2": "distinct-2 (different pairs)",
        "diversity/msttr_100": "MSTTR-100 (in 100 words)",
    },
    scales={
        "response/tokens": "mean length (tokens)",
        "eval/tokens": "mean length (tokens)",
        "diversity/distinct_1": "diversity, held-out (share)",
        "diversity/distinct_2": "diversity, held-out (share)",
        "diversity/msttr_100": "diversity, held-out (share)",
    },
)


def measure_rewards(folder: Path) -> Measured:
    """The rewards that stand in metrics.jsonl, with bands from the scores of each prompt."""
    return Measured(folder.name, reading.rewards(folder), reading.k_of(folder))


def measure_lengths(folder: Path) -> Measured:
    """Length and diversity, as far as metrics.jsonl has them."""
    return Measured(folder.name, numbers(metrics_rows(folder), LENGTHS))


def numbers(rows: Rows, sheet: Sheet) -> list[Number]:
    """The metrics of a sheet that rows have, each with its 95 % interval where they have its standard error, too."""
    return [_number(row, metric) for metric in sheet.labels for row in rows if row.get(metric) is not None]


def _number(row: dict[str, Any], metric: str) -> Number:
    value, error = row[metric], row.get(f"{metric}_se")
    low, high = (None, None) if error is None else (value - NORMAL_95 * error, value + NORMAL_95 * error)
    return Number(row["iteration"], metric, value, low, high, row.get(f"{metric}_n"), row.get(f"{metric}_failed"))


def figure(found: list[Recipe], sheet: Sheet) -> "Figure":
    """The metrics of a sheet over iterations."""
    return _one_recipe(found[0], sheet) if len(found) == 1 else _many_recipes(found, sheet)


def _one_recipe(recipe: Recipe, sheet: Sheet) -> "Figure":
    """All metrics of a scale in one panel, the panels below each other."""
    curves = {metric: curve for metric in sheet.labels if (curve := recipe.over_iterations(metric))}
    scales = list(dict.fromkeys(sheet.scales[metric] for metric in curves))
    heights = [3.0, *[2.0] * (len(scales) - 1)] if len(scales) > 1 else [3.4]
    drawn, grid = style.panels(len(scales), 1, 6.8, heights, sharex=True)
    for metric, curve in curves.items():
        panel = grid[scales.index(sheet.scales[metric])]
        style.draw(panel, curve, list(sheet.labels).index(metric), sheet.labels[metric])
        panel.set_ylabel(sheet.scales[metric])
    style.label_iterations(grid, 1)
    style.legend(drawn, grid, [curve.band for curve in curves.values()], recipe.title())
    return drawn


def _many_recipes(found: list[Recipe], sheet: Sheet) -> "Figure":
    """A panel for each metric that any recipe has, and in each panel the same line for the same recipe."""
    curves = {metric: [recipe.over_iterations(metric) for recipe in found] for metric in sheet.labels}
    metrics = [metric for metric in sheet.labels if any(curves[metric])]
    columns = 2 if len(metrics) == 4 else min(len(metrics), 3)
    heights = [2.9] * -(-len(metrics) // columns)
    drawn, grid = style.panels(len(metrics), columns, 1.4 + 3.4 * columns, heights, sharex=True)
    for panel, metric in zip(grid, metrics, strict=True):
        for place, (curve, recipe) in enumerate(zip(curves[metric], found, strict=True)):
            if curve:
                style.draw(panel, curve, place, recipe.title())
        panel.set_title(sheet.labels[metric], fontweight="bold")
        panel.set_ylabel(sheet.scales[metric])
    style.label_iterations(grid, columns)
    style.legend(drawn, grid, [curve.band for metric in metrics for curve in curves[metric] if curve])
    return drawn


REWARD = Plot(
    name="reward",
    title="Reward",
    shows="The mean of K on training prompts should follow the best of K, which is learned from; the gold reward, "
    "which selection never sees, tells whether that is progress.",
    missing="it has no reward yet; leave it out, or wait for its first iteration (raft status shows how far it is)",
    measure=measure_rewards,
    draw=partial(figure, sheet=REWARDS),
)
LENGTH = Plot(
    name="length",
    title="Length and diversity",
    shows="A reward that likes long or short responses shows here first, and so does a policy that repeats itself.",
    missing="its metrics.jsonl has no length yet; "
    "leave it out, or wait for its first iteration (raft status shows how far it is)",
    measure=measure_lengths,
    draw=partial(figure, sheet=LENGTHS),
)
