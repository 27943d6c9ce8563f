"""`raft check --measure`: what has yet to be made is asked for, and what is there is measured, whatever the job."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import worlds
import yaml
from folders import stamp
from reward_models import SIZE, save

from raft.cli import commands
from raft.core.errors import UserError

RULE = {"kind": "rule", "function": "length"}
TRAINER = {"kind": "reward-model"}
JUDGE = {"kind": "model", "recipe": "judge.yaml", "template": "plain"}
GIVEN = {"path": "responses.jsonl"}


def write(folder: Path, name: str, /, **recipe: Any) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "name": name}, sort_keys=False))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that raft is called in: recipes that make a policy, pairs and a reward model, none of them run."""
    worlds.make_recipe(tmp_path)
    row = {"prompt_id": "p", "text": "the red ", "responses": [{"text": "fox"}, {"text": "old owl"}]}
    (tmp_path / "responses.jsonl").write_text(json.dumps(row) + "\n")
    pair = {"kind": "list", "items": [{"prompt": "a", "response": "b"}]}
    policy = {"config": worlds.TINY, "vocab_size": "${variables.pieces}"}
    write(
        tmp_path, "speaker", job="sft", policy=policy, examples=pair, trainer={"kind": "sft"}, variables={"pieces": 9}
    )
    write(tmp_path, "pairs", job="label", responses=GIVEN, reward=RULE)
    examples = {"kind": "file", "recipe": "pairs.yaml", "pairs": "columns", "held_out": 1}
    write(tmp_path, "judge", job="reward-model", policy={"model": "base"}, examples=examples, trainer=TRAINER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def aligned(folder: Path, **sections: Any) -> None:
    write(folder, "aligned", **{**yaml.safe_load((folder / "recipe.yaml").read_text()), **sections})


def measured(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    commands.check(Namespace(recipe=f"{name}.yaml", overrides=[], measure=True, gpu=None))
    return capsys.readouterr().out


def test_a_policy_that_another_recipe_has_yet_to_make_is_asked_for_in_one_sentence(world: Path):
    aligned(world, policy={"recipe": "speaker.yaml"}, variables={"pieces": 300})
    done = worlds.raft(world, "check", "aligned.yaml", "--measure")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr == (
        "raft: outputs/speaker/policy is not made yet, so nothing can be measured with it; "
        "run this first: raft run speaker.yaml variables.pieces=300\n"
    )


NEEDING = {
    "policy": ({"policy": {"recipe": "speaker.yaml"}}, "speaker"),
    "prompts": (
        {"prompts": {"kind": "file", "recipe": "pairs.yaml", "per_iteration": 1, "max_prompt_length": 9}},
        "pairs",
    ),
    "a reward model, which needs pairs itself": (
        {"reward": JUDGE},
        "pairs",
    ),
    "gold": ({"evaluation": {"gold": JUDGE}}, "pairs"),
    "a member": (
        {
            "reward": {
                "kind": "ensemble",
                "members": {"m": JUDGE},
            }
        },
        "pairs",
    ),
}


@pytest.mark.parametrize("case", NEEDING)
def test_whatever_section_names_the_recipe_it_is_asked_for(world: Path, case: str):
    sections, first = NEEDING[case]
    aligned(world, **sections)
    with pytest.raises(UserError, match=rf"is not made yet.* run this first: raft run {first}\.yaml"):
        commands.check(Namespace(recipe="aligned.yaml", overrides=[], measure=True, gpu=None))


def test_of_the_recipes_that_are_needed_those_that_were_run_are_not_asked_for(world: Path):
    aligned(world, reward=JUDGE)
    made = world / "outputs" / "pairs" / "pairs.jsonl"
    made.parent.mkdir(parents=True)
    made.write_text("")
    stamp(made)
    with pytest.raises(UserError, match=r"outputs/judge/reward-model is not made yet.* raft run judge\.yaml"):
        commands.check(Namespace(recipe="aligned.yaml", overrides=[], measure=True, gpu=None))


def test_what_was_half_made_is_asked_for_too(world: Path):
    aligned(world, policy={"recipe": "speaker.yaml"})
    (world / "outputs" / "speaker" / "policy").mkdir(parents=True)
    (world / "outputs" / "speaker" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="outputs/speaker/policy is not made yet"):
        commands.check(Namespace(recipe="aligned.yaml", overrides=[], measure=True, gpu=None))


def test_pairs_that_rewards_are_to_be_compared_on_are_asked_for(world: Path):
    sets = {"own": {"kind": "file", "recipe": "pairs.yaml", "pairs": "columns"}}
    write(world, "compared", job="evaluate-reward", rewards={"length": RULE}, sets=sets)
    with pytest.raises(UserError, match=r"outputs/pairs/pairs\.jsonl is not made yet"):
        commands.check(Namespace(recipe="compared.yaml", overrides=[], measure=True, gpu=None))


def test_a_reward_model_that_labels_given_responses_is_examined_with_their_prompts(world: Path, capsys: Any):
    save(world / "model", "LlamaForSequenceClassification", num_key_value_heads=2, **SIZE)
    write(
        world, "labelled", job="label", responses=GIVEN, reward={"kind": "model", "model": "model", "template": "plain"}
    )
    told = measured("labelled", capsys)
    assert (
        "reward: head: whole, one output (score.weight)\n" in told
        and "reward: room: of 1 prompts with a short answer 0 are too long" in told
    )
    assert "nothing to measure" not in told


def test_what_libraries_log_while_rewards_are_examined_stays_off_the_terminal(world: Path):
    save(world / "model", "LlamaForSequenceClassification", num_key_value_heads=2, **SIZE)
    file = world / "model" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 4}))
    write(
        world, "labelled", job="label", responses=GIVEN, reward={"kind": "model", "model": "model", "template": "plain"}
    )
    done = worlds.raft(world, "check", "labelled.yaml", "--measure")
    assert "reward: head: whole" in done.stdout, done.stderr
    assert "Token indices" not in done.stderr


@pytest.mark.parametrize("name", ["pairs", "speaker", "judge"])
def test_a_job_without_anything_to_measure_says_so(world: Path, capsys: Any, name: str):
    job = yaml.safe_load((world / f"{name}.yaml").read_text())["job"]
    assert measured(name, capsys).splitlines()[-1].startswith(f"nothing to measure: job: {job}")
