"""What stands beside the recipes that we ship: the rule of GSM8K, the rows of HH-RLHF, products made from a seed."""

import json
from pathlib import Path

import pytest

from raft.core.records import Prompt
from raft.core.user_code import importable_from, module

RECIPES = Path(__file__).parents[2] / "recipes"

with importable_from(RECIPES / "qwen3-1.7b-gsm8k.yaml"):
    gsm8k_rules, hh_rlhf, arithmetic_prompts = map(module, ("gsm8k_rules", "hh_rlhf", "arithmetic_prompts"))

SOLUTION = "Each of the 6 boxes holds 12 pens.\nSo there are 6 * 12 = <<6*12=72>>72 pens.\n#### 72"
TURNS = "\n\nHuman: Hello\n\nAssistant: Good day.\n\nHuman: How are you?\n\nAssistant:"


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("6 * 12 is 72.", 1.0),
        ("The answer is $72.00", 1.0),
        ("<think>\n\n</think>\n\n\\boxed{72}", 1.0),
        ("72 pens, and 3 more make 75", 0.0),
        ("I do not know.", 0.0),
        ("", 0.0),
    ],
)
def test_a_response_is_right_if_its_last_number_is_the_one_behind_the_mark(response, reward):
    assert gsm8k_rules.correct(Prompt("q", text="?", meta={"answer": SOLUTION}), response) == reward


def test_a_large_answer_is_read_by_its_value():
    asked = Prompt("q", text="?", meta={"answer": "It adds up.\n#### 1,450"})
    assert gsm8k_rules.correct(asked, "That makes 1450.") == gsm8k_rules.correct(asked, "That makes 1,450.0") == 1.0


def test_a_solution_without_the_mark_has_no_reward():
    with pytest.raises(ValueError, match="prompt q has no ####"):
        gsm8k_rules.correct(Prompt("q", text="?", meta={"answer": "72"}), "72")


def test_the_markers_of_the_data_set_become_those_of_the_reward_model():
    assert hh_rlhf.marked(TURNS) == "###Human: Hello###Assistant: Good day.###Human: How are you?###Assistant:"


@pytest.mark.parametrize("kind", ["Prompts", "Examples"])
def test_every_row_of_the_data_set_is_marked_and_keeps_its_other_columns(tmp_path, kind):
    row = {"prompt": TURNS, "response": " Well.", "chosen": " Well.", "rejected": " Bad."}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    ((place, found),) = getattr(hh_rlhf, kind)(dataset=str(tmp_path)).rows()
    assert place.endswith("train[0]")
    assert found == {**row, "prompt": hh_rlhf.marked(TURNS)}


def test_products_are_right_have_their_digits_and_depend_on_the_seed_alone():
    def asked(seed):
        return [row for _, row in arithmetic_prompts.Products(count=50, digits=3, seed=seed).rows()]

    for row in asked(0):
        one, other = (int(word) for word in row["prompt"].strip("?").split() if word.isdigit())
        assert 100 <= min(one, other) <= max(one, other) <= 999 and one * other == row["answer"]
    assert asked(0) == asked(0) != asked(1)
