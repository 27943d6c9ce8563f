"""How the rewards of the training responses are distributed: all K beside the winners, one pair for each policy.

A violin is a histogram of 256 bins, smoothed by a normal kernel of the width that Silverman's rule of thumb gives, and
cut at the smallest and the largest reward. Violins of a panel all have the same greatest width.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raft.metrics import reward_metrics
from raft.report.figures import reading, style
from raft.report.figures.table import Measured, Number, Plot, Recipe
from raft.report.palette import SELECTED, TRAINING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SETS = {"all": "all K responses", "winners": "winners: what was selected"}
LOOKS: dict[str, Any] = {
    "all": {"facecolor": TRAINING.tint.light, "edgecolor": TRAINING.light, "hatch": ""},
    "winners": {"facecolor": SELECTED.tint.light, "edgecolor": SELECTED.light, "hatch": "////"},
}
HALF, BINS = 0.44, 256
MOST_VIOLINS = 12  # in one panel


def measure(folder: Path) -> Measured:
    """The rewards of both sets of each policy, their mean and quantiles.

    Where pairs were selected, the winners are the best of each prompt.
    """
    training, selected = reading.training(folder), reading.winners(folder)
    rewards: dict[tuple[int, str], np.ndarray] = {}
    for policy, table in training.items():
        rewards[policy, "all"] = _known(table.ravel())
        rewards[policy, "winners"] = _known(selected.get(policy, reward_metrics.prompt_best(table)))
    there = {key: values for key, values in rewards.items() if len(values)}
    numbers = [number for (policy, name), values in there.items() for number in _numbers(policy, name, values)]
    return Measured(folder.name, numbers, reading.k_of(folder), there)


def _known(rewards: np.ndarray) -> np.ndarray:
    return rewards[~np.isnan(rewards)]


def _numbers(policy: int, name: str, rewards: np.ndarray) -> list[Number]:
    quantiles = zip(QUANTILES, np.quantile(rewards, QUANTILES), strict=True)
    return [
        Number(policy, f"{name}/mean", float(rewards.mean())),
        *(Number(policy, f"{name}/quantile_{share:g}", float(value)) for share, value in quantiles),
    ]


def draw(found: list[Recipe]) -> "Figure":
    """A panel for each recipe, on one scale of reward; the responses of several seeds are one set."""
    figure, grid = style.panels(len(found), 1, 6.8, [3.4] * len(found), sharex=True, sharey=True)
    for panel, recipe in zip(grid, found, strict=True):
        _panel(panel, recipe)
        if len(found) > 1:
            panel.set_title(recipe.title("all of"), fontweight="bold")
    style.label_numbers(grid, 1)
    title = found[0].title("all of") if len(found) == 1 else None
    style.legend(figure, grid, title=title, more=_entries())
    return figure


def _panel(panel: "Axes", recipe: Recipe) -> None:
    policies = style.thinned(recipe.policies, MOST_VIOLINS)
    half = HALF * min(np.diff(policies), default=1)
    shapes = {
        (at, name): _shape(np.concatenate([run.rewards[at, name] for run in recipe.runs if (at, name) in run.rewards]))
        for at in policies
        for name in SETS
    }
    for (at, name), shape in shapes.items():
        _half_violin(panel, at, -half if name == "all" else half, shape, LOOKS[name])
    panel.grid(visible=False, axis="x")
    panel.set_xlim(policies[0] - 1.25 * half, policies[-1] + 1.25 * half)
    panel.set_ylabel("reward, training prompts")


def _shape(rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a violin is how wide, [BINS] each, 1 at its widest, and its three quartiles."""
    quartiles = np.quantile(rewards, (0.25, 0.5, 0.75))
    low, high = rewards.min(), rewards.max()
    if low == high:
        return np.array([low, high]), np.ones(2), quartiles
    counts, edges = np.histogram(rewards, BINS, (low, high))
    spread = min(rewards.std(), (quartiles[2] - quartiles[0]) / 1.34 or np.inf)
    width = max(0.9 * spread * len(rewards) ** -0.2 * BINS / (high - low), 1.0)  # in bins
    reach = np.arange(-int(4 * width), int(4 * width) + 1)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    density = np.convolve(counts, kernel)[int(4 * width) :][:BINS]
    return (edges[1:] + edges[:-1]) / 2, density / density.max(), quartiles


def _half_violin(
    panel: "Axes", at: int, half: float, shape: tuple[np.ndarray, np.ndarray, np.ndarray], look: dict[str, Any]
) -> None:
    """To the left of its policy where `half` is negative; lines at the quartiles, the median thick."""
    places, widths, quartiles = shape
    panel.fill_betweenx(places, at, at + half * widths, linewidth=0.9, **look)
    for quartile, thickness in zip(quartiles, (0.9, 2.2, 0.9), strict=True):
        end = at + half * np.interp(quartile, places, widths)
        panel.hlines(quartile, min(at, end), max(at, end), color="#222222", linewidth=thickness)


def _entries() -> dict[str, Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return {
        **{label: Patch(linewidth=0.9, **LOOKS[name]) for name, label in SETS.items()},
        "median, and quartiles (thin)": Line2D([], [], color="#222222", linewidth=2.2),
    }


PLOT = Plot(
    name="distribution",
    title="Training rewards: all responses and winners",
    shows="The rewards of all responses to training prompts, and of those that were selected: when the left shape has "
    "become that of earlier winners, what they had to teach was learned.",
    missing=reading.NO_TRAINING_REWARDS,
    measure=measure,
    draw=draw,
)
