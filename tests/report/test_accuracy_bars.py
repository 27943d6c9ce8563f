"""The bars of accuracies: what is drawn is read back from the figure."""

from pathlib import Path

import numpy as np
import pytest

from raft.core.errors import UserError
from raft.metrics.reward_accuracy import SECTIONS, figures
from raft.report.figures.accuracy_bars import accuracy_bars, accuracy_figure


def found(right: int, wrong: int, subset: str | None = None) -> dict:
    margins = np.array([1.0] * right + [-1.0] * wrong)
    count = right + wrong
    return figures(margins, np.zeros(count), np.ones((count, 2)), [subset] * count)


def bars(panel) -> dict[str, list[tuple[float, float]]]:
    """The middle and the height of every bar, by its reward."""
    return {
        group.get_label(): [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in group.patches]
        for group in panel.containers
        if hasattr(group, "patches") and group.patches
    }


RESULTS = {"hh": {"large": found(3, 1), "small": found(1, 1)}, "arena": {"large": found(9, 1), "small": found(0, 5)}}


def test_each_set_has_a_bar_for_each_reward_as_high_as_its_accuracy():
    (panel,) = accuracy_figure(RESULTS).axes
    drawn = bars(panel)
    assert {name: [height for _, height in one] for name, one in drawn.items()} == {
        "large": pytest.approx([75, 90]), "small": pytest.approx([50, 0]),
    }  # fmt: skip
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["hh", "arena"]
    assert [round(spot) for one in drawn.values() for spot, _ in one] == [0, 1, 0, 1]
    assert drawn["large"][0][0] < drawn["small"][0][0]
    assert [text.get_text() for text in panel.texts] == ["75", "90", "50", "0"]


def test_the_thin_lines_reach_over_the_interval_and_chance_is_a_line():
    figure = accuracy_figure(RESULTS)
    (panel,) = figure.axes
    segments = panel.collections[0].get_segments()
    for segment, one in zip(segments, (RESULTS["hh"]["large"], RESULTS["arena"]["large"]), strict=True):
        assert segment[:, 1] == pytest.approx([100 * one["low"], 100 * one["high"]])
    assert [line.get_ydata()[0] for line in panel.get_lines() if line.get_label().startswith("chance")] == [50]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["large", "small", "95 % interval", "chance (50 %)"]


def test_a_rewardbench_has_a_group_for_each_section_but_those_that_lack_a_subset():
    names = [name for weights in SECTIONS.values() for name in weights]
    margins, both = np.tile([1.0, -1.0], len(names)), np.repeat(names, 2).tolist()
    whole = figures(margins, np.zeros(len(both)), np.ones((len(both), 2)), both)
    part = found(3, 1, "donotanswer")
    for rewards, shown in (
        ({"large": whole, "small": part}, ["bench", *SECTIONS, "mean of sections"]),
        ({"small": part}, ["bench"]),
    ):
        (panel,) = accuracy_figure({"bench": rewards}).axes
        assert [tick.get_text().split("\n")[-1] for tick in panel.get_xticklabels()] == shown
        assert [len(one) for one in bars(panel).values()] == [len(shown), 1][-len(rewards) :]


def test_a_reward_without_scored_pairs_has_no_bar():
    none = figures(np.full(2, np.nan), np.zeros(2), np.ones((2, 2)))
    (panel,) = accuracy_figure({"hh": {"broken": none, "large": found(1, 1)}}).axes
    assert [len(one) for one in bars(panel).values()] == [1]


@pytest.mark.parametrize(("ending", "first"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_same_figures_give_the_same_bytes(tmp_path: Path, ending: str, first: bytes):
    for name in ("a", "b"):
        accuracy_bars(RESULTS, tmp_path / f"{name}.{ending}")
    written = (tmp_path / f"a.{ending}").read_bytes()
    assert written.startswith(first) and written == (tmp_path / f"b.{ending}").read_bytes()


def test_an_unknown_ending_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="allowed: png, svg, pdf"):
        accuracy_bars(RESULTS, tmp_path / "a.gif")
