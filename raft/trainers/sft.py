"""Fine-tuning a policy on responses: the last stage of an iteration of RAFT (Dong et al. 2023, arXiv:2304.06767).

loss of a step = sum of weight * nll over response tokens / sum of weight over response tokens
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raft.core.options import faults_of_range
from raft.core.protocols import Dropped
from raft.core.records import Example
from raft.trainers.hf_trainer import Batch, Loss
from raft.trainers.policy import Corpus, PolicyTrainer, Predictions


@dataclass(frozen=True, kw_only=True)
class SFT(PolicyTrainer):
    """Maximum likelihood of the responses, by tokens, each example counting by its weight.

    With `block_size` the examples are one long text, cut into blocks of so many tokens, and every token but the first
    of a block is learned, prompts as well: plain language modelling. Examples do see each other there, weights do not
    count, and what is left at the end, less than a block, is left out.

    With `reasoning: cut` the thought of a response is not learned but taken out, as templates leave out the thoughts of
    earlier turns: the answer follows the prompt, with the tokens with which it was generated.
    """

    block_size: int | None = None
    reasoning: Literal["learn", "cut"] = "learn"

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, block_size=(2, np.inf))

    def corpus(
        self, tokenizer: Any, examples: Iterable[Example], folder: Path, limit: tuple[int, str], dropped: Dropped
    ) -> Corpus:
        corpus = Corpus(folder, cut=self.reasoning == "cut")
        if self.block_size is None:
            corpus.read(tokenizer, examples, limit, dropped)
        else:
            corpus.read_blocks(tokenizer, examples, self.block_size, limit, dropped)
        return corpus

    def loss(self, model: Any, tokenizer: Any, corpus: Corpus) -> Loss:
        return Likelihood(model)


class Likelihood:
    """A batch's weighted negative log-likelihood, in float32."""

    def __init__(self, model: Any):
        self.predictions = Predictions(model)

    def __call__(self, model: Any, batch: Batch) -> dict[str, Any]:
        from torch.nn.functional import cross_entropy

        chosen = self.predictions(model, batch)
        return {"loss": (cross_entropy(chosen.float(), batch["targets"], reduction="none") * batch["weights"]).sum()}
