"""The forecast: a line through two small iterations, kept where the run will be, and what the run makes of it."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import worlds

from raft.cli import forecast
from raft.config import recipe
from raft.core.errors import UserError


def test_a_line_goes_through_both_points_and_never_below_nothing():
    assert forecast.line(10, 3.0, 30, 7.0, 100) == pytest.approx(21.0)
    assert forecast.line(10, 3.0, 30, 7.0, 30) == 7.0
    assert forecast.line(10, 5.0, 30, 4.0, 1000) == 4.0  # more cannot take less
    assert forecast.line(10, 0.1, 30, 9.0, 10) == pytest.approx(0.1)
    assert forecast.line(8, 1.0, 8, 2.0, 100) == 2.0


def test_a_forecast_of_less_than_a_tenth_of_a_gigabyte_is_in_megabytes():
    made = {"seconds": {}, "measured_with": [1, 4], "iteration": 1.0, "run": 2.0, "start_up": 1.0, "truncated": 0.0}
    said = "\n".join(forecast.lines({**made, "memory_gb": 0.1, "disk_gb": 0.00999}))
    assert "memory: at least 0.1 GB; disk: about 9.99 MB" in said


@pytest.mark.nightly
def test_check_measure_forecasts_and_the_run_says_how_good_it_was(tmp_path: Path):
    worlds.make_recipe(tmp_path, prompts={"per_iteration": 24})
    done = worlds.raft(tmp_path, "check", "recipe.yaml", "--measure", "iterations=1")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "tiny"
    assert [file.name for file in run.iterdir()] == ["forecast.json"]
    found = json.loads((run / "forecast.json").read_text())
    assert found["measured_with"] == [6, 24]
    assert set(found["seconds"]) == {"generate", "score", "select", "train", "evaluate", "measure"}
    assert found["iteration"] == pytest.approx(sum(found["seconds"].values()), abs=0.11)
    assert found["run"] >= found["iteration"] and 0 <= found["truncated"] <= 1 and found["memory_gb"] > 0.1
    policy = sum(file.stat().st_size for file in (tmp_path / "base").iterdir())
    assert found["disk_gb"] * 1e9 >= 3 * 0.9 * policy
    assert "forecast, from iterations of 6 and 24 prompts:" in done.stdout
    done = worlds.raft(tmp_path, "run", "recipe.yaml", "iterations=1")
    assert done.returncode == 0, done.stderr
    assert "forecast: an iteration was to take" in done.stdout
    stamps = [json.loads(file.read_text()) for file in run.glob("iterations/001/**/*.stamp.json")]
    actual = json.loads((run / "forecast.json").read_text())["actual"]["iteration"]
    assert actual == pytest.approx(sum(stamp["seconds"] for stamp in stamps), abs=0.06)


def test_the_last_policy_is_evaluated_and_of_the_others_every_nth(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worlds.make_recipe(tmp_path, iterations=5)
    for every, share in ((1, 1.0), (2, 3 / 5), (3, 2 / 5), (9, 1 / 5)):
        loaded = recipe.load(tmp_path / "recipe.yaml", [f"evaluation.every={every}"])
        assert forecast.evaluated(loaded.recipe) == pytest.approx(share)


@pytest.mark.skipif(not version("torch").endswith("+cpu"), reason="a GPU computes")
def test_a_long_run_on_several_cores_is_told_of_an_engine_on_each(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vllm = {"generator": {"kind": "vllm", "k": 4, "max_tokens": 12}}
    on_cores = recipe.load(worlds.make_recipe(tmp_path, **vllm)).recipe
    long = {"run": 1000.0}
    assert "on 4 cores: launch.kind=ray" in str(forecast.advice(on_cores, long, 4))
    assert forecast.advice(on_cores, {"run": 100.0}, 4) is None and forecast.advice(on_cores, long, 1) is None
    assert forecast.advice(recipe.load(tmp_path / "recipe.yaml", ["launch.kind=ray"]).recipe, long, 4) is None
    others = recipe.load(worlds.make_recipe(tmp_path, generator={"kind": "transformers", "k": 4, "max_tokens": 12}))
    assert forecast.advice(others.recipe, long, 4) is None


def test_a_recipe_that_leaves_its_numbers_open_is_forecast_with_all_prompts_that_there_are(tmp_path: Path, monkeypatch):
    """Of 60 rows 24 say what another one says, so that more rows than prompts are held out."""
    worlds.make_recipe(tmp_path, iterations=1, evaluation={"count": None}, prompts={"per_iteration": None})
    rows = worlds.prompts(60)
    for row, other in zip(rows[36:], rows, strict=False):
        row["prompt"] = other["prompt"].upper()
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    found = forecast.forecast(recipe.load(tmp_path / "recipe.yaml"), [])
    small, large = found["measured_with"]
    assert small == 12 and 27 <= large < 51 and found["iteration"] > 0  # 36 different prompts, 9 of them held out


def test_a_forecast_says_how_often_it_asks_a_judge_and_a_limit_refuses_it(tmp_path: Path, monkeypatch):
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "mode": "grade", "max_requests": 100}
    loaded = recipe.load(worlds.make_recipe(tmp_path, reward=judge, evaluation={"gold": None}))
    monkeypatch.chdir(tmp_path)
    # iterations of 4 and 16 prompts with 4 responses, two policies with 2 answers to 4 and to 8 prompts, three checks
    most = 4 * (4 + 16) + 2 * 2 * (4 + 8) + 3 * 2
    with pytest.raises(UserError) as refused:
        forecast.tell_requests(loaded, [])
    assert str(refused.value) == (
        f"reward.max_requests: 100 requests are allowed, and --measure alone sends up to {most}; raise it, or leave "
        "--measure out"
    )
