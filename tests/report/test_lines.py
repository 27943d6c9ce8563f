"""The pictures: what is drawn is read back from the figure, and each kind of file from its first bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from raft.core.errors import UserError
from raft.report.figures import style
from raft.report.figures.lines import REWARD, REWARDS, figure, numbers
from raft.report.figures.table import Measured, recipes


def reward_curves(runs, out):
    """The figure of runs, each a name and its rows, as a file."""
    found = recipes([Measured(name, numbers(rows, REWARDS)) for name, rows in runs], REWARD.missing)
    style.save(lambda: figure(found, REWARDS), out)


def rows(shift: float = 0.0, iterations: int = 3, **more: float) -> list[dict]:
    """A run: its last row has only the evaluation, as in metrics.jsonl."""
    made: list[dict] = []
    for iteration in range(iterations + 1):
        row = {"iteration": iteration, "reward/eval": iteration + shift, **more}
        if iteration < iterations:
            row |= {"reward/mean": iteration + 0.1 + shift, "reward/best_of_k": iteration + 2.0 + shift}
        made.append(row)
    return made


def reward_figure(runs: Sequence[tuple[str, list[dict]]]) -> Any:
    """The figure that reward_curves saves."""
    return figure(recipes([Measured(name, numbers(of_run, REWARDS)) for name, of_run in runs], REWARD.missing), REWARDS)


def lines(panel) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(map(tuple, line.get_xydata().tolist())) for line in panel.get_lines()}


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def band(panel) -> np.ndarray:
    """The lowest and highest point of the first band at each iteration, [T, 2]."""
    points = panel.collections[0].get_paths()[0].vertices
    return np.array([[points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max()] for x in (0, 1, 2)])


def test_one_run_is_the_classic_figure():
    figure = reward_figure([("raft", rows())])
    (panel,) = figure.axes
    assert lines(panel) == {
        "training prompts, best of K": [(0, 2.0), (1, 3.0), (2, 4.0)],
        "training prompts, mean of K": [(0, 0.1), (1, 1.1), (2, 2.1)],
        "held-out prompts, mean": [(0, 0), (1, 1), (2, 2), (3, 3)],
    }
    assert figure.legends[0].get_title().get_text() == "raft"
    assert panel.get_xlabel().startswith("policy") and panel.get_ylabel().startswith("reward")


def test_gold_has_a_panel_below_on_the_same_iterations():
    above, below = reward_figure([("raft", rows(**{"gold/eval": 7.0}))]).axes
    assert list(lines(below)) == ["held-out prompts, gold reward"] and len(lines(above)) == 3
    assert above.get_shared_x_axes().joined(above, below)
    assert above.get_position().y0 > below.get_position().y0


def test_the_band_of_one_run_is_1_96_standard_errors():
    figure = reward_figure([("raft", rows(**{"reward/eval_se": 0.5}))])
    assert band(figure.axes[0]) == pytest.approx(np.array([[i - 0.98, i + 0.98] for i in (0, 1, 2)]))
    assert legend(figure)[-1] == "band: 95 % interval over prompts"


def test_a_run_without_standard_errors_has_no_band():
    figure = reward_figure([("raft", rows())])
    assert not figure.axes[0].collections and len(legend(figure)) == 3


@pytest.mark.parametrize("names", [("a-seed0", "a-seed1", "a-seed12"), ("a-s0", "a-seed7", "a"), ("a", "a", "a")])
def test_seeds_of_one_recipe_are_their_mean_with_a_band_from_min_to_max(names):
    figure = reward_figure([(name, rows(shift)) for name, shift in zip(names, (0.0, 1.0, 5.0), strict=True)])
    (panel,) = figure.axes
    assert lines(panel)["training prompts, best of K"] == [(0, 4.0), (1, 5.0), (2, 6.0)]
    assert band(panel) == pytest.approx(np.array([[2.0, 7.0], [3.0, 8.0], [4.0, 9.0]]))
    assert figure.legends[0].get_title().get_text() == "a (mean of 3 seeds)"
    assert legend(figure)[-1] == "band: min to max of the seeds"


def test_a_seed_that_is_behind_shortens_the_mean_instead_of_bending_it():
    figure = reward_figure([("a-s0", rows(0.0)), ("a-s1", rows(2.0, iterations=1))])
    assert lines(figure.axes[0])["held-out prompts, mean"] == [(0, 1.0), (1, 2.0)]


def test_several_recipes_have_a_panel_for_each_figure_and_one_look_each():
    figure = reward_figure([("a", rows()), ("b-s1", rows(1.0)), ("sft-s", rows(2.0))])
    titles = [panel.get_title(loc="left") or panel.get_title() for panel in figure.axes]
    assert titles == [line.label for line in REWARDS.values()][:3]
    looks = {
        (line.get_label(), line.get_color(), line.get_marker()) for panel in figure.axes for line in panel.get_lines()
    }
    assert len(looks) == 3 and len({colour for _, colour, _ in looks}) == 3
    assert legend(figure) == ["a", "b-s1", "sft-s"]
    assert lines(figure.axes[1])["b-s1"] == [(0, 1.1), (1, 2.1), (2, 3.1)]


def test_gold_of_one_recipe_only_still_has_its_panel():
    figure = reward_figure([("a", rows()), ("b", rows(**{"gold/eval": 7.0}))])
    assert len(figure.axes) == 4 and list(lines(figure.axes[3])) == ["b"]


@pytest.mark.parametrize(
    "runs", [[("a", rows())], [("a", rows(iterations=40))], [("a", rows()[:1])], [("a", rows()[3:])]]
)
def test_iterations_are_whole_numbers(runs):
    panel = reward_figure(runs).axes[0]
    low, high = panel.get_xlim()
    ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == int(tick) for tick in ticks)


def test_a_single_row_shows_its_points_and_its_interval():
    (panel,) = reward_figure([("a", [{"iteration": 0, "reward/eval": 1.0, "reward/eval_se": 0.5}])]).axes
    assert lines(panel) == {"held-out prompts, mean": [(0, 1.0)]}
    assert panel.collections[0].get_segments()[0] == pytest.approx(np.array([[0, 0.02], [0, 1.98]]))


@pytest.mark.parametrize(
    "ending, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")]
)
def test_the_ending_names_the_format_and_equal_rows_give_equal_bytes(tmp_path, ending, start):
    files = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for file in files:
        reward_curves([("raft", rows(**{"reward/eval_se": 0.5})), ("random", rows())], file)
    assert files[0].read_bytes().startswith(start)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", ["curve.jpg", "curve"])
def test_another_ending_is_refused_with_the_ones_allowed(tmp_path, name):
    with pytest.raises(UserError, match="allowed: png, svg, pdf"):
        reward_curves([("raft", rows())], tmp_path / name)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        reward_curves([("raft", rows())], tmp_path / "none" / "curve.png")


@pytest.mark.parametrize("empty", [[], [{"iteration": 0}], [{"iteration": 0, "reward/eval": None}]])
def test_a_run_without_rewards_is_named_with_the_way_out(empty):
    with pytest.raises(UserError, match=r"late: nothing to draw.*raft status"):
        reward_figure([("early", rows()), ("late", empty)])


def test_seeds_without_a_common_policy_are_named():
    with pytest.raises(UserError, match=r"a \(mean of 2 seeds\): .* no policy in common"):
        reward_figure([("b", rows()), ("a-s0", rows()[:1]), ("a-s1", rows()[2:])])


def test_a_run_beside_several_seeds_shares_the_entry_that_says_what_the_bands_are():
    figure = reward_figure([("a-s0", rows()), ("a-s1", rows(1.0)), ("b", rows(**{"reward/eval_se": 0.5}))])
    assert legend(figure) == [
        "a (mean of 2 seeds)", "b", "band: min to max of the seeds; of a single run 95 % interval over prompts",
    ]  # fmt: skip


def test_no_run_at_all_is_refused():
    with pytest.raises(UserError, match="at least one run"):
        reward_figure([])


def test_the_settings_of_matplotlib_stay_as_they_were(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    reward_curves([("raft", rows())], tmp_path / "curve.png")
    assert dict(matplotlib.rcParams) == before


def test_long_and_odd_names_are_shown_whole(tmp_path):
    from matplotlib import rc_context

    from raft.report.figures.style import STYLE

    with rc_context(STYLE):
        figure = reward_figure([(f"_costs-$-and-{60 * letter}", rows()) for letter in "abcde"])
        figure.savefig(tmp_path / "curve.png")
        assert legend(figure)[0] == f"_costs-$-and-{60 * 'a'}"
        extent = figure.legends[0].get_window_extent()
    assert extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1
