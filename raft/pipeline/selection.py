"""Which responses are learned from: pure functions on a whole batch of rewards.

A batch is a float64 array [N, K]: N groups, K responses each, NaN where a response is not eligible because it was
filtered out or could not be scored. The whole batch is seen at once because "the best fifth of all responses" says
nothing about a single group. Groups in = groups picked from + groups with a reason, for every selection.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np

from raft.core.options import added, choice, faults_of_range, speed
from raft.core.records import Response
from raft.metrics.reward_metrics import tied

Places = tuple[np.ndarray, np.ndarray]  # groups [M] and the index of a response in each [M]


TIED = "tied"  # the filter of whole groups, by their rewards: see `without_ties`
# The filters of responses before the pick: of a response, and the texts of its group that stay so far.
FILTERS: dict[str, Callable[[Response, Collection[str]], bool]] = {
    "truncated": lambda response, kept: response.finish_reason == "length",
    "empty": lambda response, kept: not response.text.strip(),
    "duplicate": lambda response, kept: response.text in kept,
}


@dataclass(frozen=True)
class Picks:
    """What was picked, in the order of the groups: M responses by group and by index in the group.

    `weights` multiply the loss of each, and may be negative where the selection is `signed`. `rejected`, for pairs, is
    the index of the worse response of the same group. `reasons` says of each group that nothing was picked from why
    that is so.
    """

    prompts: np.ndarray
    responses: np.ndarray
    weights: np.ndarray
    rejected: np.ndarray | None
    reasons: dict[int, str]


@dataclass(frozen=True, kw_only=True)
class Selection(ABC):
    """What all selections share.

    `filters` names the filters before the pick. `kl_coef` is the weight beta of the KL-shaped reward (see `shaped`), 0
    for the plain reward. `length_control` takes from the reward what goes with length (see `length_controlled`).
    `max_failed_fraction` is the share of responses without a reward that a run still tolerates, of training prompts and
    of held-out ones; it changes no result, only whether the run goes on.
    """

    filters: list[str] = choice((*FILTERS, TIED), default_factory=list)
    kl_coef: float = 0.0
    length_control: bool = added(False)
    max_failed_fraction: float = speed(0.01)

    makes_pairs: ClassVar[bool] = False
    by_order: ClassVar[bool] = False  # only which response is better counts, not by how much
    across_prompts: ClassVar[bool] = False  # rewards of different prompts are compared
    takes_uneven: ClassVar[bool] = False  # groups may have grown until their best was good enough
    needs_draws: ClassVar[bool] = False  # a group is read as draws from one policy
    signed: ClassVar[bool] = False  # weights can be negative: such a response is to become less likely
    passed_over: ClassVar[str] = "nothing to pick"  # why a group that has eligible responses can go without a pick

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, kl_coef=(0, math.inf), max_failed_fraction=(0, 1))

    def pick(self, rewards: np.ndarray, rng: np.random.Generator, ranks: np.ndarray | None = None) -> Picks:
        """The picks from rewards [N, K], NaN = not eligible; with `filters: [tied]` tied groups are left out whole.

        Where there are ranks [N, K], 0 for the best of a group, they and not the rewards say which is better.

        Selections that draw take exactly `rng.random(N)`, one number for each group: what is drawn from
        a group depends on its own rewards and its place in the batch, and on no other group's rewards.
        """
        assert rewards.ndim == 2 and not np.isinf(rewards).any(), "rewards are finite or NaN, [N, K]"
        ties_go = TIED in self.filters or (self.makes_pairs and ranks is not None)
        eligible = without_ties(rewards) if ties_go else rewards
        ordered = eligible if ranks is None or not self.by_order else np.where(np.isnan(eligible), np.nan, -ranks)
        places = self.chosen(ordered, rng)
        if not isinstance(places, tuple) or len(places) != 2:
            raise TypeError("chosen returns two arrays: groups, and the index of a response in each")
        prompts, responses = places
        rejected, weights = self.rejected(ordered, prompts), self.weights(ordered, prompts, responses)
        return Picks(prompts, responses, weights, rejected, self._reasons(rewards, eligible, prompts))

    @abstractmethod
    def chosen(self, rewards: np.ndarray, rng: np.random.Generator) -> Places:
        """The places picked from rewards [N, K], ascending by group and index, none of them NaN."""

    def rejected(self, rewards: np.ndarray, prompts: np.ndarray) -> np.ndarray | None:
        """For pairs: the index of the rejected response of each picked group."""
        return None

    def weights(self, rewards: np.ndarray, prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
        """How much each picked response counts [M]."""
        return np.ones(len(prompts))

    def valued(self, rewards: np.ndarray) -> np.ndarray:
        """The rewards [N, K], NaN = none, as the selection reads them; the KL-shaped reward is made of these."""
        return rewards

    def _reasons(self, rewards: np.ndarray, eligible: np.ndarray, prompts: np.ndarray) -> dict[int, str]:
        missing = np.setdiff1d(np.arange(len(rewards)), prompts)
        nothing = np.isnan(rewards[missing]).all(axis=1)
        left_out = np.isnan(eligible[missing]).all(axis=1)
        why = np.select([nothing, left_out], ["no eligible response", "tied"], self.passed_over)
        return dict(zip(missing.tolist(), why.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class BestOfK(Selection):
    """The best response of each group; of equals the one with the lowest index (RAFT, arXiv:2304.06767).

    With `minimum` a group whose best reward is lower is left out.
    """

    minimum: float | None = added(None)

    by_order: ClassVar[bool] = True
    takes_uneven: ClassVar[bool] = True
    passed_over = "the best reward is below the minimum"

    def chosen(self, rewards: np.ndarray, rng: np.random.Generator) -> Places:
        groups = np.flatnonzero(np.fmax.reduce(rewards, axis=1) >= (-np.inf if self.minimum is None else self.minimum))
        return groups, _best(rewards[groups])


@dataclass(frozen=True, kw_only=True)
class TopFraction(Selection):
    """The best share of all eligible responses of the batch, so several of one group or none.

    Their number is rounded up. Of equals the one of the lower group, then of the lower index, goes first.
    """

    fraction: float

    across_prompts: ClassVar[bool] = True
    passed_over = "no response in the top fraction of the batch"

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        if not 0 < self.fraction <= 1:
            yield "fraction", f"{self.fraction!r} is out of range; it must be above 0 and at most 1"

    def chosen(self, rewards: np.ndarray, rng: np.random.Generator) -> Places:
        eligible = int((~np.isnan(rewards)).sum())
        # the decimal that the user wrote: in binary 0.07 * 100 is a little more than 7, and would round up to 8
        count = math.ceil(Fraction(repr(self.fraction)) * eligible)
        best = np.sort(np.argsort(-rewards, axis=None, kind="stable")[:count])
        groups, indices = np.unravel_index(best, rewards.shape)
        return groups, indices


@dataclass(frozen=True, kw_only=True)
class Threshold(Selection):
    """Every response whose reward is at least `minimum`."""

    minimum: float

    across_prompts: ClassVar[bool] = True
    passed_over = "no reward reaches the threshold"

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        if not math.isfinite(self.minimum):
            yield "minimum", f"{self.minimum!r} is no threshold; give a finite number"

    def chosen(self, rewards: np.ndarray, rng: np.random.Generator) -> Places:
        groups, indices = np.nonzero(rewards >= self.minimum)
        return groups, indices


@dataclass(frozen=True, kw_only=True)
class Softmax(Selection):
    """One response of each group, drawn with probability proportional to exp(reward / temperature).

    A softer best-of-K (arXiv:2507.05913): towards temperature 0 it becomes the best, for a high one a random pick.
    """

    temperature: float = 1.0

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from _faults_of_temperature(self.temperature)

    def chosen(self, rewards: np.ndarray, rng: np.random.Generator) -> Places:
        return _drawn(_odds(rewards, self.temperature), rng)


@dataclass(frozen=True, kw_only=True)
class RandomPick(Selection):
    """Any eligible response of each group, each as likely as the other: the control that learns from no reward."""

    def chosen(self, rewards: np.ndarray, rng: np.random.Generator) -> Places:
        return _drawn((~np.isnan(rewards)).astype(float), rng)


@dataclass(frozen=True, kw_only=True)
class Weighted(Selection):
    """Every response, with a weight that the selection gives; those of weight 0 are left out."""

    @abstractmethod
    def weighed(self, rewards: np.ndarray) -> np.ndarray:
        """The weight of each response [N, K], 0 where the reward is NaN."""

    def chosen(self, rewards: np.ndarray, rng: np.random.Generator) -> Places:
        groups, indices = np.nonzero(self.weighed(rewards))
        return groups, indices

    def weights(self, rewards: np.ndarray, prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
        return self.weighed(rewards)[prompts, responses]


@dataclass(frozen=True, kw_only=True)
class RewardWeighted(Weighted):
    """Every response, weighted by exp(reward / temperature); the weights of a group sum to 1.

    Reward-weighted regression (Peters and Schaal 2007) with the group as its own normaliser. It is the expectation of
    `softmax`, which draws one response with these odds.
    """

    temperature: float = 1.0

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from _faults_of_temperature(self.temperature)

    def weighed(self, rewards: np.ndarray) -> np.ndarray:
        odds = _odds(rewards, self.temperature)
        return odds / np.maximum(odds.sum(axis=1, keepdims=True), np.finfo(float).tiny)


@dataclass(frozen=True, kw_only=True)
class ExpectedBest(Weighted):
    """Every response, weighted by the chance that it is the best of `n` drawn from its group without replacement.

    The exact expectation of fine-tuning on the best of n (arXiv:2407.14622 calls its loss the forward part of BOND):
    `n: 1` learns from all alike, n = K from the best alone. Equals share their chances. A group with fewer than n
    eligible responses has the best of those.
    """

    n: int

    needs_draws: ClassVar[bool] = True

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, n=(1, math.inf))

    def weighed(self, rewards: np.ndarray) -> np.ndarray:
        known = ~np.isnan(rewards)
        count = known.sum(axis=1, keepdims=True)
        below, upto = _compared(rewards)
        n = min(self.n, rewards.shape[1])
        chance = _share_of_subsets(upto, count, n) - _share_of_subsets(below, count, n)  # that an equal is the best
        return np.where(known, chance / np.maximum(upto - below, 1), 0.0)


@dataclass(frozen=True, kw_only=True)
class Advantage(Weighted):
    """Every response, weighted by its reward less a baseline; one below the baseline is to become less likely.

    For `trainer.kind: policy-gradient`. `baseline` is the mean of the group, the mean of its other responses
    (leave-one-out, arXiv:2402.14740) or none, for rewards that have a sign of their own. With `filters: [tied]`, which
    leaves out groups that are all right or all wrong, this is Reinforce-Rej (arXiv:2504.11343). With
    `reward: log-quantile` the reward is n log F, where F is the share of the group that is no better, and n one less
    than its size: the reward part of vBoN (arXiv:2407.06057) and of BOND's backward part (arXiv:2407.14622);
    `kl_coef: 1` adds the rest, the distance from the first policy.
    """

    baseline: Literal["mean", "leave-one-out", "none"] = "mean"
    reward: Literal["plain", "log-quantile"] = "plain"

    needs_draws: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    passed_over = "all rewards are equal, or there is one response"

    def valued(self, rewards: np.ndarray) -> np.ndarray:
        if self.reward == "plain":
            return rewards
        known = ~np.isnan(rewards)
        count = known.sum(axis=1, keepdims=True)
        share = np.where(known, _compared(rewards)[1] / np.maximum(count, 1), np.nan)
        return (count - 1) * np.log(share)

    def weighed(self, rewards: np.ndarray) -> np.ndarray:
        known = ~np.isnan(rewards)
        count, plain = known.sum(axis=1, keepdims=True), np.where(known, rewards, 0.0)
        baseline = plain.sum(axis=1, keepdims=True) / np.maximum(count, 1)
        # equal rewards are exactly 0 from their mean, which rounding need not give
        above = np.where(known & ~tied(rewards)[:, None], plain - baseline, 0.0)
        if self.baseline == "none":
            return plain
        if self.baseline == "mean":
            return np.where(count > 1, above, 0.0)
        return np.where(count > 1, above * count / np.maximum(count - 1, 1), 0.0)


@dataclass(frozen=True, kw_only=True)
class BestVsWorst(Selection):
    """A pair of each group: its best response, and its worst as rejected; ties go to the first (arXiv:2405.07863)."""

    makes_pairs: ClassVar[bool] = True
    by_order: ClassVar[bool] = True
    passed_over = "no response is better than another"

    def chosen(self, rewards: np.ndarray, rng: np.random.Generator) -> Places:
        groups = np.flatnonzero(np.fmax.reduce(rewards, axis=1) > np.fmin.reduce(rewards, axis=1))
        return groups, _best(rewards[groups])

    def rejected(self, rewards: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        return _best(-rewards[prompts])


@dataclass(frozen=True, kw_only=True)
class AllPairs(Selection):
    """A pair of every two responses of a group whose rewards differ, as UltraFeedback is made into pairs."""

    makes_pairs: ClassVar[bool] = True
    passed_over = "no response is better than another"

    def chosen(self, rewards: np.ndarray, rng: np.random.Generator) -> Places:
        groups, better, _ = _every_two(rewards)
        return groups, better

    def rejected(self, rewards: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        return _every_two(rewards)[2]


def broken(picks: Picks, rewards: np.ndarray) -> str | None:
    """Why these are no picks from rewards [N, K], None if they are: places in range that are eligible, none twice."""
    arrays = [picks.prompts, picks.responses, picks.weights, *([] if picks.rejected is None else [picks.rejected])]
    if not all(isinstance(one, np.ndarray) and one.shape == (len(picks.prompts),) for one in arrays):
        return "chosen and rejected return arrays of whole numbers, all of one length"
    places = [picks.prompts, picks.responses, *arrays[3:]]
    if not all(np.issubdtype(one.dtype, np.integer) for one in places):
        return "chosen and rejected return whole numbers"
    limits = [len(rewards), *[rewards.shape[1]] * (len(places) - 1)]
    for one, limit in zip(places, limits, strict=True):
        if len(one) and (one.min() < 0 or one.max() >= limit):
            return f"a place is out of range: {int(one.min())} to {int(one.max())}, allowed are 0 to {limit - 1}"
    for responses in places[1:]:
        if np.isnan(rewards[picks.prompts, responses]).any():
            return "a response was picked that is not eligible (its reward is NaN)"
    return None


def filtered(responses: Sequence[Response], filters: Sequence[str]) -> list[str | None]:
    """Why each response of one group is left out before the pick: the first of these FILTERS; None where it stays."""
    kept: set[str] = set()
    reasons: list[str | None] = []
    for response in responses:
        why = next((name for name, applies in FILTERS.items() if name in filters and applies(response, kept)), None)
        reasons.append(why)
        if why is None:
            kept.add(response.text)
    return reasons


def without_ties(rewards: np.ndarray) -> np.ndarray:
    """Rewards [N, K] with NaN in place of every group whose eligible rewards, two at least, are all equal."""
    return np.where(tied(rewards)[:, None], np.nan, rewards)


def shaped(rewards: np.ndarray, logprob: np.ndarray, reference_logprob: np.ndarray, beta: float) -> np.ndarray:
    """The KL-shaped reward r - beta * (log p_w(y|x) - log p_0(y|x)), all arrays [N, K] (arXiv:2304.06767).

    `logprob` is of the whole response under the policy that generated it, `reference_logprob` under the first
    policy, in nats. It changes which responses are picked, and nothing else. A response without a reward stays NaN.
    """
    distance = logprob - reference_logprob
    assert np.isfinite(distance[~np.isnan(rewards)]).all(), "a response with a reward has both log-probabilities"
    return rewards - beta * distance


def length_controlled(rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The rewards without their trend in length, all arrays [N, K]; lengths in tokens.

    The trend is one straight line for the batch: the least-squares slope of rewards on lengths, each less the mean of
    its group, so that hard prompts with long answers do not count. NaN stays NaN.
    """
    known = ~np.isnan(rewards)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    longer = np.where(known, lengths - np.where(known, lengths, 0).sum(axis=1, keepdims=True) / count, 0.0)
    slope = np.nansum(rewards * longer) / max(np.square(longer).sum(), np.finfo(float).tiny)  # longer sums to 0
    return rewards - slope * longer


