"""How long a run will take, and what its stages are called."""

import ast
import json
from pathlib import Path

import folders
import pytest

from raft.store import expected, words

RAFT = Path(__file__).parents[2] / "raft"


def write_run(folder: Path, iterations: int) -> Path:
    return folders.write_run(folder, 2, 2, iterations, lambda *_: "text", lambda *_: 1.0)


def test_the_rest_of_a_run_is_what_its_finished_iterations_took(tmp_path: Path):
    run = write_run(tmp_path / "run", 2)
    one = expected._spent(run / "iterations" / "002")
    assert one > 0 and expected.rest(run, 3, 5) == (pytest.approx(3 * one), pytest.approx(2 * one))
    assert expected.rest(run, 5, 5) == (pytest.approx(one), 0.0)


def test_what_an_iteration_has_finished_is_not_expected_again(tmp_path: Path):
    run = write_run(tmp_path / "run", 2)
    one = expected._spent(run / "iterations" / "002")
    folders.stamp(run / "iterations" / "003" / "scores.jsonl", "score")
    assert expected.rest(run, 3, 3) == (pytest.approx(one - 2.5), 0.0)


def test_of_an_iteration_that_took_all_that_was_expected_and_is_made_again_nothing_is_said(tmp_path: Path):
    run = write_run(tmp_path / "run", 2)
    assert expected.rest(run, 2, 2) == (None, 0.0)
    assert expected.rest(run, 2, 3)[0] == expected.rest(run, 3, 3)[0]


def test_before_the_first_iteration_a_forecast_is_believed_and_without_one_nothing_is_said(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    assert expected.rest(run, 1, 5) == (None, 0.0) and expected.rest(run, 0, 0) == (None, 0.0)
    (run / "forecast.json").write_text(json.dumps({"iteration": 100.0, "start_up": 7, "seconds": {"evaluate": 3.0}}))
    assert expected.rest(run, 0, 5) == (510.0, 500.0) and expected.rest(run, 1, 5) == (500.0, 400.0)
    for damaged in ("", "{}", '{"iteration": "x"}', '{"iteration": 1.0, "start_up": 1.0, "seconds": {"evaluate": []}}'):
        (run / "forecast.json").write_text(damaged)
        assert expected.rest(run, 1, 5) == (None, 0.0)


def test_every_stage_of_the_loop_has_words():
    """The second argument of each `once(name, stage, ...)` in the pipeline."""
    stages = set()
    for file in (RAFT / "pipeline").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "once":
                stages.add(ast.unparse(node.args[1]).split(".")[-1])
    assert len(stages) > 15 and stages <= set(words.STAGES), stages - set(words.STAGES)


def test_held_out_answers_have_words_of_their_own(tmp_path: Path):
    it = tmp_path / "iterations" / "001"
    assert words.of("score", it / "scores.jsonl") == "scoring responses"
    assert words.of("score", it / "evaluation" / "scores.jsonl") == "scoring held-out answers"
    assert words.of("score", it / "evaluation" / "gold.jsonl") == "scoring held-out answers by the gold reward"
