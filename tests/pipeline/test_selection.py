"""Selections against picks made by hand, exact distributions, and the law that no group is lost in silence."""

import itertools
import math

import numpy as np
import pytest
import worlds
from folders import write_run

from raft.core import records, registry
from raft.core.options import Fault
from raft.core.records import Response
from raft.core.run_paths import RunPaths
from raft.pipeline.selection import (
    Advantage,
    BestOfK,
    BestVsWorst,
    ExpectedBest,
    Picks,
    RandomPick,
    RewardWeighted,
    Selection,
    Softmax,
    Threshold,
    TopFraction,
    filtered,
    length_controlled,
    shaped,
    without_ties,
)
from raft.pipeline.stages import choose
from raft.store.keys import Artifact

NAN = math.nan
REWARDS = np.array(
    [
        [1.0, 3.0, 2.0],
        [5.0, 5.0, 0.0],
        [NAN, NAN, NAN],
        [4.0, 4.0, 4.0],
        [NAN, -1.0, NAN],
        [NAN, 0.5, 0.0],
    ]
)
SELECTIONS = [
    BestOfK(),
    TopFraction(fraction=0.2),
    Threshold(minimum=2.0),
    Softmax(temperature=0.7),
    RandomPick(),
    RewardWeighted(),
    ExpectedBest(n=2),
    Advantage(filters=["tied"]),
    BestVsWorst(),
]


def picked(selection: Selection, rewards=REWARDS, seed: int = 0) -> Picks:
    return selection.pick(np.array(rewards), np.random.default_rng(seed))


def places(picks: Picks) -> list[tuple[int, int]]:
    return list(zip(picks.prompts.tolist(), picks.responses.tolist(), strict=True))


def response(text: str, finish_reason: str = "stop") -> Response:
    return Response(text, [1], None, finish_reason)


def test_best_of_k_takes_the_best_and_of_equals_the_lowest_index():
    picks = picked(BestOfK())
    assert places(picks) == [(0, 1), (1, 0), (3, 0), (4, 1), (5, 1)]
    assert picks.weights.tolist() == [1.0] * 5 and picks.rejected is None
    assert picks.reasons == {2: "no eligible response"}


def test_top_fraction_ranks_the_whole_batch():
    # 12 eligible, a quarter is 3: both 5s, then the first of the three 4s
    picks = picked(TopFraction(fraction=0.25))
    assert places(picks) == [(1, 0), (1, 1), (3, 0)]
    assert picks.reasons[0] == "no response in the top fraction of the batch"
    assert picks.reasons[2] == "no eligible response"


def test_top_fraction_rounds_up_and_1_is_everything_eligible():
    assert len(picked(TopFraction(fraction=0.26)).prompts) == 4
    assert len(picked(TopFraction(fraction=1.0)).prompts) == 12


@pytest.mark.parametrize("fraction, count", [(0.07, 7), (0.29, 29), (0.1, 10), (0.001, 1)])
def test_top_fraction_counts_in_the_decimals_that_were_written(fraction, count):
    assert len(picked(TopFraction(fraction=fraction), np.arange(100.0).reshape(25, 4)).prompts) == count


def test_threshold_takes_every_reward_that_reaches_it():
    picks = picked(Threshold(minimum=4.0))
    assert places(picks) == [(1, 0), (1, 1), (3, 0), (3, 1), (3, 2)]
    assert picks.reasons == {
        0: "no reward reaches the threshold",
        2: "no eligible response",
        4: "no reward reaches the threshold",
        5: "no reward reaches the threshold",
    }


def test_best_vs_worst_pairs_the_extremes_of_a_group():
    picks = picked(BestVsWorst())
    assert places(picks) == [(0, 1), (1, 0), (5, 1)]
    assert picks.rejected.tolist() == [0, 2, 2]
    assert picks.reasons == {
        2: "no eligible response",
        3: "no response is better than another",
        4: "no response is better than another",
    }


RANKED = np.array([[0.1, 0.9, 0.5], [0.0, 0.0, 0.0], [np.nan, 0.4, -0.4]])  # strengths of three groups
RANKS = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [np.nan, 1.0, 0.0]])  # by another rule than the strengths


