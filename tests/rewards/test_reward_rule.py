"""Laws of kind: rule and of the built-in rules."""

import math
from typing import Any

import pytest

from raft.core import registry
from raft.core.errors import Stopped
from raft.core.options import Fault
from raft.core.records import Group, Prompt, Response, Score
from raft.rewards.rule import Rule

HERE = __name__


def polite(prompt: Prompt, response: str, word: str = "please") -> bool:
    return word in response


def needy(prompt: Prompt, response: str, *, weight: float) -> float:
    return weight


def parted(prompt: Prompt, response: str) -> dict[str, float]:
    return {"reward": 3, "greeting": 1, "kind": True}


def oddly(prompt: Prompt, response: str) -> Any:
    """What the response spells, as Python."""
    return eval(response, {"stop": _stop, "math": math})  # of texts written in this file


def _stop(what: type[BaseException]) -> None:
    raise what("line one\nline two")


def lonely(prompt: Prompt) -> float:
    return 0.0


def score(rule: Rule, *texts: str, **meta: Any) -> list[Score]:
    group = Group(Prompt("p", text="?", meta=meta), [Response(text, [], None, "stop") for text in texts])
    return next(rule.score([group]))


def rewards(function: str, *texts: str, meta: dict[str, Any] | None = None, **args: Any) -> list[float | None]:
    return [one.reward for one in score(Rule(function=function, args=args), *texts, **meta or {})]


def faults(**options: Any) -> dict[str, str]:
    found: list[Fault] = []
    registry.component("reward", {"kind": "rule", **options}, "reward", found)
    return {fault.key: fault.message for fault in found}


def test_scores_stand_in_the_order_of_groups_and_responses():
    said = [[], ["w"], ["w w", "w w w"]]
    groups = [Group(Prompt("p", text=""), [Response(text, [], None, "stop") for text in row]) for row in said]
    assert [[one.reward for one in row] for row in Rule(function="length").score(groups)] == [[], [1], [2, 3]]


def test_a_rule_of_the_users_own_gets_its_arguments():
    assert rewards(f"{HERE}:polite", "yes please", "yes") == [1.0, 0.0]
    assert rewards(f"{HERE}:polite", "yes please", "yes", word="yes") == [1.0, 1.0]
    assert rewards(f"{HERE}:needy", "x", weight=2) == [2.0]


def test_a_dict_of_numbers_keeps_its_parts():
    assert score(Rule(function=f"{HERE}:parted"), "x") == [Score(3.0, {"greeting": 1.0, "kind": 1.0})]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("math.nan", "ValueError: reward is nan, not a finite number"),
        ("-math.inf", "ValueError: reward is -inf, not a finite number"),
        ("None", "TypeError: reward is None, not a number"),
        ("'1'", "TypeError: reward is '1', not a number"),
        ("{}", "ValueError: the rule returned nothing, but no reward"),
        ("{'a': 1}", "ValueError: the rule returned a, but no reward"),
        ("{'reward': 1, 'a': math.nan}", "ValueError: a is nan, not a finite number"),
        (
            r"{'reward': 1, '\ud800': 2}",
            r"ValueError: '\ud800', a name in what the rule returned, holds half a character",
        ),
    ],
)
def test_what_is_no_number_is_an_error_and_never_a_reward(text: str, error: str):
    assert score(Rule(function=f"{HERE}:oddly"), "1", text, "2") == [Score(1.0), Score(None, error=error), Score(2.0)]


@pytest.mark.parametrize(("text", "error"), [("1/0", "division by zero"), ("stop(ValueError)", "line one")])
def test_what_a_rule_raises_is_told_in_one_line_with_its_place(text: str, error: str):
    said = score(Rule(function=f"{HERE}:oddly"), text)[0].error or ""
    assert f"Error: {error} (test_reward_rule.py, line " in said


def test_an_error_keeps_at_most_200_characters():
    assert len(score(Rule(function=f"{HERE}:oddly"), "{}['" + "x" * 1000 + "']")[0].error or "") == 200


def test_a_stop_is_not_a_score():
    with pytest.raises(Stopped):
        score(Rule(function=f"{HERE}:halting"), "x")


def halting(prompt: Prompt, response: str) -> float:
    raise Stopped


