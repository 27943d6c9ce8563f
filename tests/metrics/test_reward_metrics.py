"""The figures against hand computation, enumeration of all outcomes, and textbook identities."""

import itertools
import math

import numpy as np
import pytest

from raft.metrics import reward_metrics

NAN = math.nan
REWARDS = np.array([[1.0, 2.0, 6.0], [4.0, NAN, 0.0], [NAN, NAN, NAN], [5.0, 5.0, NAN]])


def enumerated(probabilities: list[float], rewards: list[float], n: int) -> np.ndarray:
    """The distribution of the winner by walking through every outcome of n draws; the first of equals wins."""
    wins = np.zeros(len(rewards))
    for drawn in itertools.product(range(len(rewards)), repeat=n):
        winner = max(drawn, key=lambda atom: rewards[atom])
        wins[winner] += math.prod(probabilities[atom] for atom in drawn)
    return wins


def test_a_mean_counts_every_prompt_once_and_leaves_out_what_has_no_reward():
    assert reward_metrics.prompt_means(REWARDS) == pytest.approx([3.0, 2.0, NAN, 5.0], nan_ok=True)
    assert reward_metrics.mean_reward(REWARDS) == pytest.approx(10 / 3)


def test_best_of_k_is_the_mean_of_the_best():
    assert reward_metrics.prompt_best(REWARDS) == pytest.approx([6.0, 4.0, NAN, 5.0], nan_ok=True)
    assert reward_metrics.best_of_k(REWARDS) == pytest.approx(5.0)


def test_no_reward_at_all_has_no_mean():
    nothing = np.full((2, 3), NAN)
    assert math.isnan(reward_metrics.mean_reward(nothing)) and math.isnan(reward_metrics.best_of_k(nothing))


def test_a_tie_needs_two_rewards_that_are_all_equal():
    rows = np.array([[1.0, 1.0, 1.0], [2.0, NAN, 2.0], [3.0, NAN, NAN], [NAN, NAN, NAN], [1.0, 1.0, 1.5]])
    assert reward_metrics.tied(rows).tolist() == [True, True, False, False, False]


def test_the_spread_is_the_standard_deviation_with_divisor_k_minus_1():
    # around 3: 4 + 1 + 9 = 14 over 2; around 2: 4 + 4 = 8 over 1
    assert reward_metrics.spread(REWARDS) == pytest.approx([math.sqrt(7), math.sqrt(8), NAN, 0.0], nan_ok=True)
    assert np.isnan(reward_metrics.spread(np.array([[1.0], [2.0]]))).all()


def test_reward_at_n_is_the_average_maximum_over_all_subsets():
    row = [0.3, -1.0, 2.5, 2.5, 0.0, 7.0]
    for n in range(1, 7):
        subsets = [max(subset) for subset in itertools.combinations(row, n)]
        assert reward_metrics.reward_at_n(np.array(row), n) == pytest.approx(sum(subsets) / len(subsets))


def test_reward_at_1_is_the_mean_and_reward_at_k_the_maximum():
    row = np.array([[1.0, 2.0, 6.0]])
    assert reward_metrics.reward_at_n(row, 1) == pytest.approx([3.0])
    assert reward_metrics.reward_at_n(row, 3) == pytest.approx([6.0])


def test_reward_at_n_uses_the_rewards_that_are_there_and_needs_n_of_them():
    # of 1, 2, 6 the three pairs have maxima 2, 6, 6; of 4, 0 the one pair has 4
    assert reward_metrics.reward_at_n(REWARDS, 2) == pytest.approx([14 / 3, 4.0, NAN, 5.0], nan_ok=True)
    assert reward_metrics.reward_at_n(REWARDS, 3) == pytest.approx([6.0, NAN, NAN, NAN], nan_ok=True)


