"""A recipe that changes: what no finished artifact depends on may change, and a refusal names commands that work."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import worlds

from raft.config.recipe import read_resolved
from raft.core.records import read
from raft.store import replay

ONE = {"iterations": 1, "prompts": {"per_iteration": 8}, "evaluation": {"count": 4, "gold": None}}


def stamp(folder: Path, name: str) -> dict:
    return json.loads((folder / f"outputs/tiny/{name}.stamp.json").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A finished run of one iteration."""
    folder = tmp_path_factory.mktemp("world")
    worlds.make_recipe(folder, **ONE)
    done = worlds.raft(folder, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def ways(stderr: str) -> list[list[str]]:
    """The commands that a refusal names."""
    return [shlex.split(line) for line in stderr.splitlines() if line.startswith("  raft ")]


def test_a_refusal_names_the_key_and_the_artifact_and_every_command_that_it_gives_leads_on(world):
    before = worlds.fingerprint(world / "outputs/tiny")
    refused = worlds.raft(world, "run", "recipe.yaml", "trainer.learning_rate=0.002")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "trainer.learning_rate: was 0.001, is 0.002" in refused.stderr
    assert "iterations/001/policy depends on it" in refused.stderr
    assert worlds.fingerprint(world / "outputs/tiny") == before
    branch, other, again = ways(refused.stderr)
    assert branch[1] == "resume" and "--restart" in again and other[-1] == "name=tiny-2"
    for command in (branch, other, again):
        done = worlds.raft(world, *command[1:])
        assert done.returncode == 0, done.stderr
    (aside,) = (world / "outputs").glob("tiny.before-*")
    assert f"outputs/tiny was moved to outputs/{aside.name}" in done.stdout
    assert worlds.fingerprint(aside) == before
    made = [worlds.fingerprint(world / "outputs" / name) for name in ("tiny-from-1", "tiny-2", "tiny")]
    weights = [run["iterations/001/policy/model.safetensors"] for run in made]
    assert weights[0] == weights[1] == weights[2] != before["iterations/001/policy/model.safetensors"]
    assert made[1] == made[2]


def test_a_refusal_of_another_generator_or_reward_offers_a_new_run_first_as_a_branch_compares_with_less(world):
    for change in ("generator.max_tokens=5", "reward={kind: rule, function: length}"):
        refused = worlds.raft(world, "run", "recipe.yaml", change)
        first, second, _ = ways(refused.stderr)
        assert (first[1], second[1]) == ("run", "resume")
        assert ", but not their figures: this key changes how they are measured" in refused.stderr


def test_a_refusal_offers_a_branch_from_an_iteration_whose_first_policy_is_there(tmp_path):
    worlds.make_recipe(tmp_path, iterations=3, keep_policies="last", evaluation={"count": 4, "gold": None, "kl": False})
    assert worlds.raft(tmp_path, "run", "recipe.yaml").returncode == 0
    for name in ("tiny-from-1", "tiny-from-1-2"):  # the second time the usual name is taken
        refused = worlds.raft(tmp_path, "run", "recipe.yaml", "replay.max_age=1")  # changes iterations 2 and 3
        assert "iterations/002/policy depends on it" in refused.stderr
        assert "shares the policies before iteration 1 with this one\n" in refused.stderr, (
            "iteration 4 is beyond the recipe's three"
        )
        branch = ways(refused.stderr)[0]
        assert branch[1:5] == ["resume", "outputs/tiny", "--from-iteration", "1"]
        done = worlds.raft(tmp_path, *branch[1:])
        assert done.returncode == 0 and (tmp_path / "outputs" / name).is_dir(), done.stderr
    for number, said in ((2, "allowed: 1, 4. A run"), (9, "allowed: 1, 4\n")):
        done = worlds.raft(tmp_path, "resume", "outputs/tiny", "--from-iteration", number)
        assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("softmax", "a.b=softmax"), ("rules/own.py", "a.b=rules/own.py"), ("on", 'a.b="on"'), ("1e3", 'a.b="1e3"'),
        ("a: b", 'a.b="a: b"'), ("", 'a.b=""'), (None, "a.b=null"), (0.5, "a.b=0.5"), ([1, "x"], 'a.b=[1, "x"]'),
    ],
)  # fmt: skip
def test_an_offered_override_has_quotes_only_where_its_value_needs_them(value, word):
    assert replay._override("a.b", {"a": {"b": value}}) == word


