"""Reward over iterations as a picture, from the rows of metrics.jsonl alone; so it works while a run is live.

One recipe gives the classic RAFT figure: training reward, best of K and held-out reward in one panel, the gold reward
below. Several recipes are overlaid, one panel for each of these figures. Runs that differ only in their
seed are one recipe: its line is their mean, its band reaches from the smallest to the largest.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raft.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]  # of one metrics.jsonl

FORMATS = ("png", "svg", "pdf")
CURVES = {
    "reward/best_of_k": "training prompts, best of K",
    "reward/mean": "training prompts, mean of K",
    "reward/eval": "held-out prompts, mean",
    "gold/eval": "held-out prompts, gold reward",
}
SCALES = {"reward": "reward (own units)", "gold": "gold reward (own units)"}
# Okabe and Ito's colours without the yellow that paper swallows; with markers and dashes for print in black and white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 3)))
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "lines.markeredgecolor": "white",
    "lines.markeredgewidth": 0.7,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "text.parse_math": False,  # a name may hold a $
    "svg.hashsalt": "raft",  # the same rows give the same bytes
    "pdf.fonttype": 42,
}
NORMAL_95 = 1.96
HANDLE_INCHES, LETTER_INCHES, LINE_INCHES = 0.85, 0.082, 0.24  # of a legend in this font
MOST_MARKERS = 20  # on one line; more hide it


@dataclass(frozen=True)
class Curve:
    """A line with a band around it, and what the band means; low and high are [T] like the line."""

    iterations: list[int]
    line: np.ndarray
    low: np.ndarray
    high: np.ndarray
    band: str | None


def reward_curves(runs: Sequence[tuple[str, Rows]], out: Path) -> None:
    """Draws runs, each a name and the rows of its metrics.jsonl, into a png, svg or pdf file by the ending of `out`."""
    save(lambda: reward_figure(runs), out)


def save(draw: Callable[[], "Figure"], out: Path) -> None:
    """Writes the figure that `draw` makes with STYLE in force into a file; the same figure gives the same bytes."""
    from matplotlib import rc_context

    ending = out.suffix.lstrip(".").lower()
    if ending not in FORMATS:
        raise UserError(f"{out}: cannot draw {ending or 'a file without an ending'}; allowed: {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it first")
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[ending]
    with rc_context(STYLE):
        draw().savefig(out, format=ending, dpi=200, metadata=undated)


def reward_figure(runs: Sequence[tuple[str, Rows]]) -> "Figure":
    """The figure that `reward_curves` saves with STYLE in force. UserError if a run has no reward yet."""
    recipes = _recipes(runs)
    if not recipes:
        raise UserError("nothing to draw; name at least one run")
    _refuse_blanks(runs, recipes)
    return _one_recipe(*recipes[0]) if len(recipes) == 1 else _many_recipes(recipes)


def _refuse_blanks(runs: Sequence[tuple[str, Rows]], recipes: list[tuple[str, list[Rows]]]) -> None:
    for name, rows in runs:
        if not any(row.get(key) is not None for row in rows for key in CURVES):
            raise UserError(
                f"{name}: nothing to draw, its metrics.jsonl has no reward yet; "
                "leave it out, or wait for its first iteration (raft status shows how far it is)"
            )
    for name, seeds in recipes:
        if not any(_curve(seeds, key) for key in CURVES):
            raise UserError(f"{name}: nothing to draw, its seeds have no iteration in common; name one of them alone")


def _recipes(runs: Sequence[tuple[str, Rows]]) -> list[tuple[str, list[Rows]]]:
    """The runs of each recipe: those whose names differ by a last -seed<digits> or -s<digits>, or not at all."""
    found: dict[str, list[tuple[str, Rows]]] = {}
    for name, rows in runs:
        found.setdefault(re.sub(r"-s(eed)?\d+$", "", name), []).append((name, rows))
    return [
        (f"{recipe} (mean of {len(seeds)} seeds)" if len(seeds) > 1 else seeds[0][0], [rows for _, rows in seeds])
        for recipe, seeds in found.items()
    ]


def _curve(seeds: list[Rows], key: str) -> Curve | None:
    """What runs say of one figure, at the iterations for which all that know the figure have it."""
    tables = [{row["iteration"]: row for row in rows if row.get(key) is not None} for rows in seeds]
    tables = [table for table in tables if table]
    shared = sorted(set(tables[0]).intersection(*tables)) if tables else []
    if not shared:
        return None
    values = np.array([[table[iteration][key] for iteration in shared] for table in tables])
    line = values.mean(axis=0)
    if len(tables) > 1:
        return Curve(shared, line, values.min(axis=0), values.max(axis=0), "band: min to max of the seeds")
    errors = [tables[0][iteration].get(f"{key}_se") for iteration in shared]
    reach = NORMAL_95 * np.array([np.nan if error is None else error for error in errors], dtype=float)
    band = None if np.isnan(reach).all() else "band: 95 % interval"
    return Curve(shared, line, line - reach, line + reach, band)


def _one_recipe(title: str, seeds: list[Rows]) -> "Figure":
    """All rewards in one panel, and the gold reward, whose scale is another, in a panel below."""
    curves = {key: curve for key in CURVES if (curve := _curve(seeds, key))}
    scales = {scale: [key for key in curves if key.startswith(scale)] for scale in ("reward", "gold")}
    scales = {scale: keys for scale, keys in scales.items() if keys}
    heights = [3.0, 2.0] if len(scales) > 1 else [3.4]
    figure, panels = _panels((len(scales), 1), width=6.8, heights=heights)
    for panel, (scale, keys) in zip(panels, scales.items(), strict=True):
        for key in keys:
            _draw(panel, curves[key], list(CURVES).index(key), CURVES[key])
        panel.set_ylabel(SCALES[scale])
    _legend(figure, panels, curves.values(), title)
    return figure


def _many_recipes(recipes: list[tuple[str, list[Rows]]]) -> "Figure":
    """A panel for each figure that any recipe has, and in each panel the same line for the same recipe."""
    curves = {key: [_curve(seeds, key) for _, seeds in recipes] for key in CURVES}
    keys = [key for key in CURVES if any(curves[key])]
    columns = 2 if len(keys) == 4 else len(keys)
    rows = len(keys) // columns
    figure, panels = _panels((rows, columns), width=1.4 + 3.4 * columns, heights=[2.9] * rows)
    for panel, key in zip(panels, keys, strict=True):
        for place, (curve, (name, _)) in enumerate(zip(curves[key], recipes, strict=True)):
            if curve:
                _draw(panel, curve, place, name)
        panel.set_title(CURVES[key], fontweight="bold")
        panel.set_ylabel(SCALES[key.split("/")[0]])
    _legend(figure, panels, [curve for key in keys for curve in curves[key] if curve])
    return figure


def _panels(shape: tuple[int, int], width: float, heights: list[float]) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width, sum(heights) + 0.4), layout="constrained")
    grid = figure.subplots(*shape, sharex=True, squeeze=False, height_ratios=heights)
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    for lowest in grid[-1]:
        lowest.set_xlabel("iteration (fine-tunings done)")
    return figure, list(grid.flat)


def _draw(panel: "Axes", curve: Curve, place: int, label: str) -> None:
    """One line in the colour, marker and dashes of its place."""
    colour, marker, dashes = (choices[place % len(choices)] for choices in (COLOURS, MARKERS, DASHES))
    every = math.ceil(len(curve.iterations) / MOST_MARKERS)
    panel.plot(
        curve.iterations, curve.line, color=colour, marker=marker, markevery=every, linestyle=dashes, label=label
    )
    if curve.band and len(curve.iterations) > 1:
        panel.fill_between(curve.iterations, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    elif curve.band:
        panel.vlines(curve.iterations, curve.low, curve.high, color=colour, alpha=0.3, linewidth=5, zorder=1)


def _legend(figure: "Figure", panels: Iterable["Axes"], curves: Iterable[Curve], title: str | None = None) -> None:
    """Above the panels, in as many columns as fit: every line once, then what the bands mean."""
    from matplotlib.patches import Patch

    entries: dict[str, Any] = {str(line.get_label()): line for panel in panels for line in panel.get_lines()}
    entries |= {curve.band: Patch(color="#888888", alpha=0.3, linewidth=0) for curve in curves if curve.band}
    entry_width = HANDLE_INCHES + LETTER_INCHES * max(map(len, entries))
    columns = min(max(int(figure.get_figwidth() / entry_width), 1), len(entries))
    lines = math.ceil(len(entries) / columns) + (title is not None)
    figure.set_figheight(figure.get_figheight() + LINE_INCHES * lines)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper left",
        ncols=columns,
        title=title,
        alignment="left",
        title_fontproperties={"weight": "bold", "size": 11},
    )