def test_where_there_are_ranks_they_say_which_is_best():
    rng = np.random.default_rng(0)
    best = BestOfK().pick(RANKED, rng, RANKS)
    assert places(best) == [(0, 2), (1, 0), (2, 2)]
    pairs = BestVsWorst().pick(RANKED, rng, RANKS)
    assert places(pairs) == [(0, 2), (2, 2)] and pairs.rejected.tolist() == [0, 1]
    assert pairs.reasons == {1: "tied"}
    assert places(BestOfK(filters=["tied"]).pick(RANKED, rng, RANKS)) == [(0, 2), (2, 2)]


def test_ranks_do_not_touch_selections_that_ask_by_how_much():
    with_ranks = Softmax().pick(RANKED, np.random.default_rng(0), RANKS)
    assert places(with_ranks) == places(Softmax().pick(RANKED, np.random.default_rng(0)))


def test_only_best_vs_worst_makes_pairs():
    assert [selection.makes_pairs for selection in SELECTIONS] == [False] * (len(SELECTIONS) - 1) + [True]


@pytest.mark.parametrize("filters", [[], ["tied"]])
@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: type(selection).__name__)
def test_every_group_is_picked_from_or_has_a_reason(selection, filters):
    rng = np.random.default_rng(5)
    rewards = np.where(rng.random((500, 4)) < 0.5, NAN, rng.integers(0, 4, (500, 4)))
    picks = picked(type(selection)(**{**vars(selection), "filters": filters}), rewards)
    assert sorted({*picks.prompts.tolist(), *picks.reasons}) == list(range(500))
    assert not set(picks.prompts.tolist()) & set(picks.reasons)
    assert not np.isnan(rewards[picks.prompts, picks.responses]).any()
    assert len(picks.prompts) == len(picks.responses) == len(picks.weights)


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: type(selection).__name__)
def test_an_empty_batch_and_a_batch_without_rewards_give_no_picks(selection):
    assert picked(selection, np.empty((0, 4))).reasons == {}
    nothing = picked(selection, np.full((2, 3), NAN))
    assert places(nothing) == [] and nothing.reasons == {0: "no eligible response", 1: "no eligible response"}


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: type(selection).__name__)
def test_the_rewards_are_not_written_to(selection):
    before = REWARDS.copy()
    picked(selection)
    assert np.array_equal(before, REWARDS, equal_nan=True)


def test_tied_groups_are_dropped_whole_and_named():
    picks = picked(BestOfK(filters=["tied"]))
    assert places(picks) == [(0, 1), (1, 0), (4, 1), (5, 1)]
    assert picks.reasons == {2: "no eligible response", 3: "tied"}


def test_a_tied_group_takes_no_place_in_the_top_fraction():
    # 9 eligible without the tied group, a third is 3: both 5s, then the 3
    assert places(picked(TopFraction(fraction=0.33, filters=["tied"]))) == [(0, 1), (1, 0), (1, 1)]


def test_a_tie_needs_two_eligible_rewards_all_equal():
    rows = np.array([[1.0, NAN, 1.0], [1.0, NAN, NAN], [1.0, 2.0, 1.0]])
    assert np.isnan(without_ties(rows)).all(axis=1).tolist() == [True, False, False]
    assert np.array_equal(without_ties(rows)[1:], rows[1:], equal_nan=True)


def test_softmax_draws_with_the_probabilities_of_the_softmax():
    row, temperature, count = np.array([0.0, 1.0, NAN, 2.5]), 0.8, 40_000
    picks = picked(Softmax(temperature=temperature), np.tile(row, (count, 1)))
    odds = [math.exp(reward / temperature) for reward in (0.0, 1.0, 2.5)]
    exact = np.array([odds[0], odds[1], 0.0, odds[2]]) / sum(odds)
    observed = np.bincount(picks.responses, minlength=4) / count
    assert (np.abs(observed - exact) <= 4 * np.sqrt(exact * (1 - exact) / count)).all()


def test_random_pick_is_uniform_over_the_eligible():
    count = 40_000
    picks = picked(RandomPick(), np.tile([9.0, NAN, -9.0, 0.0], (count, 1)))
    observed = np.bincount(picks.responses, minlength=4) / count
    exact = np.array([1, 0, 1, 1]) / 3
    assert (np.abs(observed - exact) <= 4 * np.sqrt(exact * (1 - exact) / count)).all()


