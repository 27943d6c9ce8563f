"""The laws of a judge's verdicts and questions, with no engine_args: brute force on the other side."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from raft.core.errors import UserError
from raft.metrics import ranking
from raft.rewards.judge.judge import prompts, verdicts
from raft.rewards.judge.verdicts import Outcome, Verdict, grade, outcome, preference

DEFAULT = r"\[\[(-?\d+(?:\.\d+)?)\]\]"


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("[[A]]", "A"),
        ("A is fine, yet [[B]]", "B"),
        ("[[C]]\n", "C"),
        ("[[A]] or [[B]]? Say [[A]] if A... so: [[B]].", "B"),
        ("[[B]] [[A]", "B"),
        ("[[D]]", None),
        ("[[a]]", "A"),
        ("[A]", None),
        ("[[ A ]]", "A"),
        ("［［B］］", "B"),
        ("[[A>B]]", "A"),
        ("[[A>>B]]", "A"),
        ("[[B > A]] and not [[A>B]] but [[B>>A]]", "B"),
        ("[[A<B]]", "B"),
        ("[[A=B]]", "C"),
        ("[[Tie]]", "C"),
        ("[[A>A]]", None),
        ('{"reason": "x", "verdict": "A"}', "A"),
        ('```json\n{"winner" : "b"}\n```', "B"),
        ('{"verdict": "tie"}', "C"),
        ('{"verdict": "none"}', None),
        ('[[A]] at first, then {"verdict": "B"}', "B"),
        ("", None),
        ("A", None),
    ],
)
def test_the_last_bracketed_verdict_counts(text, verdict):
    assert preference(text) == verdict


@pytest.mark.parametrize(
    "text, pattern, number",
    [
        ("so [[7]]", DEFAULT, 7.0),
        ("[[3]], no: [[2.5]]", DEFAULT, 2.5),
        ("[[10]]", DEFAULT, 10.0),
        ("[[11]]", DEFAULT, None),
        ("[[0.5]]", DEFAULT, None),
        ("[[8]] but rather [[99]]", DEFAULT, None),
        ("[[-1]]", DEFAULT, None),
        ("7", DEFAULT, None),
        ("", DEFAULT, None),
        ("Good.\nOverall Score: 8", r"Overall Score: (\d+(?:\.\d+)?)", 8.0),
        ("8.5\nA thorough answer, not a 3.", r"^\s*(\d+(?:\.\d+)?)", 8.5),
        ("Overall Score: nan", r"Overall Score: (\w+)", None),
        ("Overall Score: inf", r"Overall Score: (\w+)", None),
        ("Overall Score: ten", r"Overall Score: (\w+)", None),
    ],
)
def test_the_last_number_in_range_counts(text, pattern, number):
    assert grade(text, pattern, 1, 10) == number


def test_only_what_is_said_in_both_orders_is_a_preference():
    for first, second in product(["A", "B", "C", None], repeat=2):
        found = outcome(Verdict(first, "why"), Verdict(second, "why"))
        likes = {"A": ("one", "other"), "B": ("other", "one")}  # who was shown as A the first and the second time
        chosen = [likes[v][n] if v in likes else v for n, v in enumerate([first, second])]
        if None in chosen:
            assert found == Outcome("no_verdict", "why")
        elif chosen == ["one", "one"]:
            assert found.kind == "wins"
        elif chosen == ["other", "other"]:
            assert found.kind == "losses"
        elif "C" in chosen:
            assert found.kind == "no_preference"
        else:
            assert found.kind == "biased" and first == second
        assert outcome(Verdict(second, "why"), Verdict(first, "why")) == found.turned


def brute(places, kinds) -> list[dict | None]:
    """Counts of each response, None where all its comparisons lack a verdict; `kinds` by pairs of texts i < j."""
    rows = []
    for i, one in enumerate(places):
        row = dict.fromkeys(ranking.VERDICTS, 0.0)
        asked = 0
        for j, other in enumerate(places):
            if i == j:
                continue
            if one == other:
                row["no_preference"] += 1
                continue
            asked += 1
            kind = kinds[min(one, other), max(one, other)]
            if one > other:
                kind = {"wins": "losses", "losses": "wins"}.get(kind, kind)
            row[kind] += 1
        rows.append(None if asked and row["no_verdict"] == asked else row)
    return rows


@pytest.mark.parametrize("seed", range(40))
def test_counts_ranks_and_strengths_of_any_group(seed):
    rng = np.random.default_rng(seed)
    texts, count = int(rng.integers(1, 6)), int(rng.integers(2, 8))
    places = list(dict.fromkeys(range(texts))) + list(rng.integers(0, texts, count))
    often = [0.25, 0.25, 0.1, 0.3, 0.1] if seed % 2 else [0.4, 0.3, 0.1, 0.1, 0.1]
    kinds = {pair: str(rng.choice(ranking.VERDICTS, p=often)) for pair in combinations(range(texts), 2)}
    found = verdicts.scores(places, {pair: Outcome(kind, "said no") for pair, kind in kinds.items()})
    rows = brute(places, kinds)
    kept = [i for i, row in enumerate(rows) if row is not None]
    for score, row in zip(found, rows, strict=True):
        assert (score.reward is None) == (score.rank is None) == (row is None) == (score.error is not None)
        if row is None:
            assert "said no" in score.error and score.parts["no_verdict"] > 0
        else:
            assert score.parts == row

    def points(i: int) -> float:  # Copeland: wins and half of all that is no preference, among those that are ranked
        total = 0.0
        for j in kept:
            kind = "no_preference" if places[i] == places[j] else kinds[tuple(sorted((places[i], places[j])))]
            won = kind == ("wins" if places[i] < places[j] else "losses")
            total += (1.0 if won else 0.0 if kind in ("wins", "losses") else 0.5) if i != j else 0.0
        return total

    assert sorted(kept, key=lambda i: (-points(i), i)) == sorted(kept, key=lambda i: found[i].rank)
    assert abs(sum(found[i].reward for i in kept)) < 1e-6
    for i, j in combinations(kept, 2):
        assert points(i) != points(j) or math.isclose(found[i].reward, found[j].reward, abs_tol=1e-6)
        assert points(i) <= points(j) or found[i].reward > found[j].reward


def test_the_champion_is_first_and_the_others_follow_by_what_is_known():
    # 0 beats 1 and 2, 3 beats 0, 4 has no preference against 3, of 5 nothing could be read
    met = {(1, 0): "losses", (2, 0): "losses", (3, 0): "wins", (4, 3): "biased", (5, 3): "no_verdict"}
    found = verdicts.scores(range(6), {pair: Outcome(kind, "mumble") for pair, kind in met.items()}, champion=3)
    assert [score.rank for score in found] == [2, 3, 4, 0, 1, None]
    step = math.log(1.001 / 0.001)  # a sure win with its prior of a thousandth for either side
    known = [found[i].reward - found[3].reward for i in range(5)]
    assert known == pytest.approx([-step, -2 * step, -2 * step, 0, 0], abs=1e-6)
    assert found[5].reward is None and "mumble" in found[5].error
    assert sum(found[0].parts.values()) == 3 and sum(found[1].parts.values()) == 1


def test_a_response_alone_is_not_scored():
    assert verdicts.scores([0], {})[0].reward is None
    assert [score.reward for score in verdicts.scores([0, 0], {})] == [0.0, 0.0]


SHOWN = {"prompt": "PROMPT", "messages": [{"role": "user", "content": "TURN 1"}, {"role": "user", "content": "TURN 2"}]}


def test_our_own_words_show_all_that_is_to_be_judged():
    pair = prompts.write(prompts.PAIRWISE, "p", **SHOWN, a="{{ 7 * 7 }} <one>", b="<two>")
    assert "{{ 7 * 7 }} <one>" in pair and "49" not in pair
    assert pair.index("TURN 1") < pair.index("TURN 2") < pair.index("<one>") < pair.index("<two>")
    assert all(f"[[{letter}]]" in pair for letter in "ABC") and preference(pair) == "C"
    alone = prompts.write(prompts.GRADE, "p", prompt="PROMPT", messages=[], response="three", lowest="1", highest="10")
    assert "PROMPT" in alone and "three" in alone and "from 1 (" in alone and "to 10 (" in alone
    assert not [*prompts.faults(prompts.PAIRWISE, "pairwise"), *prompts.faults(prompts.GRADE, "grade")]


@pytest.mark.parametrize(
    "template, mode, words",
    [
        ("{{ a }} {{ b }} {{ respnse }}", "pairwise", "uses respnse.*allowed: a, b, messages, prompt"),
        ("{{ a }}", "pairwise", "does not use b"),
        ("{{ prompt }}", "grade", "does not use response"),
        ("{{ response }}\n{% if %}", "grade", "line 2"),
    ],
)
def test_faults_of_templates_are_told(template, mode, words):
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(list(prompts.faults(template, mode)))


@pytest.mark.parametrize(
    "template",
    [
        "{{ a.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{% set x = messages.append(1) %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ range(10 ** 9) | list }}",
        "{{ prompt.nothing.at_all }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(template):
    with pytest.raises(UserError, match=r"prompt 7: reward\.template cannot be written"):
        prompts.write(template, "prompt 7", a="one", b="two", **SHOWN)
