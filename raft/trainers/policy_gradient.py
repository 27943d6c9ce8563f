"""The clipped policy gradient on stored responses (arXiv:1707.06347), by tokens, without a value function.

    ratio = exp(log pi(token) - log pi_old(token))
    loss of a step = - sum of min(ratio * A, clip(ratio, 1 - clip, 1 + clip_higher) * A) / number of response tokens

pi_old is the policy that generated, whose log-probabilities stand beside the responses; A is the weight of the example.
Best-of-K makes it RAFT++, where A is 1; `selection.kind: advantage` gives every response its own
(both arXiv:2504.11343).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from raft.core.options import faults_of_range
from raft.core.protocols import Dropped
from raft.core.records import Example
from raft.models import chat_templates
from raft.models.packing import Layout
from raft.trainers.batches import Texts
from raft.trainers.hf_trainer import Batch, Loss
from raft.trainers.policy import Corpus, PolicyTrainer, Predictions


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(PolicyTrainer):
    """Makes responses more likely by their weights, and those of negative weight less, while near the policy before.

    A token whose probability has left 1 - `clip` to 1 + `clip_higher` times its old one, in the direction of its
    weight, has no gradient any more; `clip_higher` is `clip` where it is left out. Only generated tokens are learned.
    """

    takes_signed: ClassVar[bool] = True
    needs_logprobs: ClassVar[bool] = True

    learning_rate: float = 1.0e-6
    clip: float = 0.2
    clip_higher: float | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, clip=(0, 1))
        if self.clip_higher is not None:
            yield from faults_of_range(self, clip_higher=(0, np.inf))

    def corpus(
        self, tokenizer: Any, examples: Iterable[Example], folder: Path, limit: tuple[int, str], dropped: Dropped
    ) -> Corpus:
        corpus = Generated(folder)
        corpus.read(tokenizer, examples, limit, dropped)
        return corpus

    def loss(self, model: Any, tokenizer: Any, corpus: Corpus) -> Loss:
        return Clipped(model, 1 - self.clip, 1 + (self.clip if self.clip_higher is None else self.clip_higher))


class Generated(Corpus):
    """Responses with the log-probability of each token under the policy that generated it."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.logprobs = Texts(folder, np.float32)

    def tokens(self, tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
        return chat_templates.encode_prompt(tokenizer, example.prompt), example.response.token_ids

    def note(self, example: Example) -> None:
        self.logprobs.append(example.response.logprobs or [])

    def unfit(self, example: Example) -> str | None:
        if example.response.logprobs is None:
            return "there are no log-probabilities of the policy that generated it"
        if not example.weight or not np.isfinite(example.weight):
            return f"weight {example.weight:g} teaches nothing"
        return None

    def total(self, members: np.ndarray) -> float:
        """The number of response tokens."""
        return sum(self.logprobs.lengths(members))

    def batch(self, members: np.ndarray, layout: Layout, total: float) -> Batch:
        old = np.concatenate([self.logprobs[index] for index in members])
        return {**super().batch(members, layout, total), "old": old, "share": np.float32(1 / total)}


class Clipped:
    """A batch's part of the clipped loss, the share of tokens that are clipped, and the distance from pi_old.

    The distance is ratio - 1 - log ratio, which is never negative, and whose mean over tokens of pi_old is its KL
    divergence from the trained policy.
    """

    def __init__(self, model: Any, low: float, high: float):
        self.predictions, self.low, self.high = Predictions(model), low, high

    def __call__(self, model: Any, batch: Batch) -> dict[str, Any]:
        from torch.nn.functional import cross_entropy

        chosen = self.predictions(model, batch)
        moved = -cross_entropy(chosen.float(), batch["targets"], reduction="none") - batch["old"]
        ratio, weights = moved.exp(), batch["weights"]
        free, held = ratio * weights, ratio.clamp(self.low, self.high) * weights
        return {
            "loss": -free.minimum(held).sum(),
            "clip_fraction": (held < free).float().sum() * batch["share"],
            "approx_kl": (ratio - 1 - moved).sum() * batch["share"],
        }