def test_the_branch_that_a_refusal_offers_takes_out_what_the_recipe_no_longer_says(tmp_path):
    worlds.make_recipe(tmp_path, **ONE, selection={"kind": "softmax", "temperature": 0.5})
    assert worlds.raft(tmp_path, "run", "recipe.yaml").returncode == 0
    changes = ["selection={kind: random}", "~trainer.batch_size", "evaluation.kl=false"]
    branch, other, _ = ways(worlds.raft(tmp_path, "run", "recipe.yaml", *changes).stderr)
    assert {"~selection.temperature", "~trainer.batch_size"} < set(branch)
    for command in (branch, other):
        done = worlds.raft(tmp_path, *command[1:])
        assert done.returncode == 0, done.stderr
    one, two = (read_resolved(tmp_path / "outputs" / name) for name in ("tiny-from-1", "tiny-2"))
    assert {**one, "name": ""} == {**two, "name": ""}


def test_a_gold_reward_that_comes_later_measures_every_policy_as_if_it_had_been_there_from_the_first(tmp_path):
    worlds.make_recipe(tmp_path, **ONE)
    for command in (
        ["run", "recipe.yaml"],
        ["resume", "outputs/tiny", "evaluation.gold={kind: rule, function: length}"],
        ["run", "recipe.yaml", "evaluation.gold={kind: rule, function: length}", "name=whole"],
    ):
        done = worlds.raft(tmp_path, *command)
        assert done.returncode == 0, done.stderr
        assert "already finished" not in done.stdout
    later, whole = (worlds.fingerprint(tmp_path / "outputs" / name) for name in ("tiny", "whole"))
    assert later == whole and "iterations/001/evaluation/gold.jsonl" in whole
    assert all("gold/eval" in row for row in read(tmp_path / "outputs/tiny/metrics.jsonl"))
    without = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert "evaluation.gold is not in this recipe" in without.stdout + without.stderr
    assert "gold reward" not in without.stdout
    assert not any("gold/eval" in row for row in read(tmp_path / "outputs/tiny/metrics.jsonl"))


def test_a_reward_that_failed_is_corrected_and_the_same_command_goes_on_with_the_same_responses(tmp_path):
    worlds.make_recipe(tmp_path, **ONE)
    rule = (tmp_path / "letters.py").read_text()
    (tmp_path / "letters.py").write_text(rule.replace("    return", "    raise ValueError('not yet')\n    return"))
    failed = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert failed.returncode == 2 and "ValueError: not yet (letters.py, line 3)" in failed.stderr
    log = (tmp_path / "outputs/tiny/logs/latest.log").read_text()
    assert "run recipe.yaml" in log and "ERROR raft: " in log and "ValueError: not yet (letters.py, line 3)" in log
    made = stamp(tmp_path, "iterations/000/evaluation/responses.jsonl")
    (tmp_path / "letters.py").write_text(rule)
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert stamp(tmp_path, "iterations/000/evaluation/responses.jsonl") == made
    assert worlds.raft(tmp_path, "run", "recipe.yaml", "name=whole").returncode == 0
    assert worlds.fingerprint(tmp_path / "outputs/tiny") == worlds.fingerprint(tmp_path / "outputs/whole")


def test_a_pool_that_turns_out_too_small_is_said_before_anything_is_generated_and_the_lower_number_goes_on(tmp_path):
    worlds.make_recipe(tmp_path, **ONE)
    rows = (tmp_path / "prompts.jsonl").read_text().splitlines()
    empty = [json.dumps({**json.loads(row), "prompt": " "}) for row in rows[20:]]
    (tmp_path / "prompts.jsonl").write_text("\n".join([*rows[:20], *empty]) + "\n")
    refused = worlds.raft(tmp_path, "run", "recipe.yaml", "prompts.per_iteration=30")
    assert refused.returncode == 2 and "prompts.per_iteration: 30 takes 30" in refused.stderr
    assert "there are only 16" in refused.stderr and not list(tmp_path.rglob("responses.jsonl*"))
    done = worlds.raft(tmp_path, "run", "recipe.yaml", "prompts.per_iteration=16")
    assert done.returncode == 0, done.stderr