@pytest.mark.parametrize("number, index", [(0.0, 1), (math.nextafter(1.0, 0.0), 3)])
@pytest.mark.parametrize("selection", [Softmax(), RandomPick()], ids=["softmax", "random"])
def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_eligible(selection, number, index):
    class Constant:
        def random(self, count: int) -> np.ndarray:
            return np.full(count, number)

    groups, indices = selection.chosen(np.array([[NAN, 0.3, -0.2, 0.1, NAN]]), Constant())
    assert (groups.tolist(), indices.tolist()) == ([0], [index])


def test_softmax_is_stable_for_rewards_of_any_size():
    extreme = np.array([[1e300, 0.0], [-1e6, -1e6 + 1], [0.0, 1e-300]])
    assert places(picked(Softmax(temperature=1e-3), extreme))[:2] == [(0, 0), (1, 1)]
    shifted = [places(picked(Softmax(), REWARDS + shift, seed=3)) for shift in (0.0, 4096.0)]
    assert shifted[0] == shifted[1]


def test_a_cold_softmax_is_the_best():
    rewards = np.random.default_rng(1).normal(size=(200, 8))
    assert places(picked(Softmax(temperature=1e-6), rewards)) == places(picked(BestOfK(), rewards))


@pytest.mark.parametrize("selection", [Softmax(), RandomPick()], ids=["softmax", "random"])
def test_a_draw_does_not_depend_on_other_groups(selection):
    rewards = np.random.default_rng(2).normal(size=(50, 8))
    others_gone = rewards.copy()
    others_gone[:25] = NAN
    assert places(picked(selection, rewards))[25:] == places(picked(selection, others_gone))
    assert places(picked(selection, rewards))[:25] == places(picked(selection, rewards[:25]))


@pytest.mark.parametrize("selection", [Softmax(), RandomPick()], ids=["softmax", "random"])
def test_the_same_seed_draws_the_same_and_another_does_not(selection):
    rewards = np.random.default_rng(2).normal(size=(50, 8))
    assert places(picked(selection, rewards, seed=1)) == places(picked(selection, rewards, seed=1))
    assert places(picked(selection, rewards, seed=1)) != places(picked(selection, rewards, seed=2))


def test_filters_name_what_they_leave_out():
    group = [response("a"), response(" \n"), response("b", "length"), response("a"), response("b"), response("a ")]
    drop = ["truncated", "empty", "duplicate"]
    assert filtered(group, drop) == [None, "empty", "truncated", "duplicate", None, None]
    assert filtered(group, []) == [None] * 6
    assert filtered(group, ["tied"]) == [None] * 6


def test_a_duplicate_of_what_was_left_out_stays_and_only_named_filters_act():
    group = [response("b", "length"), response("b"), response("b", "length")]
    assert filtered(group, ["truncated", "duplicate"]) == ["truncated", None, "truncated"]
    assert filtered(group, ["duplicate"]) == [None, "duplicate", "duplicate"]
    assert filtered([response(""), response("")], ["duplicate"]) == [None, "duplicate"]


def test_shaping_pays_for_the_distance_from_the_first_policy():
    rewards = np.array([[1.0, 1.5, NAN]])
    logprob, reference = np.array([[-2.0, -1.0, NAN]]), np.array([[-2.0, -4.0, -1.0]])
    assert shaped(rewards, logprob, reference, 0.5) == pytest.approx(np.array([[1.0, 0.0, NAN]]), nan_ok=True)
    assert places(picked(BestOfK(), shaped(rewards, logprob, reference, 0.5))) == [(0, 0)]
    with pytest.raises(AssertionError, match="log-probabilities"):
        shaped(rewards, np.full((1, 3), NAN), reference, 0.5)


def test_length_control_leaves_what_a_regression_with_a_mean_for_each_group_does_not_explain_by_length():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 40, size=(30, 8)).astype(float)
    rewards = rng.normal(size=lengths.shape) + 0.2 * lengths + 5 * rng.normal(size=(30, 1))
    rewards[rng.random(rewards.shape) < 0.2], rewards[3] = NAN, NAN
    known = ~np.isnan(rewards)
    groups = np.eye(30)[np.nonzero(known)[0]]
    slope = np.linalg.lstsq(np.column_stack([lengths[known], groups]), rewards[known], rcond=None)[0][0]
    left = length_controlled(rewards, lengths)
    assert slope == pytest.approx(0.2, abs=0.03)
    assert np.isnan(left).tolist() == np.isnan(rewards).tolist()
    for row in np.flatnonzero(known.any(axis=1)):  # the level of a group stays, for selections with a minimum
        here = known[row]
        expected = rewards[row][here] - slope * (lengths[row][here] - lengths[row][here].mean())
        assert left[row][here] == pytest.approx(expected)