def test_reward_at_n_is_unbiased():
    probabilities, rewards = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 3.0])
    drawn = rewards[np.random.default_rng(0).choice(3, p=probabilities, size=(40_000, 6))]
    for n in (1, 3, 6):
        values = reward_metrics.reward_at_n(drawn, n)
        exact = reward_metrics.expected_best_of_n(probabilities, rewards, n)
        assert abs(values.mean() - exact) < 4 * reward_metrics.standard_error(values)


def test_reward_at_n_survives_many_responses():
    numbers = np.arange(1.0, 2001.0)
    assert reward_metrics.reward_at_n(numbers, 1000) == pytest.approx(
        1000 * 2001 / 1001
    )  # the mean maximum of n of 1..K


def test_gold_at_n_by_hand():
    gold, proxy = np.array([10.0, 0.0, 4.0]), np.array([1.0, 3.0, 2.0])
    # of the pairs {1, 3}, {1, 2}, {3, 2} the proxy picks gold 0, 4, 0; of all three 0; of single ones any
    assert [float(reward_metrics.gold_at_n(gold, proxy, n)) for n in (1, 2, 3)] == pytest.approx([14 / 3, 4 / 3, 0.0])


def picked_gold(gold: tuple[float, ...], proxy: tuple[float, ...], n: int) -> float:
    """The mean over all subsets of the gold of what the proxy picks; of several that tie, of any of them equally."""
    found = []
    for subset in itertools.combinations(range(len(gold)), n):
        best = max(proxy[one] for one in subset)
        tie = [gold[one] for one in subset if proxy[one] == best]
        found.append(sum(tie) / len(tie))
    return sum(found) / len(found)