def test_what_all_of_a_run_has_in_common_cannot_change(world):
    refused = worlds.raft(world, "run", "recipe.yaml", "date=2020-01-02")
    assert refused.returncode == 2 and "date: was not given, is '2020-01-02'" in refused.stderr


def test_a_folder_that_is_no_run_and_a_recipe_with_a_fault_move_nothing(tmp_path):
    worlds.make_recipe(tmp_path)
    (tmp_path / "outputs" / "tiny").mkdir(parents=True)
    (tmp_path / "outputs" / "tiny" / "thesis.tex").write_text("mine")
    for overrides in ([], ["generator.k=0"]):
        refused = worlds.raft(tmp_path, "run", "recipe.yaml", "--restart", *overrides)
        assert refused.returncode == 2 and (tmp_path / "outputs" / "tiny" / "thesis.tex").exists()
        assert len(list((tmp_path / "outputs").iterdir())) == 1


def test_a_restart_that_is_stopped_is_resumed_by_the_command_without_it(tmp_path):
    worlds.make_recipe(tmp_path)
    (tmp_path / "letters.py").write_text(
        "import os, signal, sys\n"
        "def share(prompt, response):\n"
        "    if 'rule_trial' not in sys.argv[0]:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return 0.5\n"
    )
    stopped = worlds.raft(tmp_path, "run", "recipe.yaml", "--rest", "seed=3")
    assert stopped.returncode == 130 and "Resume with:\n  raft run recipe.yaml seed=3\n" in stopped.stderr


def test_a_restart_moves_nothing_where_the_run_alone_has_what_the_recipe_needs(world, tmp_path):
    world = shutil.copytree(world, tmp_path / "world", symlinks=True)
    kept = sorted(one.name for one in (world / "outputs").iterdir())
    for link in (world / "outputs/tiny/iterations/000/policy").iterdir():  # as raft pull brings it
        if link.is_symlink():
            content = link.read_bytes()
            link.unlink()
            link.write_bytes(content)
    before = worlds.fingerprint(world / "outputs" / "tiny")
    (world / "base").rename(world / "elsewhere")
    done = worlds.raft(world, "resume", "outputs/tiny")
    assert done.returncode == 0, done.stderr  # the run has its policy 0
    refused = worlds.raft(world, "run", "recipe.yaml", "--restart")
    assert refused.returncode == 2 and "policy.model: base" in refused.stderr, refused.stderr
    (world / "elsewhere").rename(world / "base")
    (world / "letters.py").write_text("def share(prompt, response):\n    return response.cuont('a')\n")
    refused = worlds.raft(world, "run", "recipe.yaml", "--restart")
    assert refused.returncode == 2 and "'str' object has no attribute 'cuont'" in refused.stderr, refused.stderr
    assert worlds.fingerprint(world / "outputs" / "tiny") == before
    assert sorted(one.name for one in (world / "outputs").iterdir()) == kept


def test_check_says_that_a_run_would_be_refused_and_the_commands_keep_what_was_asked_for(tmp_path):
    worlds.make_recipe(tmp_path, iterations=1)
    assert worlds.raft(tmp_path, "run", "recipe.yaml").returncode == 0
    checked = worlds.raft(tmp_path, "check", "recipe.yaml", "trainer.batch_size=4", "iterations=3")
    words = "the recipe of outputs/tiny has changed, and iterations/001/policy depends on it (trainer.batch_size)"
    assert checked.returncode == 0 and f"  warning: raft run will refuse this: {words}" in checked.stdout
    assert "will refuse" not in worlds.raft(tmp_path, "check", "recipe.yaml", "iterations=3").stdout
    refused = worlds.raft(tmp_path, "run", "recipe.yaml", "--seeds", "0,1", "trainer.batch_size=4", "iterations=3")
    assert refused.returncode == 2 and words in refused.stderr
    for command in (
        "raft resume outputs/tiny --from-iteration 1 trainer.batch_size=4 iterations=3\n",
        "raft run recipe.yaml trainer.batch_size=4 iterations=3 name=tiny-2 --seeds 0,1\n",
        "raft run recipe.yaml trainer.batch_size=4 iterations=3 --restart\n",
    ):
        assert f"  {command}" in refused.stderr, command