def test_a_response_that_is_only_longer_is_not_the_best_of_its_group_under_length_control():
    quality = np.array([[0.0, 1.0, 3.0], [2.0, 0.5, 1.0], [1.0, 2.0, 0.0]])
    lengths = np.array([[30, 20, 10], [20, 10, 30], [10, 30, 20]])
    gamed = quality + 0.5 * lengths
    assert picked(BestOfK(), gamed).responses.tolist() == [0, 2, 1]
    assert picked(BestOfK(), length_controlled(gamed, lengths)).responses.tolist() == [2, 0, 1]
    same = np.full((3, 3), 7)
    assert length_controlled(gamed, same).tolist() == gamed.tolist()
    assert np.isnan(length_controlled(np.full((2, 3), NAN), same[:2])).all()


def test_the_lengths_that_are_controlled_are_the_tokens_of_the_responses(tmp_path):
    quality, tokens = np.array([[0.0, 1.0, 3.0], [2.0, 0.5, 1.0]]), np.array([[30, 20, 10], [20, 30, 10]])
    run = write_run(
        tmp_path / "run", 2, 3, 1, text=lambda policy, n, k: "word" * int(tokens[n % 2, k]),
        reward=lambda policy, n, k: float(quality[n % 2, k] + 0.5 * tokens[n % 2, k]),
    )  # fmt: skip
    it = RunPaths(run).iteration(1)
    made = [Artifact.finished(path) for path in (it.prompts, it.responses, it.scores)]
    for control, best in ((False, [0, 1]), (True, [2, 0])):
        rewards, picks = choose(BestOfK(length_control=control), *made, None, 0, 1, lambda *drop: None)
        assert picks.responses.tolist() == best
        assert rewards.tolist() == (quality + 0.5 * tokens).tolist(), "what is reported is the reward itself"


@pytest.mark.parametrize(
    "options, key",
    [
        ({"kind": "best-of-k", "kl_coef": -0.1}, "selection.kl_coef"),
        ({"kind": "best-of-k", "max_failed_fraction": 1.5}, "selection.max_failed_fraction"),
        ({"kind": "best-of-k", "filters": ["long"]}, "selection.filters[0]"),
        ({"kind": "top-fraction"}, "selection.fraction"),
        ({"kind": "top-fraction", "fraction": 0.0}, "selection.fraction"),
        ({"kind": "top-fraction", "fraction": 1.01}, "selection.fraction"),
        ({"kind": "threshold", "minimum": NAN}, "selection.minimum"),
        ({"kind": "softmax", "temperature": 0.0}, "selection.temperature"),
        ({"kind": "softmax", "temperature": NAN}, "selection.temperature"),
        ({"kind": "softmax", "max_failed_fraction": -1.0}, "selection.max_failed_fraction"),
    ],
)
def test_a_wrong_option_is_named(options, key):
    faults: list[Fault] = []
    assert registry.component("selection", options, "selection", faults) is None
    assert [fault.key for fault in faults] == [key]


@pytest.mark.parametrize(
    "options, selection",
    [
        (
            {"kind": "best-of-k", "filters": ["truncated", "tied"], "kl_coef": 0.1},
            BestOfK(filters=["truncated", "tied"], kl_coef=0.1),
        ),
        ({"kind": "top-fraction", "fraction": 1}, TopFraction(fraction=1.0)),
        ({"kind": "threshold", "minimum": -3}, Threshold(minimum=-3.0)),
        ({"kind": "softmax"}, Softmax(temperature=1.0)),
        ({"kind": "random"}, RandomPick()),
        ({"kind": "best-vs-worst"}, BestVsWorst()),
    ],
)
def test_every_kind_is_built_from_its_options(options, selection):
    faults: list[Fault] = []
    assert registry.component("selection", options, "selection", faults) == selection and not faults


def test_twenty_thousand_groups_take_little_time():
    rewards = np.random.default_rng(0).normal(size=(20_000, 16))
    rewards[::7] = NAN
    for selection in SELECTIONS:
        picks = picked(selection, rewards)
        assert len(set(picks.prompts.tolist())) + len(picks.reasons) == 20_000


