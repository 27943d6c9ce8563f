"""The accuracy of several rewards as bars, from the figures of `raft.metrics.reward_accuracy` alone."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.metrics.reward_accuracy import Figures, rows
from raft.report.figures.style import HANDLE_INCHES, LETTER_INCHES, LINE_INCHES, save, titled
from raft.report.palette import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Accuracy of rewards"
INTERVAL, CHANCE = "95 % interval", "chance (50 %)"
BARS = (*SERIES[:-1], "#999999")  # on black the interval would not be seen
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "oo")  # for print in black and white
BAR_INCHES, GROUP_INCHES = 0.3, 0.35  # a bar, and the room between two groups
LETTERS = 16  # of a label on one line
MOST_NUMBERS = 32  # bars with their value above them; more would not be read


def accuracy_bars(results: Mapping[str, Mapping[str, Figures]], path: Path) -> None:
    """Draws figures by set and by reward, in a group of bars for each set and each section of RewardBench, into a png,
    svg or pdf file. Where there is no accuracy there is no bar, and without bars no group."""
    save(lambda: titled(accuracy_figure(results), TITLE), path)


def accuracy_figure(results: Mapping[str, Mapping[str, Figures]]) -> "Figure":
    """The bars, without the title that they have as a file."""
    from matplotlib.figure import Figure

    rewards = list(dict.fromkeys(reward for one in results.values() for reward in one))
    groups = {name: one for name, one in rows(results).items() if any(map(_is_known, one.values()))}
    width = 1.1 + len(groups) * (GROUP_INCHES + BAR_INCHES * max(len(rewards), 3))
    figure = Figure(figsize=(max(width, 4.0), 3.9), layout="constrained")
    panel = figure.subplots()
    for place, reward in enumerate(rewards):
        _bars(panel, place, len(rewards), reward, [one.get(reward) for one in groups.values()])
    panel.axhline(50, color="#333333", linewidth=1.2, linestyle=(0, (4, 3)), label=CHANCE)
    panel.set_xticks(range(len(groups)), [_label(name) for name in groups])
    panel.tick_params(axis="x", length=0)
    panel.grid(visible=False, axis="x")
    panel.set_xlim(-0.6, len(groups) - 0.4)
    panel.set_ylim(0, 107)
    panel.set_yticks(range(0, 101, 25))
    panel.set_ylabel("accuracy (% of pairs)")
    _legend(figure, panel)
    return figure


def _bars(panel: "Axes", place: int, count: int, reward: str, found: list[Figures | None]) -> None:
    """The bars of one reward, one in each group that it has a figure for."""
    from matplotlib.patheffects import withStroke

    thickness = 0.82 / max(count, 3)
    known: list[Any] = [(at, one) for at, one in enumerate(found) if _is_known(one)]
    spots = [at + (place - (count - 1) / 2) * thickness for at, _ in known]
    heights = [100 * one["accuracy"] for _, one in known]
    reach = [[100 * abs(one[end] - one["accuracy"]) for _, one in known] for end in ("low", "high")]
    drawn = panel.bar(
        spots,
        heights,
        0.94 * thickness,
        color=BARS[place % len(BARS)],
        hatch=HATCHES[place % len(HATCHES)],
        edgecolor="white",
        linewidth=0,
        label=reward,
    )
    for bar in drawn:
        bar.set_hatch_linewidth(0.5)
    interval = "_" if place else INTERVAL  # named once
    panel.errorbar(spots, heights, reach, fmt="none", ecolor="#222222", elinewidth=1.0, capsize=2.0, label=interval)
    if count * len(found) <= MOST_NUMBERS:
        for spot, height, above in zip(spots, heights, reach[1], strict=True):
            where: Any = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center"}
            number = panel.annotate(f"{height:.0f}", (spot, height + above), fontsize=8, **where)
            number.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _is_known(found: Figures | None) -> bool:
    return found is not None and found.get("accuracy") is not None


def _label(name: str) -> str:
    """The name of a group over several lines; a section of a set goes below the name of the set."""
    return "\n".join(line for part in name.split(": ") for line in textwrap.wrap(part, LETTERS) or [""])


def _legend(figure: "Figure", panel: "Axes") -> None:
    """Above the panel, in as many columns as fit."""
    handles, labels = panel.get_legend_handles_labels()
    last = [INTERVAL, CHANCE]
    order = sorted(range(len(labels)), key=lambda at: last.index(labels[at]) if labels[at] in last else -1)
    columns = max(int(figure.get_figwidth() / (HANDLE_INCHES + LETTER_INCHES * max(map(len, labels)))), 1)
    figure.set_figheight(figure.get_figheight() + LINE_INCHES * -(-len(labels) // columns))
    figure.legend(
        [handles[at] for at in order],
        [labels[at] for at in order],
        loc="outside upper left",
        ncols=min(columns, len(labels)),
        handlelength=1.8,
        alignment="left",
    )
