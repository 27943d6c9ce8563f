"""What changed in what an artifact was made from is told by the keys of a recipe."""

from pathlib import Path

import pytest
import worlds

from raft.store.changes import told

SFT = {"is": "trainer/sft", "learning_rate": 1.0}


@pytest.mark.parametrize(
    ("place", "stage", "old", "new", "said"),
    [
        ("iterations/001/policy", "train", SFT, {**SFT, "lora": {}}, ["trainer.lora: was not given, is {}"]),
        ("iterations/001/policy", "train", SFT, {**SFT, "is": "trainer/dpo"}, ["trainer.kind: was 'sft', is 'dpo'"]),
        (
            "iterations/001/policy", "train", {"is": "own:Trainer", "code": "1"}, {"is": "own:Trainer", "code": "2"},
            ["trainer.kind: the source of own.py (own:Trainer) changed"],
        ),
        (
            "iterations/001/scores.jsonl", "score", {"function": {"name": "a.b:f", "code": "1"}},
            {"function": {"name": "a.b:f", "code": "2"}}, ["reward.function: the source of a/b.py (a.b:f) changed"],
        ),
        (
            "iterations/001/evaluation/gold.jsonl", "score", {"function": {"name": "a:f", "code": "1"}},
            {"function": {"name": "a:g", "code": "1"}}, ["evaluation.gold.function: was 'a:f', is 'a:g'"],
        ),
        ("pool.jsonl", "collect", {"path": "sha256:1"}, {"path": "sha256:2"}, ["prompts.path: has other content"]),
        ("sets/a/pairs.jsonl", "load_examples", {"limit": 1}, {"limit": 2}, ["sets.a.limit: was 1, is 2"]),
        ("sets/a/scores/b.jsonl", "score", {"head": 1}, {"head": 2}, ["rewards.b.head: was 1, is 2"]),
        ("iterations/000/evaluation/responses.jsonl", "generate", {"k": 2}, {"k": 4}, ["evaluation.k: was 2, is 4"]),
        ("a.jsonl", "my_stage", {"k": 2}, {"k": 4}, ["section.k: was 2, is 4"]),
    ],
)  # fmt: skip
def test_a_change_is_told_by_the_recipes_key_and_a_source_by_its_file(place, stage, old, new, said):
    keys = ({"stage": stage, "section": section, "inputs": {}} for section in (old, new))
    assert list(told(Path("outputs/run") / place, *keys)) == said


@pytest.mark.parametrize(
    ("old", "new"), [({"is": "a/b"}, {"is": "c/b"}), ({"code": "1"}, {"code": "2"}), ({"name": "x", "code": "1"}, {})]
)
def test_no_change_goes_untold(old, new):
    keys = ({"stage": "score", "section": {"is": "reward/rule", "args": args}} for args in (old, new))
    assert list(told(Path("outputs/run/iterations/001/scores.jsonl"), *keys))


def test_a_refusal_names_the_function_whose_source_changed_and_the_number_of_held_out_prompts(tmp_path):
    worlds.make_recipe(tmp_path, iterations=1, evaluation={"count": 4, "gold": None, "kl": False})
    assert worlds.raft(tmp_path, "run", "recipe.yaml").returncode == 0
    refused = worlds.raft(tmp_path, "run", "recipe.yaml", "evaluation.count=5")
    assert "evaluation.jsonl depends on it (evaluation.count)" in refused.stderr
    (tmp_path / "letters.py").write_text("# another line\n" + (tmp_path / "letters.py").read_text())
    refused = worlds.raft(tmp_path, "run", "recipe.yaml", "iterations=2")
    assert "  reward.function: the source of letters.py (letters:share) changed\n" in refused.stderr
