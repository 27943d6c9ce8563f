"""Who is best of K where only two at a time can be compared: pure functions on a preference matrix.

A preference matrix is [K, K]: `wins[i, j]` in [0, 1] says how surely i is better than j, and wins[i, j] + wins[j, i]
is 1; 0.5 is no preference, NaN a pair that was never compared, as every i is with itself.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from raft.core.records import Score

Kind = Literal["wins", "losses", "no_preference", "no_verdict", "biased"]
VERDICTS: tuple[Kind, ...] = ("wins", "losses", "no_preference", "no_verdict", "biased")  # how a comparison comes out
PRIOR = 1e-3  # of a win and of a loss in every comparison: strengths stay finite where one never loses
STEPS = 200  # of Newton's method; a handful suffice


def copeland(wins: np.ndarray) -> np.ndarray:
    """Won comparisons, and half of those without a preference, [K] (Copeland 1951)."""
    return (wins > 0.5).sum(axis=1) + 0.5 * (wins == 0.5).sum(axis=1)


def borda(wins: np.ndarray) -> np.ndarray:
    """The sum of how surely each beats the others, [K]."""
    return np.nansum(wins, axis=1)


def ranked(wins: np.ndarray, preferred: Sequence[float] | None = None) -> list[int]:
    """The indices, best first: by Copeland, then Borda, then the higher `preferred`, then the lower index."""
    last = np.zeros(len(wins)) if preferred is None else np.asarray(preferred, dtype=float)
    return np.lexsort((-last, -borda(wins).round(9), -copeland(wins))).tolist()


def strengths(wins: np.ndarray) -> np.ndarray:
    """Log-strengths [K] with mean 0: i beats j with chance sigmoid(s_i - s_j) (Bradley and Terry 1952).

    The maximum of the likelihood, with a prior of a thousandth of a win for either side of each comparison. They say
    how far apart the K are, and nothing about the K of another prompt.
    """
    compared = ~np.isnan(wins)
    won = np.where(compared, np.nan_to_num(wins) + PRIOR, 0.0)
    count = won + won.T
    found = np.zeros(len(wins))
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(found[None, :] - found[:, None]))
        slope = (won - count * chance).sum(axis=1)
        curve = count * chance * chance.T
        hessian = np.diag(curve.sum(axis=1)) - curve + 1.0  # the last term keeps the mean where it is
        step = np.linalg.lstsq(hessian, slope, rcond=None)[0]
        found = found + np.clip(step, -1, 1)
        if not (np.abs(step) >= 1e-12).any():
            break
    return found - found.sum() / max(1, len(found))


def scores(wins: np.ndarray, order: Sequence[int], parts: Sequence[dict[str, float]]) -> list[Score]:
    """The scores of a group: the Bradley-Terry strength as the reward, and the place in `order` (best first)."""
    found = strengths(wins)
    places = {index: place for place, index in enumerate(order)}
    return [Score(float(found[index]), dict(parts[index]), rank=places[index]) for index in range(len(wins))]
