"""The figures of `raft plot`: numbers against hand computation, what is drawn read back, the CSV beside the picture."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
from folders import stamp
from worlds import raft

from raft.core.errors import UserError
from raft.core.run_paths import RunPaths
from raft.report import palette
from raft.report.figures import best_of_n, inline, picture, style
from raft.report.figures.table import COLUMNS, Recipe, recipes

Table = list[list[float | None]]  # rewards by prompt and response

# Two prompts, so that 1000 resamples reach both ends: the 95 % interval is from the smaller value to the larger.
TRAINING: list[Table] = [[[1.0, 2.0, 6.0], [4.0, 0.0, 2.0]], [[2.0, 3.0, 7.0], [5.0, 1.0, 3.0]]]
PROXY: list[Table] = [[[0.0, 1.0], [4.0, 2.0]], [[1.0, 3.0], [5.0, 5.0]], [[3.0, 3.0], [6.0, 8.0]]]
GOLD: list[Table] = [[[1.0, 0.0], [0.5, 0.25]], [[0.0, 1.0], [1.0, 0.5]], [[1.0, 0.0], [0.25, 0.75]]]


def finish(path: Path, rows: list[dict[str, Any]]) -> None:
    """An artifact with its stamp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stamp(path)


def scores(table: Table, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt_id": str(at), "scores": [{"reward": one, "parts": {}, **more} for one in row]}
        for at, row in enumerate(table)
    ]