def _every_two(rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group, better and worse index of every two different rewards, ascending."""
    groups, better, worse = np.nonzero(rewards[:, :, None] > rewards[:, None, :])
    return groups, better, worse


def _faults_of_temperature(temperature: float) -> Iterator[tuple[str, str]]:
    if not temperature > 0:
        message = f"{temperature!r} is out of range; it must be above 0 (its limit 0 is kind: best-of-k)"
        yield "temperature", message


def _odds(rewards: np.ndarray, temperature: float) -> np.ndarray:
    """exp(reward / temperature) of each response [N, K], in units of the best of its group; 0 for NaN."""
    with np.errstate(over="ignore"):  # far below the best at a tiny temperature: exp(-inf) = 0 is meant
        below_best = rewards - np.fmax.reduce(rewards, axis=1)[:, None]
        return np.where(np.isnan(rewards), 0.0, np.exp(below_best / temperature))


def _compared(rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many responses of its group are worse than each [N, K], and how many are no better, itself included."""
    below, upto = np.zeros(rewards.shape, int), np.zeros(rewards.shape, int)
    for row, found in enumerate(rewards):
        known = np.sort(found[~np.isnan(found)])
        below[row], upto[row] = np.searchsorted(known, found, "left"), np.searchsorted(known, found, "right")
    return below, upto


def _share_of_subsets(part: np.ndarray, count: np.ndarray, n: int) -> np.ndarray:
    """C(part, n) / C(count, n) [N, K]: the share of subsets of n (of all, where there are fewer) within a part."""
    share = np.ones(part.shape)
    for drawn in range(n):
        share *= np.where(drawn < count, np.clip(part - drawn, 0, None) / np.maximum(count - drawn, 1), 1.0)
    return share


def _best(rewards: np.ndarray) -> np.ndarray:
    """The index of the highest reward of each group, the lowest index of equals."""
    return np.where(np.isnan(rewards), -np.inf, rewards).argmax(axis=1)


def _drawn(odds: np.ndarray, rng: np.random.Generator) -> Places:
    """One index of each group with odds, drawn in proportion to them: the inverse of the cumulated odds [N, K]."""
    cumulated = np.cumsum(odds, axis=1)
    numbers = rng.random(len(odds)) * cumulated[:, -1]
    groups = np.flatnonzero(cumulated[:, -1] > 0)
    return groups, (cumulated > numbers[:, None])[groups].argmax(axis=1)
