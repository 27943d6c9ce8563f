"""What a batch of rewards says, in numbers: pure functions on arrays, no files, no models.

Rewards are float arrays [N, K]: N prompts, K responses each, NaN where a response has no reward. A NaN is
left out, and so is a prompt that has nothing but NaN; a prompt counts once, however many of its rewards there are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval
FEWEST = (
    10  # prompts for a clear difference: with 10 an interval covers the true mean 92 % of the time, with 4 only 86 %
)
BLOCK = 2**15


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


def mean_spread(rewards: np.ndarray) -> float:
    """The mean over prompts of the standard deviation of their rewards; NaN if no prompt has two rewards."""
    return _mean(spread(rewards))


def reward_at_n(rewards: np.ndarray, n: int) -> np.ndarray:
    """The expected best of n responses, estimated without bias from the k rewards of each prompt.

    `rewards` is [K] or [N, K]; the last axis goes, so that one number is left for each prompt (NaN where it has
    fewer than n rewards). With R_1 <= ... <= R_k this is sum_i C(i-1, n-1) R_i / C(k, n), the average of the
    maximum over all subsets of size n: the mean for n = 1, the maximum for n = k.
    """
    return _selected_at_n(np.sort(rewards, axis=-1), (~np.isnan(rewards)).sum(axis=-1), n)  # NaN goes last


def gold_at_n(gold: np.ndarray, proxy: np.ndarray, n: int) -> np.ndarray:
    """The expected gold reward of the best of n responses by the proxy reward, estimated without bias for each prompt.

    `gold` and `proxy` are [K] or [N, K], of the same responses; the last axis goes. A response counts if both of its
    rewards are known; NaN where there are fewer than n. The gold rewards take the places of reward_at_n in the
    order of the proxy, and responses that tie by the proxy share the mean of their gold (Nakano et al. 2021,
    arXiv:2112.09332).
    """
    known = ~(np.isnan(gold) | np.isnan(proxy))
    return _selected_at_n(_by_proxy(np.where(known, gold, np.nan), np.where(known, proxy, np.nan)), known.sum(-1), n)


def _by_proxy(gold: np.ndarray, proxy: np.ndarray) -> np.ndarray:
    """Gold rewards in ascending order of the proxy, [..., K], the unknown last; those that tie have their mean."""
    order = np.argsort(proxy, axis=-1, kind="stable")
    gold, proxy = (np.take_along_axis(values, order, axis=-1) for values in (gold, proxy))
    begins = np.ones(proxy.shape, dtype=bool)
    begins[..., 1:] = proxy[..., 1:] != proxy[..., :-1]  # NaN differs from NaN
    block = np.cumsum(begins) - 1
    means = np.bincount(block, weights=gold.ravel()) / np.bincount(block)
    return means[block].reshape(gold.shape)


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


@dataclass(frozen=True)
class Gain:
    """The mean of a figure before and after, and the half width of the 95 % interval of the difference (NaN for fewer
    than two prompts). `prompts` is the number that it is over: the smaller one where they are not the same prompts."""

    before: float
    after: float
    half_width: float
    prompts: int

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference leaves 0 out; one of no width, or of few prompts, does not tell."""
        return not self.few and abs(self.difference) > self.half_width > 0

    @property
    def few(self) -> bool:
        """Whether the prompts are too few to tell whether a difference is clear."""
        return self.prompts < FEWEST


def gain(before: np.ndarray, after: np.ndarray) -> Gain | None:
    """How much the mean over prompts [N] changed, by the differences of the prompts known in both; None without any.

    Prompts are compared with themselves, so how much they differ from each other does not widen the interval.
    """
    known = ~(np.isnan(before) | np.isnan(after))
    if not known.any():
        return None
    error = standard_error(after[known] - before[known])
    return Gain(float(before[known].mean()), float(after[known].mean()), NORMAL_95 * error, int(known.sum()))


