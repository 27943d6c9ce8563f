"""Held-out answers without a reward: counted wherever their mean is told, and too many of them stop the run."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import worlds

from raft.report.figures import style
from raft.report.figures.table import Curve

RULES = """
def picky(prompt, response):
    if prompt.meta.get("long"):
        raise ValueError("no such long answers")
    return len(response)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Eight held-out prompts, three of them with answers that the rule `picky` cannot score."""
    folder = tmp_path_factory.mktemp("missing")
    held_out = [{**row, "id": f"h{n}", "long": n < 3} for n, row in enumerate(worlds.prompts(8))]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    (folder / "picky.py").write_text(RULES)
    evaluation = {"count": 8, "k": 2, "prompts": {"kind": "file", "path": "held_out.jsonl", "max_prompt_length": 64}}
    worlds.make_recipe(folder, evaluation=evaluation, iterations=1)
    return folder


@pytest.fixture(scope="module")
def reward_missing(world: Path) -> list[str]:
    """What the run says that is refused first, and that which goes on with another limit."""
    refused = worlds.raft(world, "run", "recipe.yaml", "name=reward", "reward.function=picky:picky")
    assert refused.returncode == 2
    command = ["run", "recipe.yaml", "name=reward", "reward.function=picky:picky", "selection.max_failed_fraction=0.5"]
    done = worlds.raft(world, *command)
    assert done.returncode == 0, done.stderr
    return [refused.stderr, done.stdout]


def policies(world: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in open(world / "outputs" / name / "metrics.jsonl")]


def test_too_many_held_out_answers_without_a_reward_stop_the_run_with_the_first_reason(reward_missing):
    assert "6 of 16 held-out answers of policy 0 have no reward" in reward_missing[0]
    assert "prompt h0" in reward_missing[0] and "no such long answers" in reward_missing[0]
    assert "selection.max_failed_fraction" in reward_missing[0] and "Traceback" not in reward_missing[0]


def test_the_gold_reward_has_the_same_limit(world):
    gold = "evaluation.gold={kind: rule, function: picky:picky}"
    done = worlds.raft(world, "run", "recipe.yaml", "name=gold", gold)
    assert done.returncode == 2 and "have no gold reward" in done.stderr and "no such long answers" in done.stderr


def test_the_limit_can_be_raised_on_the_run_that_it_stopped_and_every_figure_says_of_how_many_it_is(
    world, reward_missing
):
    told = next(line for line in reward_missing[1].splitlines() if line.startswith("iteration 0"))
    assert "over 5 prompts: 37.5% of the answers have no reward" in told
    assert "warning: unscored: 37.5% of the held-out answers have no reward" in reward_missing[1]
    scores = [json.loads(line) for line in open(world / "outputs/reward/iterations/000/evaluation/scores.jsonl")]
    known = [[one["reward"] for one in row["scores"]] for row in scores if "reward" in row["scores"][0]]
    row = policies(world, "reward")[0]
    assert len(known) == 5 and row["reward/eval"] == pytest.approx(sum(map(sum, known)) / 10)
    assert (row["reward/eval_n"], row["reward/eval_failed"]) == (5, 0.375)
    table = list(csv.DictReader(open(world / "outputs" / "reward" / "reward_curve.csv")))
    held_out = [one for one in table if one["quantity"] == "reward/eval"]
    assert [(one["prompts"], one["missing"]) for one in held_out] == [("5", "0.375")] * 2
    training = [one for one in table if one["quantity"] == "reward/mean"]
    assert [(one["prompts"], one["missing"]) for one in training] == [("16", "0.0")]


def test_points_with_missing_rewards_are_open_and_explained():
    from matplotlib.figure import Figure

    x, line = np.array([0, 1, 2]), np.array([1.0, 2.0, 3.0])
    for partial, labels in (([False, True, False], ["a", style.PARTIAL]), ([False] * 3, ["a"])):
        panel = Figure().subplots()
        nothing = np.full(3, math.nan)
        style.draw(panel, Curve(x, line, nothing, nothing, np.array(partial), None), 0, "a")
        assert [one.get_label() for one in panel.get_lines()] == labels
        if any(partial):
            marked = panel.get_lines()[1]
            assert marked.get_xdata().tolist() == [1] and marked.get_markerfacecolor() == "white"
