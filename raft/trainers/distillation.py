"""On-policy distillation: the policy learns from a teacher's probabilities on the policy's own responses.

    loss of a step = sum of weight * KL at each response token / sum of weight over response tokens

The divergence is over the whole vocabulary: `reverse` is KL(policy || teacher), which seeks a mode of the teacher,
`forward` KL(teacher || policy), which covers it (arXiv:2306.13649).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raft.core.errors import UserError
from raft.core.options import source
from raft.models import chat_templates, hub
from raft.trainers import hf_trainer, sharding
from raft.trainers.hf_trainer import Batch, Loss
from raft.trainers.policy import Corpus, PolicyTrainer, Predictions, prove


@dataclass(frozen=True, kw_only=True)
class Distillation(PolicyTrainer):
    """Brings the policy nearer to `teacher`, a folder or hub id with the same tokenizer, on the selected responses.

    Rewards say which responses those are; `selection.kind: random` or `top-fraction` with `fraction: 1` takes no
    account of them. The teacher reads what the policy read, written with the policy's chat template.
    """

    teacher: str = source("model")
    revision: str | None = None
    divergence: Literal["reverse", "forward"] = "reverse"

    def loss(self, model: Any, tokenizer: Any, corpus: Corpus) -> Loss:
        folder = hub.locate_model(self.teacher, self.revision)
        words = _same_words(tokenizer, folder, self.teacher)
        teacher = hf_trainer.ready(self, hf_trainer.load(self, folder, 0)).eval().requires_grad_(False)
        prove(self, teacher, corpus)
        return Divergence(model, teacher, words, self.divergence == "reverse")


class Divergence:
    """A batch's weighted divergence between two models, in float32, over the `words` of their tokenizer."""

    def __init__(self, model: Any, teacher: Any, words: int, reverse: bool):
        self.teacher, self.words, self.reverse = teacher, words, reverse
        self.of_model, self.of_teacher = Predictions(model), Predictions(teacher)

    def __call__(self, model: Any, batch: Batch) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            other = self._logprobs(sharding.within(self.teacher, self.of_teacher, batch))
        own = self._logprobs(self.of_model(model, batch))
        above, below = (own, other) if self.reverse else (other, own)
        return {"loss": ((above.exp() * (above - below)).sum(-1) * batch["weights"]).sum()}

    def _logprobs(self, logits: Any) -> Any:
        """Both models may pad their vocabulary, each in its own way."""
        return logits[..., : self.words].float().log_softmax(-1)


def _same_words(tokenizer: Any, folder: Path, name: str) -> int:
    """The size of the vocabulary. UserError if the teacher's is another: then the two speak of different tokens."""
    own, other = tokenizer.get_vocab(), chat_templates.load_tokenizer(str(folder)).get_vocab()
    if own != other:
        strange = next((token for token in {**own, **other} if own.get(token) != other.get(token)), "")
        raise UserError(
            f"trainer.teacher: {name} has another tokenizer than the policy (the first difference: token {strange!r} "
            f"is {own.get(strange)} here and {other.get(strange)} there); use a teacher of the same family"
        )
    return max(own.values()) + 1
