"""How every picture looks, and how it is written: for print and for the colour-blind."""

import io
import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.core.atomic import write_bytes
from raft.core.errors import UserError
from raft.report.figures.table import OF_PROMPTS, OF_SEEDS, Curve
from raft.report.palette import FIRST_POLICY, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
# Beside the colours, for print in black and white
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
    "svg.hashsalt": "raft",  # the same numbers give the same bytes
    "pdf.fonttype": 42,
}
HANDLE_INCHES, LETTER_INCHES, LINE_INCHES = 0.85, 0.082, 0.24  # of a legend in this font
MOST_MARKERS = 20  # on one line; more hide it
HEADING: Any = {"weight": "bold", "size": 11}
PARTIAL = "open: some rewards are missing"
OPEN: Any = {"markerfacecolor": "white", "markeredgecolor": "#000000", "markeredgewidth": 1.2}
UNNAMED = "_child"  # how matplotlib labels what has no label
POLICY = "policy"


def writable(out: Path) -> str:
    """The format that the ending of a file names. UserError for any other ending, or a folder that does not exist."""
    ending = out.suffix.lstrip(".").lower()
    if ending not in FORMATS:
        raise UserError(f"{out}: cannot draw {ending or 'a file without an ending'}; allowed: {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it first")
    return ending


def save(draw: Callable[[], "Figure"], out: Path) -> None:
    """Writes the figure that `draw` makes with STYLE in force into a file; the same figure gives the same bytes."""
    from matplotlib import rc_context

    ending = writable(out)
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[ending]
    with rc_context(STYLE):
        content = io.BytesIO()
        draw().savefig(content, format=ending, dpi=200, metadata=undated)
    write_bytes(out, content.getvalue())


def noted(figure: "Figure", note: str) -> "Figure":
    """The figure with a note below it, if there is one to make."""
    if note:
        figure.supxlabel(note, fontsize="medium", fontweight="bold")
    return figure


def panels(
    count: int, columns: int, width: float, heights: list[float], **shared: Any
) -> tuple["Figure", list["Axes"]]:
    """A figure and its panels row by row; `width` of all columns and `heights` of the rows are in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, sum(heights) + 0.4), layout="constrained")
    grid = list(figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights, **shared).flat)
    for spare in grid[count:]:
        spare.remove()
    return figure, grid[:count]


def label_numbers(grid: list["Axes"], columns: int, what: str = POLICY) -> None:
    """Whole numbers along the x axis, and `what` they number below the lowest panel of each column."""
    from matplotlib.ticker import MaxNLocator

    for at, panel in enumerate(grid):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        if at + columns >= len(grid):
            panel.set_xlabel(what)
            panel.tick_params(labelbottom=True)


def look(place: int) -> tuple[str, str, Any]:
    """The colour, marker and dashes of one of several things side by side."""
    return SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)]


def gradient(count: int) -> list[Any]:
    """Colours of policies in their order, the first one's own and then from dark to light, also in black and white."""
    from matplotlib import colormaps

    steps = max(count - 2, 1)
    return [FIRST_POLICY.light, *(colormaps["viridis"](0.2 + 0.62 * at / steps) for at in range(count - 1))][:count]


def thinned(numbers: list[int], most: int) -> list[int]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(numbers) <= most:
        return numbers
    return [numbers[round(at * (len(numbers) - 1) / (most - 1))] for at in range(most)]


def draw(panel: "Axes", curve: Curve, place: int, label: str, colour: Any = None) -> None:
    """One line in the marker and dashes of its place, and in its colour unless another is given."""
    own, marker, dashes = look(place)
    colour = own if colour is None else colour
    every = math.ceil(len(curve.x) / MOST_MARKERS)
    panel.plot(curve.x, curve.line, color=colour, marker=marker, markevery=every, linestyle=dashes, label=label)
    if curve.partial.any():
        x, line = curve.x[curve.partial], curve.line[curve.partial]
        panel.plot(x, line, color=colour, marker=marker, linestyle="none", label=PARTIAL, **OPEN)
    if curve.band and len(curve.x) > 1:
        panel.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    elif curve.band:
        panel.vlines(curve.x, curve.low, curve.high, color=colour, alpha=0.3, linewidth=5, zorder=1)


def legend(
    figure: "Figure",
    grid: Iterable["Axes"],
    bands: Collection[str | None] = (),
    title: str | None = None,
    more: dict[str, Any] | None = None,
    shape: str = "band",
) -> None:
    """Above the panels, in as many columns as fit: every line of `grid` once, what else is given, what the bands mean.

    `shape` says what stands for an interval, where that is no band.
    """
    from matplotlib.patches import Patch

    entries = _named(grid) | (more or {})
    meant = [one for one in (OF_SEEDS, OF_PROMPTS) if one in bands]
    if meant:
        entries[f"{shape}: {'; of a single run '.join(meant)}"] = Patch(color="#888888", alpha=0.3, linewidth=0)
    columns = _columns(list(map(len, entries)), figure.get_figwidth())
    rows = math.ceil(len(entries) / columns) + (title is not None)
    figure.set_figheight(figure.get_figheight() + LINE_INCHES * rows)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper left",
        ncols=columns,
        title=title,
        alignment="left",
        title_fontproperties=HEADING,
    )


def panel_legend(panel: "Axes", title: str, width: float) -> None:
    """Above one panel of so many inches, where the lines of each panel are their own: its title and its lines."""
    entries = _named([panel])
    panel.legend(
        entries.values(),
        entries.keys(),
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.3,
        ncols=_columns(list(map(len, entries)), width),
        title=title,
        alignment="left",
        title_fontproperties={**HEADING, "size": 10},
    )


def titled(figure: "Figure", title: str) -> "Figure":
    """The figure with a title above what heads its legend: outside of the page, nothing else says what it shows."""
    (legend,) = figure.legends
    own = legend.get_title().get_text()
    legend.set_title(f"{title}\n{own}" if own else title, HEADING)
    figure.set_figheight(figure.get_figheight() + LINE_INCHES)
    return figure


def _named(grid: Iterable["Axes"]) -> dict[str, Any]:
    """The lines of panels by their labels, each label once."""
    lines = {str(line.get_label()): line for panel in grid for line in panel.get_lines()}
    return {label: line for label, line in lines.items() if not label.startswith(UNNAMED)}


def _columns(letters: list[int], width: float) -> int:
    """The most columns in which labels of so many letters, column after column, are not wider than so many inches."""
    for columns in range(len(letters), 1, -1):
        rows = math.ceil(len(letters) / columns)
        longest = [max(letters[start : start + rows]) for start in range(0, len(letters), rows)]
        if sum(HANDLE_INCHES + LETTER_INCHES * count for count in longest) <= width:
            return len(longest)
    return 1
