"""How many responses each prompt gets: as many as the others, or more where another one may still be better.

`sample` makes the responses of an iteration and their scores. Where `sampling` has several rounds, each is made of
artifacts of its own in `rounds/`: the prompts that are asked again, their responses, their scores. So a kill between
two rounds loses nothing, and the same command goes on to the same bytes. In the end they are merged: groups of
different sizes, in the order of the prompts, each the beginning of the group that a fixed K would have given.
Candidates from elsewhere are merged in behind the last round.

A group that grows until it has what it needs is no fair sample: the mean of its rewards is biased. Figures of the
policy are therefore taken from the first round, which every prompt has (`Sampled.figures`).
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from raft.config.jobs import Align
from raft.core import records
from raft.core.errors import UserError
from raft.core.options import faults_of_range
from raft.core.run_paths import ROUNDS, IterationPaths
from raft.core.user_code import guarded, is_own, name_of
from raft.metrics.reward_metrics import prompt_best, prompt_means, spread
from raft.pipeline import stages
from raft.pipeline.candidates import joined
from raft.pipeline.selection import filtered
from raft.pipeline.streaming_scores import streamed
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact
from raft.store.measuring import MaxFailed, first_round, padded
from raft.store.runs import Folder

WAVES = 4  # of expected gain in which every prompt could be asked once: fewer adapt less, more gain little


@dataclass(frozen=True, kw_only=True)
class Rounds(ABC):
    """What all kinds share. Rewards are [N, K], NaN where a response has none or selection filters it out."""

    several: ClassVar[bool] = True

    @property
    def most(self) -> int | None:
        """The most responses that a prompt can get, which `generator.k` has to say; None where it alone says it."""
        return None

    @abstractmethod
    def each(self, number: int, k: int) -> int:
        """How many responses a prompt gets in a round, the first being 1; 0 where there is no such round.

        `k` is `generator.k`.
        """

    @abstractmethod
    def asked(self, rewards: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Which prompts the next round asks, as row numbers; none ends the sampling. `drawn` [N] counts responses."""

    def widest(self, k: int) -> int:
        """The most responses that a prompt gets in one round."""
        return k

    def total(self, prompts: int, k: int) -> int:
        """The most responses of an iteration."""
        return prompts * k

    def measured(self, rewards: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
        """The figures of an iteration's sampling."""
        return {"sampling/responses": float(drawn.mean())}


@dataclass(frozen=True, kw_only=True)
class Fixed(Rounds):
    """`generator.k` responses to every prompt, in one round."""

    several: ClassVar[bool] = False

    def each(self, number: int, k: int) -> int:
        return k if number == 1 else 0

    def asked(self, rewards: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return np.arange(0)

    def measured(self, rewards: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
        return {}


@dataclass(frozen=True, kw_only=True)
class UntilSuccess(Rounds):
    """Rounds of responses, each only for prompts that have no reward of at least `success` yet.

    For rewards of right and wrong. `rounds` are the responses that a prompt gets in each, and `generator.k` is their
    sum. Of equal rewards the first response is the best, so with rewards of 0 and 1 the best of each group is the one
    that K responses to every prompt would give. That prompts leave when they have succeeded is the variant for
    positive responses of Reinforce-Ada (arXiv:2510.04996).
    """

    rounds: list[int] = field(default_factory=lambda: [2, 2, 4])
    success: float = 1.0

    def faults(self) -> Iterator[tuple[str, str]]:
        if not self.rounds or not all(1 <= count <= 4096 for count in self.rounds):
            yield "rounds", f"{self.rounds} is out of range; give a list of numbers of responses, each from 1 to 4096"

    @property
    def most(self) -> int:
        return sum(self.rounds)

    def each(self, number: int, k: int) -> int:
        return self.rounds[number - 1] if number <= len(self.rounds) else 0

    def asked(self, rewards: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return np.flatnonzero(~self._succeeded(rewards))

    def widest(self, k: int) -> int:
        return max(self.rounds)

    def measured(self, rewards: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
        return {**super().measured(rewards, drawn), "sampling/success": float(self._succeeded(rewards).mean())}

    def _succeeded(self, rewards: np.ndarray) -> np.ndarray:
        return prompt_best(rewards) >= self.success


@dataclass(frozen=True, kw_only=True)
class ExpectedGain(Rounds):
    """`first` responses to every prompt, then one more at a time where it is expected to raise the best the most.

    For rewards on a scale. An iteration has `budget` responses for each prompt on average; `most` is what one prompt
    can get, and what `generator.k` has to say. A quarter of the prompts is asked at a time (see `expected_gains`).

    With recall and a price for each response, the best rule for one prompt is to go on while the expected gain is above
    the price (Pandora's rule, Weitzman 1979); to ask where the gain is largest until a budget is spent is that rule
    with the price which spends it. GVM-RAFT (arXiv:2505.02391) divides a budget of RAFT by the variance of gradients.
    """

    first: int = 4
    budget: float = 8.0
    most: int = 32

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, first=(2, 4096), most=(2, 4096))
        if not self.first <= self.budget <= self.most:
            yield "budget", f"{self.budget!r} is out of range; it must be between first ({self.first}) and most"

    def each(self, number: int, k: int) -> int:
        return self.first if number == 1 else 1

    def asked(self, rewards: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        count = min(self.total(len(drawn), 0) - int(drawn.sum()), -(-len(drawn) // WAVES))
        gains = expected_gains(rewards, self.first)
        rows = np.flatnonzero((gains > 0) & (drawn < self.most))
        return np.sort(rows[np.argsort(-gains[rows], kind="stable")][:count])

    def widest(self, k: int) -> int:
        return self.first

    def total(self, prompts: int, k: int) -> int:
        return math.floor(Fraction(repr(self.budget)) * prompts)  # the decimal that the user wrote


def expected_gains(rewards: np.ndarray, first: int) -> np.ndarray:
    """E[max(0, X - best)] of one more response to each prompt, from rewards [N, K], [N]; 0 without any reward.

    X is normal with mean m and standard deviation s, so with z = (m - best) / s it is s (phi(z) + z Phi(z)). The n
    rewards of a prompt say little of its m and s, so both are shrunk towards the mean of all prompts (empirical Bayes;
    the linear form is credibility, Buehlmann 1967):

        own * w + pooled * (1 - w),  w = between / (between + noise)

    where `between` is the variance of the true values over prompts, and `noise` that of the prompt's own estimate: of
    the mean s^2 / n, of the standard deviation (divided by c4(n), so that it is unbiased) E[s^2] (1 / c4(n)^2 - 1).
    What is pooled, and both variances between prompts, come from the `first` responses, which every prompt has: by
    moments, Var(m) = Var(means) - E[s^2 / n] and Var(s) = E[s^2] - E[s]^2, no less than 0.
    """
    sample = rewards[:, :first]
    counts, own_counts = ((~np.isnan(table)).sum(axis=1) for table in (sample, rewards))
    means, spreads, several = prompt_means(sample), spread(sample), counts >= 2
    if several.sum() < 2:
        return np.zeros(len(rewards))
    variance = float(np.mean(spreads[several] ** 2))
    typical = float(np.mean(spreads[several] / _c4(counts[several])))
    noise_of_means = float(np.mean(spreads[several] ** 2 / counts[several]))
    own_noise = np.where(own_counts >= 2, variance * (1 / _c4(np.maximum(own_counts, 2)) ** 2 - 1), np.inf)
    own_spread = np.nan_to_num(spread(rewards)) / _c4(np.maximum(own_counts, 2))
    deviation = _shrunk(own_spread, typical, max(0.0, variance - typical**2), own_noise)
    pooled = float(np.mean(means[several]))
    between = max(0.0, float(np.var(means[several], ddof=1)) - noise_of_means)
    known = (own_counts > 0) & (deviation > 0)
    own_means, best, deviation = prompt_means(rewards)[known], prompt_best(rewards)[known], deviation[known]
    z = (_shrunk(own_means, pooled, between, deviation**2 / own_counts[known]) - best) / deviation
    below = np.array([math.erfc(-one / math.sqrt(2)) / 2 for one in z])  # exact for gains that are hardly there
    gains = np.zeros(len(rewards))
    gains[known] = deviation * (np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) + z * below)
    return gains


def _shrunk(own: np.ndarray, pooled: float, between: float, noise: np.ndarray) -> np.ndarray:
    weight = np.divide(between, between + noise, out=np.zeros(len(own)), where=between + noise > 0)
    return pooled + weight * (own - pooled)


def _c4(n: np.ndarray) -> np.ndarray:
    """The mean of the standard deviation (divisor n - 1) of n normal numbers, in units of theirs; n >= 2."""
    sizes, places = np.unique(n, return_inverse=True)
    log = np.array([math.lgamma(size / 2) - math.lgamma((size - 1) / 2) for size in sizes.tolist()])
    return (np.sqrt(2 / (sizes - 1)) * np.exp(log))[places]


@dataclass(frozen=True)
class Sampled:
    """The responses of an iteration and their scores; of several rounds also those of the first."""

    responses: Artifact
    scores: Artifact
    first: tuple[Artifact, Artifact] | None = None

    @property
    def figures(self) -> dict[str, Artifact]:
        """The inputs of `measure`: figures of the policy are those of the first round."""
        whole = {"responses": self.responses, "scores": self.scores}
        if self.first is None:
            return whole
        return {"responses": self.first[0], "scores": self.first[1], **{f"all_{k}": v for k, v in whole.items()}}


def sample(
    recipe: Align, it: Folder, policy: Artifact, prompts: Artifact, candidates: Artifact | None, limit: MaxFailed
) -> Sampled:
    """Responses of a policy to the prompts of an iteration, and their scores, in one round or in several."""
    if it.shared:  # made already, perhaps by another sampling
        first = first_round(paths := IterationPaths(it.folder))
        of_first = (Artifact.finished(first.responses), Artifact.finished(first.scores)) if first is not paths else None
        return Sampled(it.existing("responses.jsonl"), it.existing("scores.jsonl"), of_first)
    if not recipe.sampling.several and candidates is None:
        return Sampled(*_one_round(recipe, it, "", recipe.generator, policy, prompts, limit))
    made: list[tuple[Artifact, Artifact]] = []
    asked, filters = prompts, recipe.selection.filters
    for number in itertools.count(1):
        with guarded(recipe.sampling):
            k = recipe.sampling.each(number, recipe.generator.k)
        responses, scores = ([one[place] for one in made] for place in (0, 1))
        if made and k:
            seen = {"prompts": prompts, "responses": responses, "rounds": scores, "filters": filters}
            asked = it.once(f"{ROUNDS}/{number:03d}/prompts.jsonl", ask_again, recipe.sampling, **seen)
        if not k or next(asked.read(), None) is None:
            break
        # the share of all responses is what counts, and a late round has few: it is looked at when they are merged
        bound = limit if not made else MaxFailed(fraction=1.0)
        generator = replace(recipe.generator, k=k)
        made.append(_one_round(recipe, it, f"{ROUNDS}/{number:03d}/", generator, policy, asked, bound))
    others, rated = [{"candidates": one} for one in joined(recipe, it, prompts, candidates, limit)] or [{}, {}]
    whole = it.once("responses.jsonl", merge_responses, prompts=prompts, rounds=responses, **others)
    merged = it.once(
        "scores.jsonl", merge_scores, recipe.sampling, prompts=prompts, responses=responses, rounds=scores,
        filters=filters, limit=limit, **rated,
    )  # fmt: skip
    return Sampled(whole, merged, made[0])


def _one_round(
    recipe: Align, it: Folder, at: str, generator: Any, policy: Artifact, prompts: Artifact, limit: MaxFailed
) -> tuple[Artifact, Artifact]:
    with streamed(it, f"{at}responses.jsonl", {f"{at}scores.jsonl": recipe.reward}, prompts):
        responses = it.once(f"{at}responses.jsonl", stages.generate, generator, policy=policy, prompts=prompts)
    made = {"prompts": prompts, "responses": responses}
    return responses, it.once(f"{at}scores.jsonl", stages.score, recipe.reward, **made, limit=limit)


def ask_again(
    sampling: Any,
    output: ArtifactWriter,
    prompts: Artifact,
    responses: Sequence[Artifact],
    rounds: Sequence[Artifact],
    filters: Sequence[str],
) -> None:
    """The prompts of the next round, each with the number of its responses so far; none ends the sampling.

    `responses` and their scores, `rounds`, are those of the rounds before.
    """
    rewards, drawn = _seen(prompts, responses, rounds, filters)
    with guarded(sampling):
        asked = np.asarray(sampling.asked(rewards, drawn))
    rows = set(asked.tolist())
    if is_own(sampling) and not (len(rows) == asked.size and rows <= set(range(len(drawn)))):
        raise UserError(f"{name_of(sampling)}: asked returns row numbers from 0 to {len(drawn) - 1}, none twice")
    output.write({**row, "drawn": int(drawn[at])} for at, row in enumerate(prompts.read()) if at in rows)


def merge_responses(
    section: None,
    output: ArtifactWriter,
    prompts: Artifact,
    rounds: Sequence[Artifact],
    candidates: Artifact | None = None,
) -> None:
    """The responses of all rounds, in the order of the prompts; those of a prompt in the order of their numbers.

    Candidates come last.
    """
    output.write(_merged(prompts, _with(rounds, candidates), "responses"))
    output.rows_in = prompts.rows


def merge_scores(
    sampling: Any,
    output: ArtifactWriter,
    prompts: Artifact,
    responses: Sequence[Artifact],
    rounds: Sequence[Artifact],
    filters: Sequence[str],
    limit: MaxFailed,
    candidates: Artifact | None = None,
) -> None:
    """The scores of all rounds in the same order. UserError if more than `limit` of all responses have none."""
    output.write(_merged(prompts, _with(rounds, candidates), "scores"))
    output.rows_in = prompts.rows
    limit.require(output.path)
    with guarded(sampling):
        output.measured = sampling.measured(*_seen(prompts, responses, rounds, filters))


def _with(rounds: Sequence[Artifact], candidates: Artifact | None) -> list[Artifact]:
    return [*rounds, *([] if candidates is None else [candidates])]


def _merged(prompts: Artifact, rounds: Sequence[Artifact], column: str) -> Iterator[dict[str, Any]]:
    """The rows of rounds as one for each prompt; every round has some of the prompts, in their order."""
    readers = [one.read() for one in rounds]
    heads = [next(reader, None) for reader in readers]
    for prompt in prompts.read():
        found: list[Any] = []
        for at, head in enumerate(heads):
            if head is not None and head["prompt_id"] == prompt["id"]:
                found += head[column]
                heads[at] = next(readers[at], None)
        yield {"prompt_id": prompt["id"], column: found}
    assert not any(heads), "a round has prompts that were not drawn, or has them in another order"


def _seen(
    prompts: Artifact, responses: Sequence[Artifact], scores: Sequence[Artifact], filters: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards so far [N, K], NaN for what selection will not see, and how many responses each prompt has [N]."""
    rows = [[one.get("reward") for one in row["scores"]] for row in _merged(prompts, scores, "scores")]
    for rewards, row in zip(rows, _merged(prompts, responses, "responses") if filters else (), strict=False):
        scored = [at for at, reward in enumerate(rewards) if reward is not None]
        group = records.answers(row)
        for at, reason in zip(scored, filtered([group[at] for at in scored], filters), strict=True):
            rewards[at] = rewards[at] if reason is None else None
    return padded(rows), np.array([len(row) for row in rows])
