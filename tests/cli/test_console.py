"""What the console says of results."""

import math
from pathlib import Path
from types import SimpleNamespace

import folders
import numpy as np
import pytest
import worlds

from raft.cli.console import Console, verdict
from raft.config.recipe import load
from raft.store.keys import Artifact
from raft.store.runs import Run


def test_what_was_measured_is_told_in_numbers_that_a_person_reads(capsys):
    console = Console()
    console.recipe = SimpleNamespace(job="sft")
    measured = {"train/examples": 12000, "train/tokens": 316200, "train/loss": 0.42861, "train/padding": 0, "x": 3.2e-5}
    console.on_result(Artifact(Path("policy"), {"measured": measured}))
    assert capsys.readouterr().out == (
        "  train/examples 12,000  train/tokens 316,200  train/loss 0.4286  train/padding 0  x 3.2e-05\n"
    )


@pytest.mark.parametrize(("low", "warned"), [(0.387, True), (0.5, True), (0.501, False)])
def test_a_reward_model_that_may_be_no_better_than_chance_is_warned_of(low: float, warned: bool, capsys):
    console = Console()
    console.recipe = SimpleNamespace(job="reward-model")
    measured = {"eval/accuracy": 0.6, "eval/accuracy_low": low, "eval/accuracy_high": 0.781}
    console.on_result(Artifact(Path("metrics.json"), {"measured": measured}))
    told = capsys.readouterr().out
    assert "eval/accuracy 0.6" in told
    assert ("no better than chance" in told and f"{low:.3f} to 0.781, contains 0.5" in told) == warned


def test_a_reward_model_below_chance_is_told_to_prefer_the_rejected_responses(capsys):
    console = Console()
    console.recipe = SimpleNamespace(job="reward-model")
    measured = {"eval/accuracy": 0.2, "eval/accuracy_low": 0.1, "eval/accuracy_high": 0.3}
    console.on_result(Artifact(Path("metrics.json"), {"measured": measured}))
    assert "0.100 to 0.300, is below 0.5: it prefers the rejected responses" in capsys.readouterr().out


@pytest.mark.parametrize(("job", "steps", "said"), [("sft", 1, True), ("reward-model", 1, True), ("sft", 2, False)])
def test_a_model_that_was_trained_in_one_step_is_told_of(job: str, steps: int, said: bool, capsys):
    console = Console()
    console.recipe = SimpleNamespace(job=job)
    console.on_result(Artifact(Path("policy"), {"measured": {"train/steps": steps}}))
    assert ("watch: steps: the last training took 1 step of the optimiser; lower" in capsys.readouterr().out) == said


@pytest.mark.parametrize(
    ("prompts", "rise", "said"),
    [
        (12, lambda n: 1.0 + 0.1 * n, "a clear gain"),
        (12, lambda n: -1.0 - 0.1 * n, "a clear loss"),
        (12, lambda n: (-1.0) ** n, "no clear gain"),
        (9, lambda n: 1.0 + 0.1 * n, "too few prompts (9) to tell"),
    ],
)
def test_the_end_calls_a_difference_clear_by_its_interval_and_by_the_number_of_prompts(
    tmp_path, monkeypatch, prompts, rise, said
):
    monkeypatch.chdir(tmp_path)
    folders.write_run(
        Path("run"), 2, 2, 1, lambda *at: f"{at}", lambda policy, n, _: n + policy * rise(n), held_out=prompts
    )
    rises = np.array([rise(n) for n in range(prompts)])
    half = 1.96 * rises.std(ddof=1) / math.sqrt(prompts)
    first = (prompts - 1) / 2
    expected = (
        f"held-out reward {first:.3f} -> {first + rises.mean():.3f} from policy 0 to 1 ({rises.mean():+.3f} ± "
        f"{half:.3f}): {said}"
    )
    assert expected in verdict(Run(Path("run"), 0))


def test_the_command_for_more_iterations_asks_for_the_requests_that_they_take(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = 2 + 2 * 16 * 4 + 3 * 8 * 2  # the check, two iterations, policies 0, 1 and 2
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "mode": "grade", "max_requests": whole}
    loaded = load(worlds.make_recipe(tmp_path, reward=judge, evaluation={"gold": None}))
    folders.write_run(tmp_path / "outputs" / "tiny", 2, 2, 2, lambda *at: f"{at}", lambda *at: float(sum(at)))
    console = Console()
    console.recipe, console.finished = loaded.recipe, True
    console.on_run_end(Run(loaded.folder, 0), loaded)
    more = 2 * 16 * 4 + 2 * 8 * 2
    command = f"raft resume {loaded.folder} iterations=4 reward.max_requests={whole + more}    (two more iterations)"
    assert command in capsys.readouterr().out
