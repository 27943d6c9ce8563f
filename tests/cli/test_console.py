"""What the console says of results."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from raft.cli.console import Console
from raft.store.keys import Artifact


@pytest.mark.parametrize(("low", "warned"), [(0.387, True), (0.5, True), (0.501, False)])
def test_a_reward_model_that_may_be_no_better_than_chance_is_warned_of(low: float, warned: bool, capsys):
    console = Console()
    console.recipe = SimpleNamespace(job="reward-model")
    measured = {"eval/accuracy": 0.6, "eval/accuracy_low": low, "eval/accuracy_high": 0.781}
    console.on_result(Artifact(Path("metrics.json"), {"measured": measured}))
    told = capsys.readouterr().out
    assert "eval/accuracy 0.6" in told
    assert ("no better than chance" in told and f"{low:.3f} to 0.781" in told) == warned
