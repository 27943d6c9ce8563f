"""The figures `reward` and `length`: metrics by policy as lines.

One recipe has a panel for each scale: of rewards, that is the classic RAFT figure, with the training reward, the
best of K and the held-out reward in one panel and the gold reward below. Several recipes are overlaid, one panel for
each metric.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.metrics.reward_metrics import NORMAL_95
from raft.report import palette
from raft.report.figures import reading, style
from raft.report.figures.table import Measured, Number, Plot, Recipe
from raft.report.palette import Colour
from raft.store.runs import metrics_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]  # of one metrics.jsonl
LAYOUTS = {1: (1, 6.8, [3.4]), 2: (1, 6.8, [3.0, 2.0])}  # columns, width, and heights of so many panels; of more, pairs


@dataclass(frozen=True)
class Line:
    """How a metric is drawn: its name in the legend, the scale that it shares with others, and its colour."""

    label: str
    scale: str
    colour: Colour


Sheet = Mapping[str, Line]  # which metrics a figure shows
REWARDS: Sheet = {
    "reward/best_of_k": Line("training prompts, best of K", "reward", palette.SELECTED),
    "reward/mean": Line("training prompts, mean of K", "reward", palette.TRAINING),
    "reward/eval": Line("held-out prompts, mean", "reward", palette.HELD_OUT),
    "gold/eval": Line("held-out prompts, gold reward", "gold reward", palette.GOLD),
}
LENGTHS: Sheet = {
    "response/tokens": Line("training prompts, length", "mean length (tokens)", palette.TRAINING),
    "eval/tokens": Line("held-out prompts, length", "mean length (tokens)", palette.HELD_OUT),
    "diversity/distinct_1": Line("held-out, distinct-1", "distinct words (share of all)", palette.HELD_OUT),
    "diversity/distinct_2": Line("held-out, distinct-2", "distinct bigrams (share of all)", palette.HELD_OUT),
    "diversity/msttr_100": Line("held-out, MSTTR-100", "distinct words (share of 100)", palette.HELD_OUT),
}


def measure_rewards(folder: Path) -> Measured:
    """The rewards that stand in metrics.jsonl, with bands from the scores of each prompt."""
    return Measured(folder.name, reading.rewards(folder), reading.k_of(folder))


def measure_lengths(folder: Path) -> Measured:
    """Length and diversity, as far as metrics.jsonl has them."""
    return Measured(folder.name, numbers(metrics_rows(folder), LENGTHS))


def numbers(rows: Rows, metrics: Iterable[str]) -> list[Number]:
    """The metrics that rows have, each with its 95 % interval where they have its standard error, too."""
    return [_number(row, metric) for metric in metrics for row in rows if row.get(metric) is not None]


def _number(row: dict[str, Any], metric: str) -> Number:
    value, error = row[metric], row.get(f"{metric}_se")
    low, high = (None, None) if error is None else (value - NORMAL_95 * error, value + NORMAL_95 * error)
    return Number(row["iteration"], metric, value, low, high, row.get(f"{metric}_n"), row.get(f"{metric}_failed"))


def figure(found: list[Recipe], sheet: Sheet) -> "Figure":
    """The metrics of a sheet by policy."""
    return _one_recipe(found[0], sheet) if len(found) == 1 else _many_recipes(found, sheet)


def _one_recipe(recipe: Recipe, sheet: Sheet) -> "Figure":
    """All metrics of a scale in one panel; two panels are below each other."""
    curves = {metric: curve for metric in sheet if (curve := recipe.over_policies(metric))}
    scales = list(dict.fromkeys(sheet[metric].scale for metric in curves))
    columns, width, heights = LAYOUTS.get(len(scales), (2, 9.4, [2.6] * -(-len(scales) // 2)))
    drawn, grid = style.panels(len(scales), columns, width, heights, sharex=True)
    for metric, curve in curves.items():
        line = sheet[metric]
        panel = grid[scales.index(line.scale)]
        style.draw(panel, curve, list(sheet).index(metric), line.label, line.colour.light)
        panel.set_ylabel(line.scale)
    style.label_numbers(grid, columns)
    style.legend(drawn, grid, [curve.band for curve in curves.values()], recipe.title())
    return drawn


def _many_recipes(found: list[Recipe], sheet: Sheet) -> "Figure":
    """A panel for each metric that any recipe has, and in each panel the same line for the same recipe."""
    curves = {metric: [recipe.over_policies(metric) for recipe in found] for metric in sheet}
    metrics = [metric for metric in sheet if any(curves[metric])]
    columns = 2 if len(metrics) == 4 else min(len(metrics), 3)
    heights = [2.9] * -(-len(metrics) // columns)
    drawn, grid = style.panels(len(metrics), columns, 1.4 + 3.4 * columns, heights, sharex=True)
    for panel, metric in zip(grid, metrics, strict=True):
        for place, (curve, recipe) in enumerate(zip(curves[metric], found, strict=True)):
            if curve:
                style.draw(panel, curve, place, recipe.title())
        panel.set_title(sheet[metric].label, fontweight="bold")
        panel.set_ylabel(sheet[metric].scale)
    style.label_numbers(grid, columns)
    style.legend(drawn, grid, [curve.band for metric in metrics for curve in curves[metric] if curve])
    return drawn


REWARD = Plot(
    name="reward",
    title="Reward by policy",
    shows="The mean of K on training prompts should follow the best of K, which is learned from; the gold reward, "
    "which selection never sees, tells whether that is progress.",
    missing="it has no reward yet; wait for its first iteration (raft status shows how far it is)",
    measure=measure_rewards,
    draw=partial(figure, sheet=REWARDS),
)
LENGTH = Plot(
    name="length",
    title="Length and diversity of responses by policy",
    shows="A reward that likes long or short responses shows here first, and so does a policy that repeats itself.",
    missing="its metrics.jsonl has no length yet; wait for its first iteration (raft status shows how far it is)",
    measure=measure_lengths,
    draw=partial(figure, sheet=LENGTHS),
)
