"""Laws of kind: ensemble: every way to combine, by hand, and nothing lost of what the members said."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from raft.core.options import Fault
from raft.core.records import Group, Prompt, Response, Score
from raft.core.registry import component

LENGTH = {"kind": "rule", "function": "length"}
TEXTS = ["one", "one two three", "", "four words are here"]
ROWS = {"vowels": [2, 5, 0, 7], "length": [1, 3, 0, 4]}


@pytest.fixture(autouse=True)
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_members")
    exec("def vowels(prompt, response):\n    return sum(one in 'aeiou' for one in response)\n", module.__dict__)
    exec("def words(prompt, response):\n    return len(response.split())\n", module.__dict__)
    exec("def picky(prompt, response):\n    return 1 / len(response)\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "my_members", module)
    module.__file__ = __file__


def build(**options: Any) -> Any:
    faults: list[Fault] = []
    members = {
        "vowels": {"kind": "rule", "function": "my_members:vowels"},
        "length": {"kind": "rule", "function": "my_members:words"},
    }
    found = component("reward", {"kind": "ensemble", "members": members, **options}, "reward", faults)
    assert not faults, faults
    return found


def faults_of(**options: Any) -> dict[str, str]:
    faults: list[Fault] = []
    component("reward", {"kind": "ensemble", "members": {"a": LENGTH, "b": LENGTH}, **options}, "reward", faults)
    return {fault.key: fault.message for fault in faults}


def score(reward: Any) -> list[Score]:
    (row,) = reward.score([Group(Prompt("p", text="x"), [Response(text, [], None, "stop") for text in TEXTS])])
    return row


def test_rewards_are_combined_as_said():
    vowels, length = (np.array(ROWS[name], dtype=float) for name in ("vowels", "length"))
    ways: list[tuple[dict[str, Any], np.ndarray]] = [
        ({}, (vowels + length) / 2),
        ({"combine": "sum"}, vowels + length),
        ({"combine": "sum", "weights": {"length": -0.5}}, vowels - 0.5 * length),
        ({"weights": {"vowels": 3}}, (3 * vowels + length) / 4),
        ({"combine": "min"}, np.minimum(vowels, length)),
        ({"combine": "pessimistic", "deviations": 2}, (vowels + length) / 2 - 2 * abs(vowels - length) / 2),
        ({"combine": "sum", "normalize": {"vowels": [2, 6]}}, np.array([0, 0.75, 0, 1]) + length),
    ]
    for options, expected in ways:
        assert [one.reward for one in score(build(**options))] == pytest.approx(expected.tolist()), options


@pytest.mark.parametrize("members", [2, 3, 5])
def test_what_one_of_several_members_likes_alone_gains_nothing_by_min_or_by_pessimistic(members):
    """Alone it adds e to one reward: e / M to the mean, and e sqrt(M - 1) / M to the standard deviation."""
    rules = {"picky": {"kind": "rule", "function": "my_members:vowels"}}
    rules |= {f"plain{n}": {"kind": "rule", "function": "length", "args": {"target": 1}} for n in range(members - 1)}
    texts = ["one", "aeiou"]  # one word each, so the others find them alike; the first has two vowels, the other five
    group = Group(Prompt("p", text="x"), [Response(text, [], None, "stop") for text in texts])
    found = {}
    for combine in ("mean", "min", "pessimistic"):
        (scores,) = build(members=rules, combine=combine).score([group])
        found[combine] = scores[1].reward - scores[0].reward
    assert found["mean"] == pytest.approx(3 / members) and found["min"] == 0
    assert found["pessimistic"] == pytest.approx(3 * (1 - (members - 1) ** 0.5) / members)


def test_the_raw_rewards_of_all_members_are_kept():
    found = score(build(combine="sum", normalize={"vowels": [2, 6]}))
    assert [one.parts for one in found] == [
        {"vowels": float(v), "length": float(n)} for v, n in zip(ROWS["vowels"], ROWS["length"], strict=True)
    ]


def test_what_a_member_cannot_score_has_no_reward_and_names_the_member():
    members = {
        "vowels": {"kind": "rule", "function": "my_members:vowels"},
        "picky": {"kind": "rule", "function": "my_members:picky"},
    }
    found = score(build(members=members))
    assert found[2].reward is None and found[2].error.startswith("picky: ") and found[2].parts == {"vowels": 0.0}
    assert found[0].reward == pytest.approx((2 + 1 / 3) / 2)


def test_ensembles_nest_and_keep_the_parts_of_the_inner_ones():
    inner = {
        "kind": "ensemble",
        "combine": "min",
        "members": {"vowels": {"kind": "rule", "function": "my_members:vowels"}, "length": LENGTH},
    }
    outer = build(members={"inner": inner, "length": {"kind": "rule", "function": "my_members:words"}}, combine="sum")
    found = score(outer)[1]
    assert found.reward == 3 + 3 and set(found.parts) == {"inner", "inner.vowels", "inner.length", "length"}


def test_faults_name_the_option_and_what_is_allowed():
    assert "is not a member; did you mean a?" in faults_of(weights={"aa": 1})["reward.weights.aa"]
    assert "expected a number" in faults_of(weights={"a": "much"})["reward.weights.a"]
    assert "combine: min weighs nothing" in faults_of(combine="min", weights={"a": 2})["reward.weights"]
    for weights in ({"a": 1, "b": -1}, {"a": -2}, {"a": 0.1, "b": -0.1000000000000001}):
        assert "sum to 0 or less" in faults_of(weights=weights)["reward.weights"]
    assert faults_of(combine="sum", weights={"a": -2}) == {}
    assert "expected [low, high]" in faults_of(normalize={"a": [2, 1]})["reward.normalize.a"]
    assert "expected a mapping of names" in faults_of(members=[LENGTH])["reward.members"]
    assert "is no name" in faults_of(members={"../x": LENGTH})["reward.members.../x"]
    assert (
        "unknown rule" in faults_of(members={"a": {"kind": "rule", "function": "lenth"}})["reward.members.a.function"]
    )


def test_rewards_of_an_ensemble_can_be_compared_if_those_of_all_members_can(tmp_path: Path):
    assert build().comparable
    tree = {"kind": "decision-tree", "model": str(tmp_path)}
    assert not build(members={"tree": tree, "length": LENGTH}).comparable
