"""What own kinds and rules of a user may do: whatever breaks a contract is one sentence with the name of the class."""

import functools
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raft.core import protocols, user_code
from raft.core.errors import UserError
from raft.core.records import Group, Policy, Prompt, Response, Score
from raft.pipeline import selection
from raft.rewards.rule import Rule
from raft.store import keys

HERE = __name__
RESPONSES = [Response("one", [1], None, "stop"), Response("three", [2, 3], None, "stop")]
GROUPS = [Group(Prompt(f"p{n}", text="?", meta={"n": n}), RESPONSES) for n in range(2)]


@dataclass(frozen=True)
class Odd:
    """A reward that yields what its test says, and has nothing but the method that it must have."""

    yields: Any

    def score(self, groups: Iterable[Group]) -> Iterator[Any]:
        return iter(self.yields)


@pytest.mark.parametrize(
    ("yields", "says"),
    [
        ([[Score(1.0)]] * 2, "one score to each response"),
        ([[Score(1.0)] * 5] * 2, "one score to each response"),
        ([[Score(float("nan"))] * 2] * 2, "finite numbers"),
        ([[Score(float("inf"))] * 2] * 2, "finite numbers"),
        ([[Score(1e308)] * 2] * 2, "finite numbers"),
        ([[Score("x")] * 2] * 2, "finite numbers"),
        ([[Score(None)] * 2] * 2, "None and an error"),
        ([[Score(1.0, {"part": float("nan")})] * 2] * 2, "finite numbers"),
        ([[1.0, 2.0]] * 2, "a list of raft.core.records.Score"),
        ([None, None], "a list of raft.core.records.Score"),
        ([], "a list of raft.core.records.Score"),
        ([[Score(1.0)] * 2] * 3, "then ends"),
        (5, "TypeError"),
    ],
)
def test_scores_that_break_the_contract_name_the_class(yields: Any, says: str):
    with pytest.raises(UserError, match=f"{HERE}:Odd .*{says}"):
        list(protocols.scored(Odd(yields), GROUPS))


def test_scores_become_plain_floats():
    found = list(protocols.scored(Odd([[Score(np.float32(0.5)), Score(None, error="no")]] * 2), GROUPS))
    assert found[0][1] == [Score(0.5), Score(None, error="no")]
    assert type(found[0][1][0].reward) is float


@pytest.mark.parametrize("fault", [RuntimeError("oh"), SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_an_own_kind_raises_is_told_with_class_file_and_line(fault: BaseException):
    def raising() -> Iterator[Any]:
        raise fault
        yield

    with pytest.raises(UserError, match=rf"{HERE}:Odd raised {type(fault).__name__}.*test_protocols.py, line \d+"):
        list(protocols.scored(Odd(raising()), GROUPS))


@dataclass(frozen=True)
class Answering:
    """A generator that makes its groups by a function of the prompt."""

    make: Any
    k: int = 2

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Any]:
        for prompt in prompts:
            yield from self.make(prompt)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda prompt: [], "answers every prompt"),
        (lambda prompt: ["x"], "raft.core.records.Group"),
        (lambda prompt: [Group(prompt, RESPONSES)] * 2, "one raft.core.records.Group for each prompt"),
        (lambda prompt: [Group(Prompt("other", text=""), RESPONSES)], "one raft.core.records.Group for each prompt"),
        (lambda prompt: [Group(prompt, RESPONSES[:1])], "k = 2"),
        (lambda prompt: [Group(prompt, [*RESPONSES[:1], None])], "k = 2"),
        (lambda prompt: [Group(prompt, [Response("x", [-1], None, "stop")] * 2)], "k = 2"),
        (lambda prompt: [Group(prompt, [Response("x", [1], [0.0, 0.0], "stop")] * 2)], "k = 2"),
        (lambda prompt: [Group(prompt, [Response("x", [1], [float("nan")], "stop")] * 2)], "k = 2"),
    ],
)
def test_answers_that_break_the_contract_name_the_class(make: Any, says: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"{HERE}:Answering .*{says}"):
        list(protocols.answers(Answering(make), Policy(tmp_path, tmp_path), (one.prompt for one in GROUPS), 0))


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (([1, 0], [0]), "one length"),
        (([0], [-1]), "out of range"),
        (([99], [0]), "out of range"),
        (([0.0], [0.0]), "whole numbers"),
        (([1], [1]), "not eligible"),
        (([0, 1], [1, 0]), None),
    ],
)
def test_picks_are_places_in_range_that_are_eligible(places: Any, says: str | None):
    groups, responses = map(np.array, places)
    picks = selection.Picks(groups, responses, np.ones(len(groups)), None, {})
    found = selection.broken(picks, np.array([[1.0, 2.0], [3.0, np.nan]]))
    assert found is None if says is None else says in str(found)