def test_a_sound_rule_has_no_faults():
    assert faults(function=f"{HERE}:polite", args={"word": "thanks"}) == {}
    assert faults(function="exact_answer", args={"pattern": r"= (\d+)"}) == {}
    assert faults(function="math:hypot") == {}


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"function": "lenght"}, "function", "did you mean length?"),
        ({"function": f"{HERE}:polit"}, "function", "did you mean polite?"),
        ({"function": "no_such_module:f"}, "function", "cannot import no_such_module"),
        ({"function": f"{HERE}:HERE"}, "function", "not a function"),
        ({"function": f"{HERE}:lonely"}, "function", "called with a prompt and a response"),
        ({"function": f"{HERE}:polite", "args": {"wrod": "x"}}, "args.wrod", "did you mean word?"),
        ({"function": f"{HERE}:polite", "args": {"prompt": "x"}}, "args.prompt", "no such argument"),
        ({"function": f"{HERE}:needy"}, "args.weight", "missing"),
        ({"function": "regex"}, "args.pattern", "missing"),
        ({"function": "regex", "args": {"pattern": "("}}, "args.pattern", "not a regular expression"),
        ({"function": "exact_answer", "args": {"pattern": 3}}, "args.pattern", "not a regular expression"),
        ({"function": "length", "args": {"unit": "word"}}, "args.unit", "did you mean words?"),
        ({"function": "length", "args": {"target": "ten"}}, "args.target", "whole number of at least 0"),
        ({"function": "repetition", "args": {"n": 0}}, "args.n", "whole number of at least 1"),
    ],
)
def test_a_faulty_rule_is_found_before_anything_starts(options: dict[str, Any], key: str, message: str):
    found = faults(**options)
    assert list(found) == [f"reward.{key}"]
    assert message in found[f"reward.{key}"]


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        (3, "So it is 3.0", 1), ("3", "3 apples and 4 pears", 0), ("4", "3 apples and 4 pears.", 1),
        ("1,234.50", "The sum is $1234.5.", 1), (1234, "1,234", 1), (2, "1,2", 1), (5, "10-5", 1), (-5, "it is -5", 1),
        (-5, "it is −5", 1), (0.5, ".5", 1), (1000, "1e3", 1), (7, "seven", 0), (7, "", 0),
        ("Paris", "Let me think.\n  paris \n", 1), ("Paris", "Paris, of course", 0), ("Paris", "", 0), ("３", "3", 1),
    ],
)  # fmt: skip
def test_exact_answer_compares_the_last_number_or_line(answer: Any, response: str, reward: float):
    assert rewards("exact_answer", response, meta={"answer": answer}) == [reward]


def test_exact_answer_takes_the_first_group_of_the_last_match():
    meta = {"label": "B"}
    texts = ("Answer: A. Answer: b, not C", "Answer: B. Answer: A", "B")
    assert rewards("exact_answer", *texts, meta=meta, field="label", pattern=r"Answer: (\w)") == [1, 0, 0]
    assert rewards("exact_answer", "b", meta=meta, field="label", pattern=r"\w", ignore_case=False) == [0]


def test_exact_answer_names_a_missing_reference():
    (found,) = score(Rule(function="exact_answer"), "3", anwser=3)
    assert found.reward is None
    assert "prompt p has no meta field 'answer'; did you mean anwser?" in found.error


def test_regex_is_one_where_it_matches():
    assert rewards("regex", "<b>bold</b>", "plain", pattern="<b>.*</b>") == [1.0, 0.0]


def test_length_counts_words_or_characters_or_the_distance_to_a_target():
    assert rewards("length", "one two  three", "") == [3, 0]
    assert rewards("length", "one two", "one two three four", target=3) == [-1, -1]
    assert rewards("length", "abcd", unit="characters", target=0) == [-4]


def test_repetition_is_minus_the_share_of_n_grams_said_before():
    assert rewards("repetition", "a b c d e", "a b", "", n=3) == [0, 0, 0]
    assert rewards("repetition", "a a a a a", n=2) == [-0.75]
    assert rewards("repetition", "a b c a b c", n=3) == [-0.25]


def test_the_arguments_of_a_rule_are_in_its_record():
    found: list[Fault] = []
    rule = registry.component("reward", {"kind": "rule", "function": "repetition", "args": {"n": 2}}, "reward", found)
    assert rule == Rule(function="repetition", args={"n": 2}) and not found
