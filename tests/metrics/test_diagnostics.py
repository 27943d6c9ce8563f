"""Every figure by hand: rewards, responses and selections that were worked out on paper."""

import math
from typing import Any

import numpy as np
import pytest

from raft.metrics.diagnostics import HeldOut, Responses, Training, figures

NAN = math.nan
REWARDS = np.array([[1.0, 2.0, 6.0], [NAN, 4.0, NAN], [1.0, 5.0, NAN], [NAN, NAN, NAN]])


def responses(lengths: np.ndarray, **known: np.ndarray) -> Responses:
    """Responses whose texts are that many words, none with the text of another."""
    no = np.zeros(lengths.shape, dtype=bool)
    texts = [[" ".join(f"w{row}-{at}-{n}" for n in range(length)) for at, length in enumerate(group)]
             for row, group in enumerate(lengths.tolist())]  # fmt: skip
    flags = {"truncated": no, "empty": no, "duplicate": no, "twin": no, "candidate": no}
    flags |= {"surprise": np.full(lengths.shape, NAN)} | known
    return Responses(ids=[f"p{row}" for row in range(len(lengths))], texts=texts, tokens=lengths, **flags)


def training(rewards: np.ndarray, lengths: np.ndarray, **known: Any) -> dict[str, Any]:
    flags = {name: known.pop(name) for name in ("truncated", "empty", "duplicate", "twin") if name in known}
    nothing = np.array([], dtype=int)
    options = {"picks": (nothing, nothing), "control": nothing, "ranked": False, "dropped": 0} | known
    return figures(Training(rewards=rewards, responses=responses(lengths, **flags), **options))


def test_the_figures_of_training_responses_by_hand():
    lengths = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])
    rewards = np.array([[1.0, 1.0, 4.0], [3.0, 3.0, NAN], [NAN, NAN, NAN], [2.0, NAN, 8.0]])
    found = training(rewards, lengths, truncated=lengths > 9, empty=lengths == 1, duplicate=lengths == 2)
    assert {name: value for name, value in found.items() if name.split("/")[0] in ("reward", "response")} == (
        pytest.approx({
            "reward/mean": (2 + 3 + 5) / 3,
            "reward/best_of_k": (4 + 3 + 8) / 3,
            "reward/headroom": (4 + 3 + 8) / 3 - (2 + 3 + 5) / 3,
            "reward/std_within": (math.sqrt(3) + 0 + math.sqrt(18)) / 3,
            "reward/prompts": 3,
            "reward/failed": 5 / 12,
            "reward/tied": 1 / 4,
            "response/tokens": 6.5,
            "response/truncated": 3 / 12,
            "response/empty": 1 / 12,
            "response/duplicate": 1 / 12,
        })
    )  # fmt: skip


def test_comparisons_of_a_judge_that_decide_nothing_are_shares_of_all():
    lengths, rewards = np.array([[1, 2, 3]]), np.array([[1.0, 0.0, 0.0]])
    counts = {"wins": 3, "losses": 3, "no_preference": 2, "no_verdict": 1, "biased": 6}
    found = training(rewards, lengths, verdicts=counts)
    assert (found["judge/biased"], found["judge/no_verdict"]) == (6 / 15, 1 / 15)
    assert not {"judge/biased", "judge/no_verdict"} & training(rewards, lengths).keys()


def test_a_figure_without_a_measurement_is_left_out():
    found = training(np.full((2, 1), NAN), np.ones((2, 1), dtype=int))
    assert not {"reward/mean", "reward/best_of_k", "reward/headroom", "reward/std_within", "reward/absorbed"} & {*found}
    assert not {"length/winner_longest", "selection/distinct_2_kept", "selection/tokens"} & {*found}
    assert (found["reward/failed"], found["reward/prompts"], found["selection/examples"]) == (1.0, 0, 0)
    assert figures(HeldOut()) == {}


def test_strengths_within_a_prompt_say_nothing_between_prompts():
    rewards = np.array([[1.0, 2.0], [0.0, 3.0]])
    plain, ranked = (training(rewards, np.ones((2, 2), dtype=int), ranked=one, before=rewards - 1)
                     for one in (False, True))  # fmt: skip
    assert {*plain} - {*ranked} == {"reward/mean", "reward/best_of_k", "reward/headroom", "reward/absorbed"}
    assert plain["reward/absorbed"] == pytest.approx(1 / 1.0)  # headroom 2.5 - 1.5 - 1 + 1, and the mean rose by 1


def test_what_selection_took_is_beside_a_random_response_of_the_same_groups():
    lengths = np.array([[2, 4, 6], [1, 1, 7]])
    rows, picks, control = np.array([0, 1]), np.array([2, 0]), np.array([1, 2])
    found = training(np.zeros((2, 3)), lengths, picks=(rows, picks), control=control, dropped=4)
    assert found["selection/tokens"] == (6 + 1) / 2
    assert found["selection/tokens_random"] == ((2 + 4 + 6) / 3 + (1 + 1 + 7) / 3) / 2
    assert (found["length/winner_longest"], found["length/winner_longest_chance"]) == (0.5, pytest.approx(1 / 3))
    assert (found["selection/examples"], found["selection/dropped"]) == (2, 4)


def test_a_mean_says_of_how_many_prompts_it_is_and_how_many_answers_are_missing():
    rewards = np.array([[1.0, 3.0], [NAN, 5.0], [NAN, NAN]])
    assert figures(HeldOut(rewards=rewards)) == pytest.approx(
        {"reward/eval": 3.5, "reward/eval_se": 1.5, "reward/eval_n": 2, "reward/eval_failed": 0.5}
    )
    assert figures(HeldOut(gold=np.full((3, 2), NAN))) == {"gold/eval_n": 0, "gold/eval_failed": 1.0}


def test_what_training_measured_and_the_answers_are_in_the_figures_of_a_policy():
    lengths = np.array([[1, 3], [2, 2]])
    cut, surprise = np.array([[True, False], [False, False]]), lengths * 0.5
    answers = responses(lengths, truncated=cut, surprise=surprise)
    found = figures(HeldOut(training={"train/steps": 7}, answers=answers, first_texts=answers.texts))
    assert next(iter(found)) == "train/steps" and found["train/steps"] == 7
    assert (found["eval/tokens"], found["eval/truncated"], found["entropy/token"]) == (2.0, 0.25, 0.5)
    assert found["diversity/distinct_2_kept"] == 1 and found["ngrams/rising"] == []