def dense(picks: Picks, shape: tuple[int, int]) -> np.ndarray:
    """The weights as an array [N, K], 0 where nothing was picked."""
    weights = np.zeros(shape)
    weights[picks.prompts, picks.responses] = picks.weights
    return weights


def test_reward_weighted_counts_each_response_by_the_odds_with_which_softmax_draws_it():
    rewards = np.array([[0.3, -1.2, 2.0, NAN]])
    drawn = np.zeros(4)
    for seed in range(4000):
        drawn[picked(Softmax(temperature=0.7), rewards, seed).responses] += 1 / 4000
    weights = dense(picked(RewardWeighted(temperature=0.7), rewards), rewards.shape)[0]
    assert weights.sum() == pytest.approx(1)
    assert weights == pytest.approx(drawn, abs=0.03)
    assert weights[2] / weights[0] == pytest.approx(math.exp(1.7 / 0.7))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_expected_best_counts_each_response_by_the_subsets_of_n_that_it_wins(n):
    rewards = np.array([[0.5, 2.0, 2.0, -1.0, NAN, 1.0], [1.0, 1.0, NAN, NAN, NAN, NAN], [NAN] * 6])
    expected = np.zeros(rewards.shape)
    for row, found in enumerate(rewards):
        known = np.flatnonzero(~np.isnan(found))
        subsets = list(itertools.combinations(known, min(n, len(known)))) if len(known) else []
        for subset in subsets:
            best = [one for one in subset if found[one] == max(found[list(subset)])]
            expected[row, best] += 1 / len(best) / len(subsets)
    weights = dense(picked(ExpectedBest(n=n), rewards), rewards.shape)
    assert weights == pytest.approx(expected, abs=1e-12)
    assert weights.sum(axis=1) == pytest.approx([1, 1, 0])


def test_an_advantage_is_the_reward_less_the_mean_of_the_group_or_of_its_other_responses():
    rewards = np.array([[1.0, 0.0, 0.0, NAN], [2.0, 2.0, 2.0, 2.0], [0.1, NAN, NAN, NAN]])
    mean = picked(Advantage(), rewards)
    assert places(mean) == [(0, 0), (0, 1), (0, 2)]
    assert mean.weights == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert mean.reasons == {1: Advantage.passed_over, 2: Advantage.passed_over}
    assert picked(Advantage(baseline="leave-one-out"), rewards).weights == pytest.approx([1, -0.5, -0.5])
    assert dense(picked(Advantage(baseline="none"), rewards), rewards.shape)[1:, 0] == pytest.approx([2, 0.1])


def test_equal_rewards_have_no_advantage_however_they_round():
    assert picked(Advantage(filters=[]), np.full((1, 7), 0.1)).reasons == {0: Advantage.passed_over}


def test_the_log_quantile_is_of_the_share_of_the_group_that_is_no_better():
    rewards = np.array([[5.0, 1.0, 5.0, NAN, -2.0]])
    found = Advantage(reward="log-quantile").valued(rewards)[0]
    assert found[[0, 1, 2, 4]] == pytest.approx([0, 3 * math.log(2 / 4), 0, 3 * math.log(1 / 4)])
    assert np.isnan(found[3])
    assert np.array_equal(Advantage(reward="log-quantile").valued(np.exp(rewards))[0], found, equal_nan=True)


def test_a_selection_that_keeps_nothing_says_what_each_filter_took_out_and_what_to_do(tmp_path):
    worlds.make_recipe(
        tmp_path, iterations=1, generator={"max_tokens": 2}, evaluation={"gold": None, "kl": False},
        selection={"kind": "best-of-k", "minimum": 2.0, "filters": ["truncated", "empty"]},
    )  # fmt: skip
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    responses = [
        one
        for row in records.read(RunPaths(tmp_path / "outputs/tiny").iteration(1).responses)
        for one in row["responses"]
    ]
    cut = sum(one["finish_reason"] == "length" for one in responses)
    assert done.returncode == 2 and cut > len(responses) / 2
    assert "selection kept nothing of 16 prompts (" in done.stderr
    assert f"Of {len(responses)} responses that have a reward, truncated took out {cut}" in done.stderr
    assert "raise generator.max_tokens, or remove truncated" in done.stderr
