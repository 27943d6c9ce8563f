"""`raft select`: what it prints beside its table, and the command that it ends with."""

import json
import shlex
import shutil
from pathlib import Path

import folders
import pytest
import yaml

from raft.cli import main as cli
from raft.cli import select
from raft.config.recipe import read_one
from raft.core import user_code
from raft.core.run_paths import RunPaths


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two iterations with a gold reward."""
    place = tmp_path_factory.mktemp("select") / "run"
    return folders.write_run(place, 3, 2, 2, lambda *at: f"answer {at}", lambda *at: float(sum(at)))


@pytest.mark.parametrize(
    ("before", "selection", "after"),
    [
        ({"kind": "dpo", "beta": 0.2, "batch_size": 4}, "best-of-k", {"kind": "sft", "batch_size": 4}),
        ({"kind": "kto"}, "advantage", {"kind": "policy-gradient"}),
        ({"kind": "sft", "learning_rate": 0.1}, "best-vs-worst", {"kind": "dpo"}),  # whose rate is another
        ({"kind": "dpo", "learning_rate": 1e-06}, "all-pairs", {"kind": "dpo", "learning_rate": 1e-06}),
        ({"kind": "sft", "loss_on_prompt": True}, "best-of-k", {"kind": "sft", "loss_on_prompt": True}),
        ({"kind": "dpo", "beta": 0.2}, "best-vs-worst", {"kind": "dpo", "beta": 0.2}),
    ],
)
def test_the_command_that_trains_on_a_selection_leaves_a_trainer_that_takes_it(run, before, selection, after):
    resolved = yaml.safe_load(RunPaths(run).resolved.read_text())
    RunPaths(run).resolved.write_text(yaml.safe_dump({**resolved, "trainer": before}))
    command = shlex.split(select.trains_on(run, RunPaths(run).iteration(2), {"kind": selection}))
    assert command[:3] == ["raft", "resume", str(run)]
    config, _ = read_one(RunPaths(run).resolved, command[5:])
    assert config["trainer"] == after and config["selection"] == {"kind": selection}


def test_a_command_follows_where_a_selection_is_named_and_gold_is_explained_where_it_is_shown(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    assert cli.execute(cli.parse(["select", str(copy)])) == 0
    alone = capsys.readouterr().out
    assert "next:" not in alone and "; gold: of its held-out answers" in alone
    for gold in copy.rglob("gold.jsonl*"):
        gold.unlink()
    assert cli.execute(cli.parse(["select", str(copy), "random"])) == 0
    named = capsys.readouterr().out
    assert f"next: raft resume {copy} --from-iteration 1" in named and "gold" not in named
    assert "policy 1, the start of iteration 2, is gone: the branch begins at 1\n" in named
    (copy / "iterations" / "001" / "policy").mkdir()
    assert cli.execute(cli.parse(["select", str(copy), "random"])) == 0
    named = capsys.readouterr().out
    assert f"next: raft resume {copy} --from-iteration 2" in named and "is gone" not in named


@pytest.mark.parametrize("place", ["recipes", "run"])
def test_a_selection_of_ones_own_is_found_beside_the_recipe_of_the_run_and_in_the_run(run, tmp_path, capsys, place):
    copy = shutil.copytree(run, tmp_path / "run")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").touch()
    known = json.loads(RunPaths(copy).about.read_text())
    RunPaths(copy).about.write_text(json.dumps({**known, "recipe": str(tmp_path / "recipes" / "r.yaml")}))
    (tmp_path / place / "own_selections.py").write_text(
        "from raft.pipeline.selection import BestOfK\n\n\nclass Mine(BestOfK):\n    pass\n"
    )
    assert cli.execute(cli.parse(["select", str(copy), "own_selections:Mine"])) == 0, capsys.readouterr().err
    user_code.forget()


def test_a_run_that_labels_is_told_to_have_no_iterations(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("iterations"))
    assert cli.execute(cli.parse(["select", str(copy), "random"])) == 2
    assert "holds no iterations; name the folder of a run of job: align" in capsys.readouterr().err
