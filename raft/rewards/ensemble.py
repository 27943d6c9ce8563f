"""kind: ensemble. Several rewards as one.

    reward:
      kind: ensemble
      members: {helpful: {kind: model, model: a/b}, short: {kind: rule, function: length}}
      combine: sum
      weights: {short: -0.01}
      normalize: {helpful: [-20, 20]}

A response that a member cannot score has no reward; the raw rewards of all members are kept in the parts.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from raft.core import protocols
from raft.core.options import faults_of_range, sections, speed, suggest
from raft.core.records import Group, Score


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """`combine` makes one reward r of the members' rewards r_m, each scaled first if it has a range.

    - `sum`: sum of w_m r_m; `mean`: that divided by the sum of w_m; a weight that is not given is 1
    - `min`: the least of r_m
    - `pessimistic`: mean of r_m minus `deviations` times their standard deviation (divisor M), which keeps a policy
      from what only one member likes (arXiv:2310.02743)

    A range [low, high] takes r_m to (r_m - low) / (high - low), cut to 0 and 1 (as MetaMetrics-RM does,
    arXiv:2410.02381). `offload: true` lets each member give its accelerator memory back to the next.
    """

    members: Any = sections("reward")
    combine: Literal["sum", "mean", "min", "pessimistic"] = "mean"
    weights: dict[str, Any] = field(default_factory=dict)
    normalize: dict[str, Any] = field(default_factory=dict)
    deviations: float = 1.0
    offload: bool = speed(False)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, deviations=(0, math.inf))
        for option in ("weights", "normalize"):
            for name in getattr(self, option):
                if str(name) not in self.members:
                    yield f"{option}.{name}", f"is not a member; {suggest(str(name), list(self.members))}"
        for name, weight in self.weights.items():
            if not _is_number(weight):
                yield f"weights.{name}", f"expected a number, found {weight!r}"
        if self.weights and self.combine not in ("sum", "mean"):
            yield "weights", f"combine: {self.combine} weighs nothing; remove them, or use sum or mean"
        elif self.combine == "mean" and all(map(_is_number, self.weights.values())):
            weights = self._weights()
            if sum(weights) <= 1e-9 * sum(map(abs, weights)):
                yield "weights", "sum to 0 or less, which is not a mean and would reverse rewards; use combine: sum"
        for name, pair in self.normalize.items():
            if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) and pair[0] < pair[1]):
                yield f"normalize.{name}", f"expected [low, high], found {pair!r}"

    @property
    def comparable(self) -> bool:
        """Whether the rewards of different prompts can be compared: only if those of all members can."""
        return all(map(protocols.comparable, self.members.values()))

    @property
    def batch_size(self) -> int:
        """The largest of its members: only where each lets a group stand for itself does it stand for itself here."""
        return max(map(protocols.batch_size, self.members.values()))

    @property
    def remote(self) -> bool:
        """Whether no member needs this machine."""
        return all(map(protocols.remote, self.members.values()))

    @property
    def uses_device(self) -> bool:
        """Whether any member computes on a device of this run."""
        return any(map(protocols.uses_device, self.members.values()))

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        block = list(groups)
        by_member = {name: list(self._scores(member, block)) for name, member in self.members.items()}
        for place, group in enumerate(block):
            rows = [{name: found[place][k] for name, found in by_member.items()} for k in range(len(group.responses))]
            yield [self._combined(row) for row in rows]

    def release(self) -> None:
        for member in self.members.values():
            protocols.release(member)

    def _scores(self, member: Any, block: list[Group]) -> Iterator[list[Score]]:
        yield from member.score(block)
        if self.offload:
            protocols.release(member)

    def _combined(self, scores: Mapping[str, Score]) -> Score:
        parts = {
            key: value
            for name, score in scores.items()
            for key, value in [
                *([] if score.reward is None else [(name, score.reward)]),
                *((f"{name}.{part}", value) for part, value in score.parts.items()),
            ]
        }
        failed = [f"{name}: {score.error}" for name, score in scores.items() if score.reward is None]
        if failed:
            return Score(None, parts, error="; ".join(failed))
        return Score(self._one({name: score.reward or 0.0 for name, score in scores.items()}), parts)

    def _one(self, rewards: Mapping[str, float]) -> float:
        scaled = np.array([self._scaled(name, reward) for name, reward in rewards.items()])
        if self.combine == "min":
            return float(scaled.min())
        if self.combine == "pessimistic":
            return float(scaled.mean() - self.deviations * scaled.std())
        weights = np.array(self._weights())
        return float(weights @ scaled / (weights.sum() if self.combine == "mean" else 1.0))

    def _scaled(self, name: str, reward: float) -> float:
        if name not in self.normalize:
            return reward
        low, high = self.normalize[name]
        return (min(max(reward, low), high) - low) / (high - low)

    def _weights(self) -> list[float]:
        return [float(self.weights.get(name, 1.0)) for name in self.members]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