def bootstrap_band(
    per_prompt: np.ndarray, rng: np.random.Generator, draws: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The interval that holds the share `level` of the means of resampled prompts (percentile bootstrap).

    Prompts are resampled, never the responses of a prompt: a best of K that is resampled within
    its K is biased downwards. Both ends are NaN if no value [N] is known.
    """
    known = per_prompt[~np.isnan(per_prompt)]
    low, high = bootstrap_bands(known[:, None], rng, draws, level)
    return float(low[0]), float(high[0])


def bootstrap_bands(
    per_prompt: np.ndarray, rng: np.random.Generator, draws: int = 1000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper ends [Q] of such intervals for several quantities [N, Q] of the same prompts.

    Each draw is of the same prompts for all quantities. NaN where no value of a quantity is known. Draws are made in
    blocks of about BLOCK prompts: one at a time takes five times as long, all at once much memory.
    """
    known = ~np.isnan(per_prompt)
    values = np.where(known, per_prompt, 0.0)
    prompts, quantities = per_prompt.shape
    means = np.full((draws, quantities), np.nan)
    rows = max(BLOCK // max(prompts, 1), 1)
    for start in range(0, draws if prompts else 0, rows):
        count = min(rows, draws - start)
        drawn = rng.integers(prompts, size=(count, prompts)) + prompts * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * prompts).reshape(count, prompts).astype(float)
        means[start : start + count] = _ratio(times @ values, times @ known)
    ends = np.full((2, quantities), np.nan)
    some = ~np.isnan(means).all(axis=0)
    ends[:, some] = np.nanquantile(means[:, some], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends[0], ends[1]


def evaluated(values: np.ndarray, name: str) -> dict[str, float]:
    """The mean over prompts of values [N, K] as `name`, its standard error `_se`, and the prompts it is over `_n`.

    A mean or an error of nothing is left out; the number of prompts never is.
    """
    means = prompt_means(values)
    figures = {name: _mean(means), f"{name}_se": standard_error(means)}
    known = {key: value for key, value in figures.items() if not math.isnan(value)}
    return {**known, f"{name}_n": int((~np.isnan(means)).sum())}


def on_common_prompts(
    rows: Sequence[Mapping[str, Any]], means: Mapping[str, Mapping[int, np.ndarray]]
) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl in which held-out rewards can be compared: of all policies over the same prompts.

    `means` has, for each figure (`reward/eval`) and iteration, the mean reward of every held-out prompt [N]. A prompt
    that has no reward under one policy is left out for all of them; so is a policy without any reward. Rows without
    such means, and figures without a prompt that all policies have in common, stay as they are.
    """
    found = [dict(row) for row in rows]
    for name, by_policy in means.items():
        tables = {number: one for number, one in by_policy.items() if not np.isnan(one).all()}
        if len({len(one) for one in tables.values()}) != 1:
            continue
        common = ~np.isnan(np.stack(list(tables.values()))).any(axis=0)
        for row in found if common.any() and not common.all() else []:
            if row["iteration"] in tables:
                row.update(evaluated(tables[row["iteration"]][common][:, None], name))
    return found


def held_out_key(rows: Sequence[Mapping[str, Any]], by: str = "reward") -> str:
    """The figure by which policies are compared, `by` reward or gold: the other one where no row has that."""
    keys = ("gold/eval", "reward/eval") if by == "gold" else ("reward/eval", "gold/eval")
    return next((key for key in keys if any(key in row for row in rows)), "gold/eval")


def merged(contents: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl out of the metrics.json of each iteration: row i holds what is known of policy i.

    Its evaluation comes from folder i; its training reward comes from the responses in folder i + 1.
    """
    rows: dict[int, dict[str, Any]] = {}
    for number, content in sorted(contents.items()):
        rows.setdefault(number, {"iteration": number}).update(content["policy"])
        if content["previous"]:
            rows.setdefault(number - 1, {"iteration": number - 1}).update(content["previous"])
    return [rows[number] for number in sorted(rows)]


def _selected_at_n(ascending: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
    """The average, over all subsets of size n, of the last in the order; the first `counts` places are known."""
    places = ascending.shape[-1]
    assert 1 <= n <= places, f"best of {n} cannot be estimated from {places} responses"
    estimates = np.full(counts.shape, np.nan)
    for k in np.unique(counts[counts >= n]):
        estimates[counts == k] = ascending[counts == k, :k] @ _maximum_weights(k, n)
    return estimates


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