@pytest.mark.parametrize("n", range(1, 7))
def test_gold_at_n_is_the_average_over_all_subsets_and_ways_to_break_a_tie(n):
    gold = [(0.3, -1.0, 2.5, 2.5, 0.0, 7.0), (5.0, 1.0, 2.0, 3.0, -4.0, 0.5), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    proxy = [(1.0, 5.0, 5.0, 2.0, 2.0, 2.0), (0.0, -1.0, 3.0, 2.0, 9.0, 4.0), (7.0,) * 6]
    expected = [picked_gold(one, by, n) for one, by in zip(gold, proxy, strict=True)]
    assert reward_metrics.gold_at_n(np.array(gold), np.array(proxy), n) == pytest.approx(expected)


def test_gold_at_n_under_the_gold_itself_is_reward_at_n():
    for n in (1, 2, 3):
        assert reward_metrics.gold_at_n(REWARDS, REWARDS, n) == pytest.approx(
            reward_metrics.reward_at_n(REWARDS, n), nan_ok=True
        )


def test_gold_at_n_leaves_out_a_response_that_lacks_either_reward_and_needs_n_others():
    gold = np.array([[1.0, NAN, 3.0], [1.0, 2.0, NAN], [NAN, NAN, 1.0]])
    proxy = np.array([[0.0, 9.0, 1.0], [NAN, 1.0, 2.0], [1.0, 2.0, NAN]])
    assert reward_metrics.gold_at_n(gold, proxy, 1) == pytest.approx([2.0, 2.0, NAN], nan_ok=True)
    assert reward_metrics.gold_at_n(gold, proxy, 2) == pytest.approx([3.0, NAN, NAN], nan_ok=True)


def test_gold_at_n_is_unbiased():
    rng = np.random.default_rng(5)
    probabilities, gold, proxy = np.array([0.5, 0.3, 0.2]), np.array([1.0, 4.0, -2.0]), np.array([0.0, 1.0, 1.0])
    drawn = rng.choice(3, p=probabilities, size=(40_000, 6))
    for n in (1, 3, 6):
        values = reward_metrics.gold_at_n(gold[drawn], proxy[drawn], n)
        exact = float(reward_metrics.best_of_n_distribution(probabilities, proxy, n) @ gold)
        assert abs(values.mean() - exact) < 4 * reward_metrics.standard_error(values)


@pytest.mark.parametrize("rewards", [[3.0, 1.0, 2.0, 0.0], [1.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_winner_of_n_draws_is_distributed_as_all_outcomes_say(rewards, n):
    probabilities = [0.1, 0.2, 0.3, 0.4]
    expected = enumerated(probabilities, rewards, n)
    policy = np.array(probabilities), np.array(rewards)
    assert reward_metrics.best_of_n_distribution(*policy, n) == pytest.approx(expected)
    assert reward_metrics.expected_best_of_n(*policy, n) == pytest.approx(expected @ rewards)


def test_a_response_of_probability_zero_never_wins():
    won = reward_metrics.best_of_n_distribution(np.array([0.0, 1.0, 0.0]), np.array([9.0, 1.0, 1.0]), 4)
    assert won.tolist() == [0.0, 1.0, 0.0]


def test_the_kl_bound_has_the_known_values_and_holds():
    known = {1: 0.0, 2: 0.193, 4: 0.636, 8: 1.204, 16: 1.835, 32: 2.497}
    assert {n: round(reward_metrics.kl_bound(n), 3) for n in known} == known
    uniform = np.full(1000, 1e-3)
    best = reward_metrics.best_of_n_distribution(uniform, np.arange(1000.0), 8)
    exact = float((best * np.log(best / uniform)).sum())
    assert 1.19 < exact < reward_metrics.kl_bound(8)


def test_the_standard_error_is_of_the_mean_over_known_prompts():
    assert reward_metrics.standard_error(np.array([1.0, 3.0, NAN])) == pytest.approx(1.0)  # std sqrt(2) over sqrt(2)
    assert math.isnan(reward_metrics.standard_error(np.array([1.0, NAN])))


def test_the_bootstrap_band_agrees_with_the_normal_one_on_many_prompts():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    low, high = reward_metrics.bootstrap_band(np.append(values, NAN), np.random.default_rng(2), draws=4000)
    reach = 1.96 * reward_metrics.standard_error(values)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.1 * reach)


def test_the_bootstrap_band_is_keyed_widens_with_its_level_and_collapses_on_one_prompt():
    values = np.arange(20.0)
    narrow = reward_metrics.bootstrap_band(values, np.random.default_rng(3), level=0.5)
    wide = reward_metrics.bootstrap_band(values, np.random.default_rng(3), level=0.95)
    assert wide == reward_metrics.bootstrap_band(values, np.random.default_rng(3))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert reward_metrics.bootstrap_band(np.array([7.0]), np.random.default_rng(0)) == (7.0, 7.0)
    assert all(map(math.isnan, reward_metrics.bootstrap_band(np.array([NAN]), np.random.default_rng(0))))


def test_bootstrap_bands_are_those_of_each_quantity_by_itself_on_the_same_prompts():
    values = np.random.default_rng(4).normal(size=(50, 3))
    lows, highs = reward_metrics.bootstrap_bands(values, np.random.default_rng(6))
    alone = np.array([reward_metrics.bootstrap_band(column, np.random.default_rng(6)) for column in values.T])
    assert np.stack([lows, highs], axis=-1) == pytest.approx(alone)


def test_bootstrap_bands_leave_out_what_is_unknown():
    values = np.array([[1.0, NAN, NAN], [1.0, 5.0, NAN], [1.0, NAN, NAN]])
    lows, highs = reward_metrics.bootstrap_bands(values, np.random.default_rng(0))
    assert lows == pytest.approx([1.0, 5.0, NAN], nan_ok=True)
    assert highs == pytest.approx([1.0, 5.0, NAN], nan_ok=True)


def test_the_bootstrap_interval_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(200):
        low, high = reward_metrics.bootstrap_band(rng.exponential(1.0, 100), rng, draws=200)
        held += low <= 1.0 <= high
    assert 0.88 <= held / 200 <= 0.98


def test_a_gain_is_of_the_same_prompts_whose_differences_say_how_sure_it_is():
    before, after = np.array([0.0, 10.0, 20.0, NAN, 5.0]), np.array([1.0, 12.0, 21.0, 9.0, NAN])
    gain = reward_metrics.gain(before, after)
    assert (gain.before, gain.after) == (10.0, pytest.approx(34 / 3))
    assert gain.half_width == pytest.approx(1.96 * math.sqrt(1 / 3) / math.sqrt(3))  # of the differences 1, 2, 1
    assert gain.prompts == 3 and gain.few and not gain.clear
    several = reward_metrics.gain(np.tile(before, 4), np.tile(after, 4))  # the prompts differ by far more than that
    assert several.clear and several.prompts == 12 and several.difference == gain.difference == pytest.approx(4 / 3)
    assert not reward_metrics.gain(before, before + np.array([1.0, -1.0, 0.5, 0, 0])).clear
    assert reward_metrics.gain(np.array([NAN]), np.array([1.0])) is None
    assert not reward_metrics.gain(np.array([0.0]), np.array([9.0])).clear, "one prompt says nothing"
    assert not reward_metrics.gain(np.zeros(40), np.ones(40)).clear, "an interval of no width is of too few prompts"


def test_a_difference_is_clear_on_as_many_prompts_as_its_interval_needs_to_be_about_right():
    """Of values around 0 an interval of 95 % should leave 0 out in 5 % of the cases."""
    rng = np.random.default_rng(8)
    for count, fewest, most in ((4, 0.12, 0.17), (reward_metrics.FEWEST, 0.06, 0.10)):
        gains = [reward_metrics.gain(np.zeros(count), rng.normal(size=count)) for _ in range(4000)]
        wrong = sum(abs(gain.difference) > gain.half_width for gain in gains) / len(gains)
        assert fewest <= wrong <= most, (count, wrong)
        assert any(gain.clear for gain in gains) == (count >= reward_metrics.FEWEST)


def test_policies_are_compared_on_the_prompts_that_all_of_them_have_a_reward_for():
    """By the plain means policy 1 lost (5 to 3); on the two prompts that both have it gained 1."""
    rows = [{"iteration": at, "reward/eval": mean, "gold/eval": 7.0} for at, mean in ((0, 5.0), (1, 3.0))]
    means = {"reward/eval": {0: np.array([1.0, 3.0, 11.0]), 1: np.array([2.0, 4.0, NAN])}}
    compared = reward_metrics.on_common_prompts(rows, means)
    assert [row["reward/eval"] for row in compared] == [2.0, 3.0]
    assert [row["reward/eval_n"] for row in compared] == [2, 2] and [row["gold/eval"] for row in compared] == [7.0, 7.0]
    assert [row["reward/eval_se"] for row in compared] == pytest.approx([1.0, 1.0])
    assert rows[0]["reward/eval"] == 5.0, "the rows themselves stay"


def test_without_missing_rewards_or_common_prompts_rows_stay_as_they_are():
    rows = [{"iteration": at, "reward/eval": 1.0 + at, "reward/eval_n": 2} for at in (0, 1)]
    for other in (np.array([5.0, 7.0]), np.full(2, NAN), np.array([1.0, 2.0, 3.0])):
        assert reward_metrics.on_common_prompts(rows, {"reward/eval": {0: np.array([1.0, 1.0]), 1: other}}) == rows
    disjoint = {"reward/eval": {0: np.array([1.0, NAN]), 1: np.array([NAN, 1.0])}}
    assert reward_metrics.on_common_prompts(rows, disjoint) == rows


def test_a_row_is_of_one_policy_its_training_reward_from_the_folder_that_it_answered_in():
    contents = {
        1: {"policy": {"reward/eval": 2.0}, "previous": {"reward/mean": 0.5}},
        0: {"policy": {"reward/eval": 1.0}, "previous": {}},
    }
    assert reward_metrics.merged(contents) == [
        {"iteration": 0, "reward/eval": 1.0, "reward/mean": 0.5},
        {"iteration": 1, "reward/eval": 2.0},
    ]