def vandal(prompt: Prompt, response: str) -> float:
    os.chdir("/")
    sys.stdout = sys.stderr = None  # type: ignore[assignment]
    prompt.meta.clear()
    sys.setrecursionlimit(400)
    if os.fork() == 0:
        return 0.0  # the child goes no further than the end of the group
    os.wait()
    return 1.0


def test_a_rule_changes_nothing_outside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    streams, deepest = (sys.stdout, sys.stderr), sys.getrecursionlimit()
    assert [len(one) for one in Rule(function=f"{HERE}:vandal").score(GROUPS)] == [2, 2]
    assert Path.cwd() == tmp_path and (sys.stdout, sys.stderr) == streams
    assert sys.getrecursionlimit() == deepest
    assert [one.prompt.meta for one in GROUPS] == [{"n": 0}, {"n": 1}]


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Own(BaseException):
    pass


def raising(prompt: Prompt, response: str) -> float:
    raise {"one": Speechless(), "three": Own("\ud800")}[response]


def test_an_error_of_any_class_and_message_is_the_error_of_a_response():
    first, second = next(Rule(function=f"{HERE}:raising").score(GROUPS[:1]))
    assert first.reward is None and "Speechless: (its message cannot be read) (test_protocols.py, line" in first.error
    assert second.reward is None and "Own: \\ud800 (test_protocols.py, line" in second.error


def interrupting(prompt: Prompt, response: str) -> float:
    raise KeyboardInterrupt


def test_a_rule_that_interrupts_itself_stops_with_one_sentence():
    with pytest.raises(UserError, match=r"the rule raised KeyboardInterrupt.*test_protocols.py, line \d+"):
        next(Rule(function=f"{HERE}:interrupting").score(GROUPS))


def adding(more: float, prompt: Prompt, response: str) -> float:
    return more + len(response)


class Counting:
    def __call__(self, prompt: Prompt, response: str) -> float:
        return float(len(response))


partial, counting, largest = functools.partial(adding, 1.0), Counting(), max
exec("def made(prompt, response): return 1.0")


@pytest.mark.parametrize("name", ["adding", "partial", "counting", "largest", "made"])
def test_the_key_of_a_rule_holds_the_file_that_names_it(name: str):
    described = keys.describe(Rule(function=f"{HERE}:{name}"))["function"]
    import hashlib

    assert described == {
        "name": f"{HERE}:{name}", "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    }  # fmt: skip


def test_the_key_holds_what_was_imported_and_not_what_the_file_says_now(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rule_that_changes.py"
    file.write_text("def f(prompt, response): return 1.0\n")
    with user_code.importable_from(tmp_path / "r.yaml"):
        rule = Rule(function="rule_that_changes:f")
        before = keys.describe(rule)
        assert next(rule.score(GROUPS[:1]))[0].reward == 1.0
        file.write_text("def f(prompt, response): return 2.0\n")
        assert keys.describe(rule) == before
        assert next(rule.score(GROUPS[:1]))[0].reward == 1.0
        del sys.modules["rule_that_changes"]
        assert next(rule.score(GROUPS[:1]))[0].reward == 2.0  # no bytecode of the same second and size is used
        assert keys.describe(rule) != before


def test_files_beside_a_recipe_are_seen_by_those_that_it_names_alone(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named_by_a_recipe.py").write_text(
        "def f():\n    import beside_it.inner\n    return beside_it.inner.x\n"
    )
    (tmp_path / "beside_it").mkdir()
    (tmp_path / "beside_it" / "__init__.py").write_text("")
    (tmp_path / "beside_it" / "inner.py").write_text("x = 5\n")
    with user_code.importable_from(tmp_path / "r.yaml"):
        with pytest.raises(ImportError):
            __import__("named_by_a_recipe")
        found = user_code.module("named_by_a_recipe")
        with pytest.raises(ImportError):
            __import__("never_named")
    with user_code.importable_from(tmp_path / "r.yaml"):  # as in the run, after the recipe was loaded
        assert user_code.module("named_by_a_recipe") is found
        assert found.f() == 5  # imported when it is called
    for name in ("named_by_a_recipe", "beside_it", "beside_it.inner"):
        del sys.modules[name]


def test_files_of_one_name_beside_two_recipes_are_two_modules(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same_name.py").write_text(f"def f(prompt, response): return {len(name)}.0\n")
    hashes = []
    for name in ("first", "second", "first"):
        (folder := tmp_path / name).touch()
        with user_code.importable_from(folder / "r.yaml"):
            rule = Rule(function="same_name:f")
            assert next(rule.score(GROUPS[:1]))[0].reward == len(name)
            hashes.append(keys.describe(rule)["function"]["code"])
    assert hashes[0] == hashes[2] != hashes[1]
    del sys.modules["same_name"]