def make_run(
    folder: Path,
    training: list[Table] = TRAINING,
    proxy: list[Table] = PROXY,
    gold: list[Table] = GOLD,
    policies: list[dict[str, float]] | None = None,
) -> Path:
    """A run's folder with the artifacts that figures read; the winners are the best of each prompt."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"job": "align"}))
    for at, table in enumerate(training, start=1):
        finish(folder / f"iterations/{at:03d}/scores.jsonl", scores(table))
        best = [{"prompt_id": str(row), "reward": max(rewards)} for row, rewards in enumerate(table)]  # type: ignore[type-var]
        finish(folder / f"iterations/{at:03d}/selected.jsonl", best)
    for name, tables in (("scores", proxy), ("gold", gold)):
        for at, table in enumerate(tables):
            finish(folder / f"iterations/{at:03d}/evaluation/{name}.jsonl", scores(table))
    for at, figures in enumerate(policies or []):
        (folder / f"iterations/{at:03d}/metrics.json").write_text(json.dumps({"policy": figures, "previous": {}}))
    return folder


KL = [{"kl/first": 0.0, "eval/tokens": 9.0}, {"kl/first": 1.0, "kl/first_se": 0.1}, {"kl/first": 2.25}]


def measured(name: str, *folders: Path) -> list[Recipe]:
    figure = picture.FIGURES[name]
    return recipes([figure.measure(folder) for folder in folders], figure.missing)


def drawn(name: str, *folders: Path) -> Any:
    from matplotlib import rc_context

    with rc_context(style.STYLE):
        return picture.FIGURES[name].draw(measured(name, *folders))


def table(name: str, *folders: Path) -> dict[tuple[int, str], tuple[float, float | None, float | None]]:
    """The numbers of the first recipe by iteration and quantity."""
    numbers = measured(name, *folders)[0].numbers
    return {(one.policy, one.quantity): (one.value, one.low, one.high) for one in numbers}


def points(panel: Any) -> dict[str, list[tuple[float, float]]]:
    lines = {str(line.get_label()): line.get_xydata().round(9).tolist() for line in panel.get_lines()}
    return {label: list(map(tuple, xy)) for label, xy in lines.items() if not label.startswith("_child")}


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_all_rewards_have_bands_over_prompts_the_training_ones_too(tmp_path):
    found = table("reward", make_run(tmp_path / "a"))
    assert found[0, "reward/best_of_k"] == pytest.approx((5.0, 4.0, 6.0))
    assert found[1, "reward/best_of_k"] == pytest.approx((6.0, 5.0, 7.0))
    assert found[0, "reward/mean"] == pytest.approx((2.5, 2.0, 3.0))
    assert found[2, "reward/eval"] == pytest.approx((5.0, 3.0, 7.0))
    assert found[0, "gold/eval"] == pytest.approx((0.4375, 0.375, 0.5))
    assert (2, "reward/mean") not in found
    above = drawn("reward", tmp_path / "a").axes[0]
    assert len(above.collections) == 3 and points(above)["training prompts, mean of K"] == [(0, 2.5), (1, 3.5)]


def test_k_is_named_beside_the_run(tmp_path):
    assert drawn("reward", make_run(tmp_path / "a")).legends[0].get_title().get_text() == "a (K = 3)"
    make_run(tmp_path / "uneven", training=[TRAINING[0], [[1.0], [2.0]]])
    assert drawn("reward", tmp_path / "uneven").legends[0].get_title().get_text() == "uneven"


def test_reward_at_n_has_a_line_over_n_for_each_policy(tmp_path):
    found = table("best-of-n", make_run(tmp_path / "a"))
    # of 1, 2, 6 the pairs have maxima 2, 6, 6; of 4, 0, 2: 4, 4, 2
    assert found[0, "reward@1"] == pytest.approx((2.5, 2.0, 3.0))
    assert found[0, "reward@2"] == pytest.approx((4.0, 10 / 3, 14 / 3))
    assert found[0, "reward@3"] == pytest.approx((5.0, 4.0, 6.0))
    (panel,) = drawn("best-of-n", tmp_path / "a").axes
    assert points(panel) == {"policy 0": [(1, 2.5), (2, 4.0), (3, 5.0)], "policy 1": [(1, 3.5), (2, 5.0), (3, 6.0)]}
    one, other = panel.get_lines()
    assert one.get_color() != other.get_color() and one.get_marker() != other.get_marker()
    assert one.is_dashed() != other.is_dashed()
    assert "K = 3" in panel.get_xlabel()


def test_a_figure_over_n_survives_a_single_response(tmp_path):
    make_run(tmp_path / "a", training=[[[1.0], [2.0]]])
    assert points(drawn("best-of-n", tmp_path / "a").axes[0]) == {"policy 0": [(1, 1.5)]}


@pytest.mark.parametrize("most, ticks", [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 9])])
def test_the_ticks_over_n_are_powers_of_two_and_k(most, ticks):
    assert best_of_n.ticks_to(most) == ticks


def test_of_many_policies_a_few_are_drawn_the_first_and_the_last_among_them():
    assert style.thinned(list(range(5)), 8) == [0, 1, 2, 3, 4]
    assert style.thinned(list(range(30)), 4) == [0, 10, 19, 29]


def test_the_distribution_has_the_mean_and_quantiles_of_all_and_of_the_winners(tmp_path):
    found = table("distribution", make_run(tmp_path / "a"))
    assert found[0, "all/mean"][0] == 2.5 and found[0, "winners/mean"][0] == 5.0
    assert found[0, "all/quantile_0"][0] == 0.0 and found[0, "all/quantile_1"][0] == 6.0
    assert found[0, "all/quantile_0.5"][0] == 2.0  # of 0, 1, 2, 2, 4, 6
    assert found[1, "winners/quantile_0.25"][0] == 5.5  # of 5, 7


def test_each_policy_has_a_half_violin_of_all_to_its_left_and_of_the_winners_to_its_right(tmp_path):
    (panel,) = drawn("distribution", make_run(tmp_path / "a")).axes
    boxes = [one.get_paths()[0].get_extents() for one in panel.collections if one.get_hatch() is not None][:4]
    shapes = [
        one.get_paths()[0].get_extents()
        for one in panel.collections
        if type(one).__name__ == "FillBetweenPolyCollection"
    ]
    assert len(boxes) >= 2 and len(shapes) == 4
    left, right = shapes[0], shapes[1]
    assert (left.x1, right.x0) == (0.0, 0.0) and -0.45 < left.x0 < -0.3 and 0.3 < right.x1 < 0.45
    assert (left.y0, left.y1) == pytest.approx((0.0, 6.0), abs=0.02)
    assert (right.y0, right.y1) == pytest.approx((4.0, 6.0), abs=0.02)


def test_a_violin_has_the_shape_of_what_it_shows():
    from raft.report.figures.distribution import _shape

    rewards = np.random.default_rng(0).normal(3.0, 2.0, 50_000)
    places, widths, quartiles = _shape(rewards)
    assert widths == pytest.approx(np.exp(-0.5 * ((places - 3.0) / 2.0) ** 2), abs=0.06)
    assert quartiles == pytest.approx([3.0 - 2 * 0.6745, 3.0, 3.0 + 2 * 0.6745], abs=0.06)
    two, wide, _ = _shape(np.array([0.0] * 30 + [1.0] * 10))
    assert wide[0] == pytest.approx(1.0) and wide[-1] == pytest.approx(1 / 3) and wide[len(two) // 2] < 0.35
    assert _shape(np.array([2.0, 2.0]))[1].tolist() == [1.0, 1.0]


def test_winners_are_what_was_selected_and_of_pairs_the_best(tmp_path):
    folder = make_run(tmp_path / "a", training=TRAINING[:1])
    finish(
        folder / "iterations/001/selected.jsonl", [{"prompt_id": "0", "reward": 1.0}, {"prompt_id": "1", "reward": 0.0}]
    )
    assert table("distribution", folder)[0, "winners/mean"][0] == 0.5
    finish(folder / "iterations/001/selected.jsonl", [{"prompt_id": "0", "chosen": {}, "rejected": {}}])
    assert table("distribution", folder)[0, "winners/mean"][0] == 5.0


def test_a_response_without_a_reward_is_left_out(tmp_path):
    folder = make_run(tmp_path / "a", training=[[[1.0, 3.0], [None, 8.0]]][:0], proxy=[], gold=[])
    finish(folder / "iterations/001/scores.jsonl", scores([[1.0, 3.0], [None, 8.0]]))
    assert table("distribution", folder)[0, "all/mean"][0] == 4.0
    assert table("best-of-n", folder)[0, "reward@2"] == (3.0, 3.0, 3.0)
    assert table("reward", folder)[0, "reward/mean"][0] == 5.0


def test_gold_against_the_reward_has_a_numbered_point_for_each_policy(tmp_path):
    path, at_n = drawn("gold", make_run(tmp_path / "a")).axes
    xy = [tuple(pair) for pair in path.get_lines()[0].get_xydata().tolist()]
    assert xy == [(1.75, 0.4375), (3.5, 0.625), (5.0, 0.5)]
    assert [text.get_text() for text in path.texts] == ["0", "1", "2"]
    assert [text.get_position() for text in path.texts] == xy
    # policy 0: the reward picks gold 0 and 0.5; policy 1: 1 and, of two that tie, 0.75; policy 2: 0.5 and 0.75
    found = table("gold", tmp_path / "a")
    assert [found[at, "gold@2"][0] for at in range(3)] == pytest.approx([0.25, 0.875, 0.625])
    assert points(at_n)["policy 1"] == [(1, 0.625), (2, 0.875)]
    assert at_n.get_shared_y_axes().joined(path, at_n)


def test_each_panel_of_the_gold_figure_names_its_own_lines(tmp_path):
    path, at_n = drawn("gold", make_run(tmp_path / "a")).axes
    for panel, names in ((path, ["each policy at its number"]), (at_n, ["policy 0", "policy 1", "policy 2"])):
        assert [text.get_text() for text in panel.get_legend().get_texts()] == names


def test_a_policy_has_one_look_in_the_panels_of_all_recipes(tmp_path):
    make_run(tmp_path / "short", training=TRAINING[:1])
    make_run(tmp_path / "long", training=[*TRAINING, *TRAINING])
    panels = drawn("best-of-n", tmp_path / "short", tmp_path / "long").axes
    looks = {(line.get_label(), str(line.get_color()), line.get_marker()) for one in panels for line in one.get_lines()}
    assert len(looks) == 4 and len({label for label, *_ in looks}) == 4


def test_the_distance_has_the_marks_of_the_best_of_k_of_the_best_of_k(tmp_path):
    run = make_run(tmp_path / "a", training=[[[float(one) for one in range(8)]] * 2] * 2, policies=KL)
    found = table("kl", run)
    assert [found[at, "kl/bound"][0] for at in range(3)] == pytest.approx(
        [0.0, math.log(8) - 7 / 8, 2 * math.log(8) - (1 - 1 / 64)]
    )
    assert found[1, "kl/first"] == pytest.approx((1.0, 1.0 - 0.196, 1.0 + 0.196))
    above, below = drawn("kl", run).axes
    assert [tuple(pair) for pair in above.get_lines()[0].get_xydata().tolist()] == [(0.0, 1.75), (1.0, 3.5), (1.5, 5.0)]
    assert [tuple(pair) for pair in below.get_lines()[0].get_xydata().tolist()][1] == (1.0, 0.625)
    marks = [line.get_xdata()[0] for line in above.get_lines() if len(set(line.get_xdata())) == 1]
    assert marks == pytest.approx([math.sqrt(1.2044)], abs=1e-4)  # the next, sqrt(3.175), is beyond the last policy
    (top,) = above.child_axes
    assert [tick.get_text() for tick in top.get_xticklabels()] == ["8"]


def test_the_first_policy_is_at_distance_0_and_an_estimate_below_0_too(tmp_path):
    run = make_run(tmp_path / "a", policies=[{}, {"kl/first": -0.01, "kl/first_se": 0.02}])
    assert table("kl", run)[0, "kl/first"][0] == 0.0
    x = drawn("kl", run).axes[0].get_lines()[0].get_xdata()
    assert list(x) == [0.0, 0.0]


def test_length_draws_the_metrics_that_are_there(tmp_path):
    run = make_run(tmp_path / "a", policies=[{"eval/tokens": 9.0}, {"eval/tokens": 7.0, "diversity/distinct_2": 0.5}])
    length, diversity = drawn("length", run).axes
    assert points(length) == {"held-out prompts, length": [(0, 9.0), (1, 7.0)]}
    assert points(diversity) == {"held-out, distinct-2": [(1, 0.5)]}


def test_measures_of_diversity_each_have_a_scale_of_their_own(tmp_path):
    shares = {"eval/tokens": 9.0, "diversity/distinct_1": 0.01, "diversity/distinct_2": 0.1, "diversity/msttr_100": 0.6}
    later = {key: 0.9 * value for key, value in shares.items()}
    panels = drawn("length", make_run(tmp_path / "a", policies=[shares, later])).axes
    assert [list(points(panel).values()) for panel in panels] == [
        [[(0, pytest.approx(value)), (1, pytest.approx(0.9 * value))]] for value in shares.values()
    ]
    for panel, value in zip(panels, shares.values(), strict=True):
        low, high = panel.get_ylim()
        assert high - low < 0.2 * value  # a fall of a tenth is seen


@pytest.mark.parametrize("name", list(picture.FIGURES))
def test_seeds_of_one_recipe_are_drawn_as_their_mean(tmp_path, name):
    seeds = [make_run(tmp_path / f"a-seed{seed}", policies=KL) for seed in (0, 1)]
    (recipe,) = measured(name, *seeds)
    assert recipe.numbers and drawn(name, *seeds)
    alone = table(name, seeds[0])
    assert {key: value for key, (value, _, _) in table(name, *seeds).items()} == pytest.approx(
        {key: value for key, (value, _, _) in alone.items()}
    )
    assert all(one.low == one.value == one.high for one in recipe.numbers)


@pytest.mark.parametrize("name", list(picture.FIGURES))
def test_several_recipes_are_told_apart_without_colour(tmp_path, name):
    folders = [make_run(tmp_path / run, policies=KL) for run in ("raft-s0", "raft-s1", "sft", "random")]
    figure = drawn(name, *folders)
    legends = [*figure.legends, *(panel.get_legend() for panel in figure.axes if panel.get_legend())]
    named = [text.get_text() for one in legends for text in (*one.get_texts(), one.get_title())]
    texts = " ".join([*named, *(panel.get_title(loc="left") for panel in figure.axes)])
    assert "raft (" in texts and "sft" in texts and "random" in texts and "2 seeds" in texts
    for panel in figure.axes:
        lines = [line for line in panel.get_lines() if line.get_label() in named]
        assert len({line.get_marker() for line in lines}) == len(lines)


def test_the_csv_is_long_and_has_the_seeds_and_then_their_mean(tmp_path):
    for seed, shift in ((0, 0.0), (1, 2.0)):
        made = [[[reward + shift for reward in row] for row in TRAINING[0]]]  # type: ignore[operator]
        make_run(tmp_path / f"a-seed{seed}", training=made, proxy=[], gold=[])
    written = picture.plot("best-of-n", [tmp_path / "a-seed0", tmp_path / "a-seed1"], tmp_path / "figure.png")
    assert written == tmp_path / "figure.csv"
    head, *rows = csv.reader(written.open())
    assert tuple(head) == COLUMNS
    assert head == ["recipe", "run", "policy", "quantity", "value", "low", "high", "prompts", "missing"]
    assert [row[:4] for row in rows[::3]] == [
        ["a", "a-seed0", "0", "reward@1"],
        ["a", "a-seed1", "0", "reward@1"],
        ["a", "mean of 2 seeds", "0", "reward@1"],
    ]
    assert [float(number) for number in rows[2][4:7]] == pytest.approx([5.0, 4.0, 6.0])
    assert [float(number) for number in rows[8][4:7]] == pytest.approx([6.0, 5.0, 7.0])
    assert rows[0][7:] == [str(len(TRAINING[0])), "0.0"]
    assert next(row[7:] for row in rows if row[1] == "mean of 2 seeds") == ["", "0.0"]


def test_what_has_no_band_is_empty_in_the_csv(tmp_path):
    run = make_run(tmp_path / "a", policies=[{"eval/tokens": 9.0}])
    assert picture.plot("length", [run], tmp_path / "l.svg").read_text().splitlines()[1:] == [
        "a,a,0,eval/tokens,9.0,,,,"
    ]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
@pytest.mark.parametrize("name", list(picture.FIGURES))
def test_equal_runs_give_equal_bytes(tmp_path, name, ending):
    run = make_run(tmp_path / "a", policies=KL)
    files = [tmp_path / f"{letter}.{ending}" for letter in "xy"]
    tables = [picture.plot(name, [run], file) for file in files]
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].stat().st_size > 1000
    assert tables[0].read_bytes() == tables[1].read_bytes()


@pytest.mark.parametrize("name", list(picture.FIGURES))
def test_a_run_that_has_nothing_yet_is_named_with_the_way_out(tmp_path, name):
    make_run(tmp_path / "full", policies=KL)
    empty = make_run(tmp_path / "empty", [], [], [])
    for runs, ends in (([tmp_path / "full", empty], r"\), or leave this run out"), ([empty], r"\)")):
        with pytest.raises(UserError, match=rf"empty: nothing to draw, .*raft status shows how far it is{ends}$"):
            picture.plot(name, runs, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists() and not (tmp_path / "x.csv").exists()


def test_a_run_of_a_job_without_iterations_is_sent_to_the_report(tmp_path):
    run = make_run(tmp_path / "a", [], [], [])
    (run / "run.json").write_text(json.dumps({"job": "reward-model"}))
    for draw in (lambda: picture.plot("reward", [run], tmp_path / "x.png"), lambda: picture.plot_all([run], tmp_path)):
        with pytest.raises(UserError, match=rf"a job: reward-model has none; raft report {run} shows what it made"):
            draw()


@pytest.mark.parametrize("name", list(picture.FIGURES))
def test_the_first_policy_alone_can_be_drawn_once_it_is_scored(tmp_path, name):
    assert drawn(name, make_run(tmp_path / "a", TRAINING[:1], PROXY[:1], GOLD[:1], KL[:1]))


def test_what_is_not_finished_is_not_read(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "iterations/002/scores.jsonl.stamp.json").unlink()
    assert {iteration for iteration, _ in table("best-of-n", run)} == {0}


def test_a_figure_that_there_is_none_of_is_refused_with_the_likeliest(tmp_path):
    with pytest.raises(
        UserError, match=r"no figure 'bestofn'; did you mean best-of-n\? allowed: all, best-of-n, distribution"
    ):
        picture.plot("bestofn", [make_run(tmp_path / "a")], tmp_path / "x.png")


@pytest.mark.parametrize("name, missing", [("gold", r"evaluation\.gold"), ("kl", r"evaluation\.kl: true")])
def test_what_a_figure_needs_of_the_recipe_is_named(tmp_path, name, missing):
    with pytest.raises(UserError, match=rf"a: nothing to draw, .*{missing}"):
        picture.plot(name, [make_run(tmp_path / "a", gold=[])], tmp_path / "x.png")


@pytest.mark.parametrize("name", ["best-of-n", "distribution"])
def test_rewards_that_only_rank_the_responses_of_a_prompt_are_not_compared_between_prompts(tmp_path, name):
    run = make_run(tmp_path / "a")
    for at in (1, 2):
        finish(run / f"iterations/00{at}/scores.jsonl", scores(TRAINING[0], rank=0))
    with pytest.raises(UserError, match=r"compared between prompts"):
        picture.plot(name, [run], tmp_path / "x.png")
    assert {quantity for _, quantity in table("reward", run)} == {"reward/eval", "gold/eval"}


def test_a_run_that_labels_has_the_figures_of_its_responses(tmp_path):
    (tmp_path / "a").mkdir()
    finish(tmp_path / "a/scores.jsonl", scores(TRAINING[0]))
    assert table("reward", tmp_path / "a")[0, "reward/best_of_k"][0] == 5.0
    assert table("distribution", tmp_path / "a")[0, "all/mean"][0] == 2.5
    assert table("best-of-n", tmp_path / "a")[0, "reward@2"][0] == pytest.approx(4.0)


@pytest.mark.parametrize("colour", [*palette.SERIES, "#ffffff", "#e4e4e4", "#440154"])
def test_a_colour_stands_out_from_a_dark_sheet_as_it_does_from_white_and_keeps_its_hue(colour):
    import colorsys

    def look(name: str) -> tuple[float, float]:
        rgb = [one / 255 for one in bytes.fromhex(name[1:])]
        red, green, blue = (one**2.2 for one in rgb)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue, colorsys.rgb_to_hls(*rgb)[0]

    (light, hue), (dark, kept) = look(colour), look(inline.dark(colour))
    wanted = (1.15 / (light + 0.15)) * (0.014 + 0.15) - 0.15
    assert dark == pytest.approx(min(wanted, 1.0), abs=0.01)
    assert dark < 0.05 or dark > 0.95 or math.cos(2 * math.pi * (hue - kept)) > 0.9


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="allowed: png, svg, pdf"):
        picture.plot("reward", [tmp_path / "none"], tmp_path / "numbers.csv")


def test_the_command_writes_the_picture_and_its_numbers_into_the_run_and_those_of_several_beside_the_first(tmp_path):
    make_run(tmp_path / "a")
    done = raft(tmp_path, "plot", "a", "--figure", "gold")
    assert done.returncode == 0 and done.stdout.split() == ["a/gold.png", "a/gold.csv"]
    assert raft(tmp_path, "plot", "a").stdout.split() == ["a/reward_curve.png", "a/reward_curve.csv"]
    assert (tmp_path / "a/gold.csv").read_bytes().startswith(b"recipe,run")
    own = (tmp_path / "a/reward_curve.png").read_bytes()
    make_run(tmp_path / "b")
    assert raft(tmp_path, "plot", "a", "b").stdout.split() == ["a+b-reward.png", "a+b-reward.csv"]
    assert "a+b/best-of-n.png" in raft(tmp_path, "plot", "a", "b", "--figure", "all").stdout.split()
    assert (tmp_path / "a/reward_curve.png").read_bytes() == own and not (tmp_path / "a/best-of-n.png").exists()
    refused = raft(tmp_path, "plot", "a", "--figure", "golden")
    assert refused.returncode == 2 and "did you mean gold?" in refused.stderr and "Traceback" not in refused.stderr


def test_a_picture_says_above_all_else_what_it_shows(tmp_path):
    run = make_run(tmp_path / "a", policies=KL)
    for name, figure in picture.FIGURES.items():
        picture.plot(name, [run], tmp_path / "x.svg")
        text = re.findall(r"<!-- (.*?) -->", (tmp_path / "x.svg").read_text())
        assert figure.title in text and len(figure.title) > 15, name


def test_all_figures_that_a_run_has_are_drawn_and_what_the_others_need_is_named(tmp_path):
    make_run(tmp_path / "a")
    done = raft(tmp_path, "plot", "a", "--figure", "all")
    assert done.returncode == 0, done.stderr
    names = ["reward_curve", "distribution", "best-of-n", "gold"]
    *files, without_kl, without_length = done.stdout.splitlines()
    assert files == [f"a/{name}.{kind}" for kind in ("png", "csv") for name in names]
    assert without_kl.startswith("left out: kl: ") and "evaluation.kl: true" in without_kl
    assert without_length.startswith("left out: length: ")
    picture.plot("gold", [tmp_path / "a"], tmp_path / "alone.png")
    assert (tmp_path / "a/gold.png").read_bytes() == (tmp_path / "alone.png").read_bytes()
    (tmp_path / "bare").mkdir()
    assert picture.plot_all([tmp_path / "bare"], tmp_path / "own") == ([], list(picture.FIGURES.values()))
    with pytest.raises(UserError, match="no folder can be made there"):
        picture.plot_all([tmp_path / "bare"], tmp_path / "none/deep")
    (tmp_path / "own/gold.csv").write_text("mine\n")
    with pytest.raises(UserError, match="is not a table of raft plot"):
        picture.plot_all([tmp_path / "a"], tmp_path / "own")
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["gold.csv"]


def test_a_table_of_another_version_is_written_again_and_one_of_ones_own_is_not(tmp_path: Path):
    """The column that counts policies had another name once."""
    run = folders.write_run(tmp_path / "run", 2, 2, 2, lambda *_: "text", lambda *_: 1.0)
    (tmp_path / "new.csv").write_text("recipe,run,iteration,quantity,value\n")
    picture.refuse(tmp_path / "new.png")
    picture.plot("reward", [run], tmp_path / "new.png")
    assert (tmp_path / "new.csv").read_text().startswith("recipe,run,policy,")
    (tmp_path / "own.csv").write_text("recipe,mine\n")
    with pytest.raises(UserError, match="is not a table of raft plot"):
        picture.refuse(tmp_path / "own.png")


def test_a_figure_of_runs_with_different_rewards_says_so_and_one_of_the_same_reward_does_not(tmp_path: Path):
    """By what scored the answers: a function may have changed whose name is the same."""
    runs = [folders.write_run(tmp_path / name, 2, 2, 2, lambda *_: "text", lambda *_: 1.0) for name in ("a", "b")]

    def scored_by(run: Path, code: str) -> None:
        for it in RunPaths(run).iterations():
            section = {"is": "reward/rule", "function": {"name": "mine:score", "code": code}}
            folders.stamp(it.evaluation.scores, "score", key={"stage": "score", "section": section})

    scored_by(runs[0], "1")
    for other, said in (("1", ""), ("2", "different rewards")):
        scored_by(runs[1], other)
        assert (said in picture.different_rewards(runs)) and bool(picture.different_rewards(runs)) == bool(said)
        picture.plot("reward", runs, tmp_path / "both.svg")
        assert ("compare shapes" in (tmp_path / "both.svg").read_text()) == bool(said)
