"""What a batch of rewards says, in numbers: pure functions on arrays, no files, no models.

Rewards are float arrays [N, K]: N prompts, K responses each, NaN where a response has no reward. A NaN is
left out, and so is a prompt that has nothing but NaN; a prompt counts once, however many of its rewards there are.
"""

import math

import numpy as np

BETWEEN_PROMPTS = ("reward/mean", "reward/best_of_k")  # figures of rewards that can be compared between prompts


def prompt_means(rewards: np.ndarray) -> np.ndarray:
    """The mean reward of each prompt, [N]; NaN for a prompt without rewards."""
    known = ~np.isnan(rewards)
    return _ratio(np.where(known, rewards, 0.0).sum(axis=-1), known.sum(axis=-1))


def prompt_best(rewards: np.ndarray) -> np.ndarray:
    """The best reward of each prompt, [N]; NaN for a prompt without rewards."""
    return np.fmax.reduce(rewards, axis=-1)


def mean_reward(rewards: np.ndarray) -> float:
    """The mean over prompts of the mean of their rewards; NaN if there is no reward at all."""
    return _mean(prompt_means(rewards))


def best_of_k(rewards: np.ndarray) -> float:
    """The mean over prompts of the best of their rewards; NaN if there is no reward at all."""
    return _mean(prompt_best(rewards))


def tied(rewards: np.ndarray) -> np.ndarray:
    """Which prompts have at least two rewards, all of them equal, [N] of bool: their winner would be arbitrary."""
    several = (~np.isnan(rewards)).sum(axis=-1) >= 2
    return several & (np.fmax.reduce(rewards, axis=-1) == np.fmin.reduce(rewards, axis=-1))


def spread(rewards: np.ndarray) -> np.ndarray:
    """The standard deviation of each prompt's rewards (divisor k - 1), [N]; NaN where there are fewer than two."""
    known = ~np.isnan(rewards)
    squares = np.where(known, (rewards - prompt_means(rewards)[..., None]) ** 2, 0.0).sum(axis=-1)
    return np.sqrt(_ratio(squares, known.sum(axis=-1) - 1))


def reward_at_n(rewards: np.ndarray, n: int) -> np.ndarray:
    """The expected best of n responses, estimated without bias from the k rewards of each prompt.

    `rewards` is [K] or [N, K]; the last axis goes, so that one number is left for each prompt (NaN where it has
    fewer than n rewards). With R_1 <= ... <= R_k this is sum_i C(i-1, n-1) R_i / C(k, n), the average of the
    maximum over all subsets of size n: the mean for n = 1, the maximum for n = k.
    """
    places = rewards.shape[-1]
    assert 1 <= n <= places, f"best of {n} cannot be estimated from {places} responses"
    counts = (~np.isnan(rewards)).sum(axis=-1)
    ascending = np.sort(rewards, axis=-1)  # NaN goes last
    estimates = np.full(counts.shape, np.nan)
    for k in np.unique(counts[counts >= n]):
        estimates[counts == k] = ascending[counts == k, :k] @ _maximum_weights(k, n)
    return estimates


def best_of_n_distribution(probabilities: np.ndarray, rewards: np.ndarray, n: int) -> np.ndarray:
    """The exact distribution of the best of n independent draws from finitely many responses, [A].

    `probabilities` and `rewards` are [A]. With F(r) the probability of a reward <= r and F_(r) of one < r, the
    winner has reward r with probability F^n - F_^n. Of equal rewards the first drawn wins, so responses that tie
    share this in proportion to their probabilities.
    """
    assert n >= 1 and np.isclose(probabilities.sum(), 1.0), "needs n >= 1 and probabilities that sum to 1"
    _, level = np.unique(rewards, return_inverse=True)
    mass = np.bincount(level, weights=probabilities)
    below_or_equal = np.cumsum(mass)
    below = np.concatenate([[0.0], below_or_equal[:-1]])
    wins = below_or_equal**n - below**n
    share = np.divide(probabilities, mass[level], out=np.zeros(len(level)), where=mass[level] > 0)
    return wins[level] * share


def expected_best_of_n(probabilities: np.ndarray, rewards: np.ndarray, n: int) -> float:
    """The exact expected reward of the best of n independent draws from finitely many responses."""
    return float(best_of_n_distribution(probabilities, rewards, n) @ rewards)


def kl_bound(n: int) -> float:
    """How far, in nats, best-of-n can be from its policy: KL <= log n - (n-1)/n (arXiv:2401.01879).

    An upper bound: with ties, or responses of noticeable probability, the true divergence is smaller.
    """
    return math.log(n) - (n - 1) / n


def standard_error(per_prompt: np.ndarray) -> float:
    """The standard error of the mean over prompts of values [N]; NaN if fewer than two of them are known."""
    known = per_prompt[~np.isnan(per_prompt)]
    return float(np.std(known, ddof=1) / math.sqrt(len(known))) if len(known) >= 2 else math.nan


def bootstrap_band(
    per_prompt: np.ndarray, rng: np.random.Generator, draws: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The interval that holds the share `level` of the means of resampled prompts (percentile bootstrap).

    Prompts are resampled, never the responses of a prompt: a best of K that is resampled within
    its K is biased downwards. Both ends are NaN if no value [N] is known.
    """
    known = per_prompt[~np.isnan(per_prompt)]
    if len(known) == 0:
        return math.nan, math.nan
    means = [known[rng.integers(len(known), size=len(known))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def collected(
    rewards: np.ndarray, token_counts: np.ndarray, truncated: np.ndarray, empty: np.ndarray
) -> dict[str, float]:
    """The figures of one iteration's responses; all arrays are [N, K], the last two of bool.

    Shares are of all responses, `reward/tied` of all prompts. A figure that nothing was measured for (the mean
    of no reward, the spread of single responses) is left out.
    """
    figures = {
        "reward/mean": mean_reward(rewards),
        "reward/best_of_k": best_of_k(rewards),
        "reward/std_within": _mean(spread(rewards)),
        "reward/failed": _mean(np.isnan(rewards)),
        "reward/tied": _mean(tied(rewards)),
        "response/tokens": _mean(token_counts),
        "response/truncated": _mean(truncated),
        "response/empty": _mean(empty),
    }
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def evaluated(rewards: np.ndarray, name: str) -> dict[str, float]:
    """The mean of held-out rewards [N, K] as `name`, and its standard error over prompts; the unknown is left out."""
    figures = {name: mean_reward(rewards), f"{name}_se": standard_error(prompt_means(rewards))}
    return {key: value for key, value in figures.items() if not math.isnan(value)}


def _maximum_weights(k: int, n: int) -> np.ndarray:
    """C(i-1, n-1) / C(k, n) for i = 1..k, from each weight to the one below it: the binomials themselves overflow."""
    i = np.arange(k, n, -1)
    weights = np.zeros(k)
    weights[n - 1 :] = (n / k * np.cumprod([1.0, *(i - n) / (i - 1)]))[::-1]
    return weights


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
