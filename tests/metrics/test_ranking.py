"""The laws of ranking by comparisons: cases counted by hand, and Bradley-Terry by its own likelihood."""

import math
from itertools import pairwise

import numpy as np
import pytest

from raft.metrics import ranking

NAN = math.nan


def matrix(*rows: str) -> np.ndarray:
    """1 for a win, 0 for a loss, = for no preference, . for never compared."""
    return np.array([[{"1": 1.0, "0": 0.0, "=": 0.5, ".": NAN}[mark] for mark in row] for row in rows])


CHAIN = matrix(".111", "0.11", "00.1", "000.")
CYCLE = matrix(".10", "0.1", "10.")
TIES = matrix(".==", "=.1", "=0.")


def likelihood(wins: np.ndarray, strengths: np.ndarray) -> float:
    """The logarithm of it, each comparison with a thousandth of a win for either side, in plain loops."""
    total = 0.0
    for i in range(len(wins)):
        for j in range(len(wins)):
            if i != j and not math.isnan(wins[i, j]):
                total -= (wins[i, j] + 1e-3) * math.log1p(math.exp(strengths[j] - strengths[i]))
    return total


def random_matrix(seed: int, count: int, levels: int, missing: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wins = np.full((count, count), NAN)
    for i in range(count):
        for j in range(i):
            if rng.random() >= missing or j == i - 1:  # neighbours always meet, so that all hang together
                wins[i, j] = rng.integers(levels) / (levels - 1)
                wins[j, i] = 1 - wins[i, j]
    return wins


@pytest.mark.parametrize(
    "wins, copeland, borda, order",
    [
        (CHAIN, [3, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3]),
        (CHAIN[::-1, ::-1], [0, 1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0]),
        (CYCLE, [1, 1, 1], [1, 1, 1], [0, 1, 2]),
        (TIES, [1, 1.5, 0.5], [1, 1.5, 0.5], [1, 0, 2]),
        (matrix(".1.", "0..", "..."), [1, 0, 0], [1, 0, 0], [0, 1, 2]),
        (np.array([[NAN, 0.9, 0.4], [0.1, NAN, 0.6], [0.6, 0.4, NAN]]), [1, 1, 1], [1.3, 0.7, 1.0], [0, 2, 1]),
        (np.array([[NAN, 0.6, 0.6], [0.4, NAN, 0.99], [0.4, 0.01, NAN]]), [2, 1, 0], [1.2, 1.39, 0.41], [0, 1, 2]),
        (np.array([[NAN]]), [0], [0], [0]),
    ],
)
def test_copeland_then_borda_then_the_index(wins, copeland, borda, order):
    assert ranking.copeland(wins).tolist() == copeland
    assert ranking.borda(wins) == pytest.approx(borda)
    assert ranking.ranked(wins) == order


def test_of_equals_the_preferred_goes_first():
    assert ranking.ranked(CYCLE, [0.1, 0.3, 0.2]) == [1, 2, 0]
    assert ranking.ranked(CYCLE, [0.1, 0.3, 0.3]) == [1, 2, 0]
    assert ranking.ranked(CHAIN, [0, 1, 2, 3]) == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [0.5, 0.7, 0.01, 1.0])
def test_two_are_apart_by_the_logit(value):
    found = ranking.strengths(np.array([[NAN, value], [1 - value, NAN]]))
    logit = math.log((value + 1e-3) / (1 - value + 1e-3))
    assert found == pytest.approx([logit / 2, -logit / 2], abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("missing", [0.0, 0.6])
def test_strengths_are_where_the_likelihood_is_flat_and_nowhere_higher(seed, missing):
    wins = random_matrix(seed, 2 + seed % 7, 2 + seed % 4, missing)
    found = ranking.strengths(wins)
    assert abs(found.mean()) < 1e-9
    top, rng = likelihood(wins, found), np.random.default_rng(seed)
    for one in range(len(wins)):
        step = 1e-4 * np.eye(len(wins))[one]
        slope = (likelihood(wins, found + step) - likelihood(wins, found - step)) / 2e-4
        assert abs(slope) < 1e-6
    assert all(likelihood(wins, found + rng.normal(0, scale, len(wins))) < top for scale in (0.01, 0.3, 2) * 5)


def test_a_chain_is_apart_by_the_sum_of_its_steps():
    wins = matrix(".1....", "0.1...", ".0.1..", "..0.1.", "...0.=", "....=.")
    step = math.log(1.001 / 0.001)
    assert np.diff(ranking.strengths(wins)) == pytest.approx([-step] * 4 + [0], abs=1e-6)


def test_a_cycle_and_ties_have_no_stronger_one():
    for wins in (CYCLE, matrix(".==", "=.=", "==.")):
        assert ranking.strengths(wins) == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_where_all_have_met_all_strength_and_order_agree(seed):
    wins = random_matrix(seed, 7, 3)
    found, order = ranking.strengths(wins), ranking.ranked(wins)
    assert all(found[better] >= found[worse] - 1e-9 for better, worse in pairwise(order))


@pytest.mark.parametrize("seed", range(6))
def test_who_they_are_does_not_matter(seed):
    wins, shuffled = random_matrix(seed, 6, 3, 0.3), np.random.default_rng(seed).permutation(6)
    turned = ranking.strengths(wins[np.ix_(shuffled, shuffled)])
    assert turned == pytest.approx(ranking.strengths(wins)[shuffled], abs=1e-8)


def test_scores_carry_strength_place_and_parts():
    parts = [{"wins": float(n)} for n in range(3)]
    found = ranking.scores(TIES, [1, 0, 2], parts)
    assert [score.rank for score in found] == [1, 0, 2]
    assert [score.reward for score in found] == pytest.approx(ranking.strengths(TIES).tolist())
    assert [score.parts for score in found] == parts and all(score.error is None for score in found)
    found[0].parts["wins"] = 9.0
    assert parts[0] == {"wins": 0.0}
