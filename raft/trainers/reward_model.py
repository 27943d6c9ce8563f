"""A reward model out of pairs (Bradley and Terry 1952): the better one wins with chance sigmoid(r_better - r_worse).

    loss of a step = mean over its pairs of -log sigmoid(r_chosen - r_rejected)

The reward is read at the last token of a conversation by its position, never by looking for padding tokens:
where padding and end are the same token, that would read the wrong one.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from raft.core.errors import RowError, UserError
from raft.core.options import source
from raft.core.protocols import Advance, Dropped
from raft.core.records import Pair
from raft.core.seeds import derive
from raft.metrics import reward_accuracy
from raft.models import chat_templates, loading, packed_attention, reward_templates
from raft.trainers import hf_trainer, microbatches, sharding
from raft.trainers.batches import Order, Texts
from raft.trainers.hf_trainer import Batch, TrainerOptions

Sides = tuple[np.ndarray, np.ndarray]  # the tokens of the chosen and of the rejected conversation

OUTPUTS = ("lm_head.", "embed_out.", "score.")  # the layers that are removed and added
HEAD_STD = 0.02  # of a fresh head: rewards begin near 0, so the first loss is near log 2


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(TrainerOptions):
    """Trains a classifier with one output, from a language model (with a fresh head) or from another reward model."""

    takes_pairs: ClassVar[bool] = True
    makes: ClassVar[str] = "reward-model"

    learning_rate: float = 5.0e-6
    num_train_epochs: int = 1
    max_length: int = 512  # of the longer side of a pair
    template: str = source("template", "plain")  # as kind: model has it

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from reward_templates.template_faults(self.template)
        if self.template == "pair":
            yield "template", "pair is for encoders; a decoder, which is what is trained, reads one text"

    def fit(
        self, start: Path, examples: Iterable[Pair], out: Path, seed: int, advance: Advance, dropped: Dropped,
        checkpoints: Path | None,
    ) -> dict[str, float]:  # fmt: skip
        """Writes the reward model and its tokenizer into `out`; `batch_size` counts pairs; see protocols.Trainer."""
        out.mkdir(parents=True, exist_ok=True)
        tokenizer = chat_templates.load_tokenizer(str(start))
        model = _classifier(self, start, tokenizer, seed)
        chat_templates.check_rows(tokenizer, model, str(start))
        model = hf_trainer.adapt(self, model, "SEQ_CLS")
        texts = Texts(out)
        for side in itertools.chain.from_iterable(self._encoded(model, tokenizer, examples, dropped)):
            texts.append(side)
        if not len(texts):
            raise UserError("there is no pair to train on; raise trainer.max_length, or give other pairs")
        if self.packing:
            microbatches.prove(self, model, [_pair(texts, 0), _pair(texts, len(texts) // 2 - 1)], _hidden)
        order = Order(len(texts) // 2, self.batch_size, self.num_train_epochs, seed)
        steps = hf_trainer.Steps(order, lambda members: self._batches(model, [_pair(texts, pair) for pair in members]))
        measured = hf_trainer.fit(self, model, steps, _comparison, out, seed, advance, checkpoints)
        if (model := sharding.whole(hf_trainer.merged(model))) is None:
            return {}
        hf_trainer.save(model, tokenizer, start, out, self.save_dtype, OUTPUTS)
        return hf_trainer.summary(measured, order)

    def evaluate(self, model_folder: Path, pairs: Iterable[Pair]) -> dict[str, float]:
        """How well a reward model tells held-out pairs apart: the share in which the chosen response has the higher
        reward with its 95 % interval, the means of loss and margin, and the calibration error (see
        `metrics.reward_accuracy`). Pairs that are too long are left out and counted.
        """
        tokenizer = chat_templates.load_tokenizer(str(model_folder))
        model = hf_trainer.ready(self, loading.load_model(model_folder, "SequenceClassification"))
        skipped: list[str] = []
        encoded = self._encoded(model, tokenizer, pairs, lambda prompt_id, index, reason: skipped.append(reason))
        margins = np.array(list(self._margins(model, encoded)))
        if not len(margins):
            why = "; ".join(skipped[:1]) or "none was given"
            raise UserError(f"there is no pair to evaluate with ({why}); raise trainer.max_length, or give other pairs")
        shares, fitted = reward_accuracy.accuracy(margins), reward_accuracy.fit(margins)
        return {
            "eval/accuracy": shares["accuracy"],
            "eval/accuracy_low": shares["low"],
            "eval/accuracy_high": shares["high"],
            **{f"eval/{name}": value for name, value in fitted.items()},
            "eval/pairs": len(margins),
            "eval/dropped": len(skipped),
        }

    def _margins(self, model: Any, pairs: Iterator[Sides]) -> Iterator[float]:
        """r_chosen - r_rejected of all pairs, by steps, within a step in any order."""
        proved = not self.packing
        while some := list(itertools.islice(pairs, self.batch_size)):
            if not proved:
                microbatches.prove(self, model, [some[0], some[-1]], _hidden)
                proved = True
            for batch in self._batches(model, some):
                with hf_trainer.looking(self):
                    yield from _margin(model, hf_trainer.tensors(batch, hf_trainer.device())).tolist()

    def _encoded(self, model: Any, tokenizer: Any, pairs: Iterable[Pair], dropped: Dropped) -> Iterator[Sides]:
        limit, name = microbatches.longest(self, model)
        for pair in pairs:
            texts = [side.text for side in (pair.chosen, pair.rejected)]
            try:
                encoded = reward_templates.encode_all(tokenizer, pair.prompt, texts, self.template)
            except RowError as fault:
                dropped(pair.prompt_id, None, str(fault))
                continue
            chosen, rejected = (np.array(ids, dtype=np.int32) for ids in encoded)
            if (strange := chat_templates.unembedded(tokenizer, [*encoded[0], *encoded[1]])) is not None:
                dropped(pair.prompt_id, None, strange)
            elif not min(len(chosen), len(rejected)):
                dropped(pair.prompt_id, None, "a side of the pair has no tokens")
            elif (longer := max(len(chosen), len(rejected))) > limit:
                dropped(pair.prompt_id, None, f"the longer side has {longer} tokens, more than {name} ({limit})")
            else:
                yield chosen, rejected

    def _batches(self, model: Any, pairs: list[Sides]) -> list[Batch]:
        """The forward passes of a step, each with whole pairs; their losses add up to the step's."""
        split = microbatches.split(self, model, pairs)
        return [self._batch(model, [pairs[place] for place in places], len(pairs)) for places in split]

    def _batch(self, model: Any, pairs: list[Sides], total: int) -> Batch:
        layout = microbatches.pack_or_pad(self, model, pairs)
        last = np.array([places[-1] for places in layout.places])
        return {"inputs": layout.inputs, "rows": layout.row, "last": last, "share": np.float32(1 / total)}


def _pair(texts: Texts, number: int) -> Sides:
    return texts[2 * number], texts[2 * number + 1]


def _comparison(model: Any, batch: Batch) -> dict[str, Any]:
    """A batch's share of the step's loss, accuracy and margin."""
    from torch.nn.functional import softplus

    margin = _margin(model, batch)
    shares = {"loss": softplus(-margin), "accuracy": (margin > 0).float(), "margin": margin}
    return {name: value.sum() * batch["share"] for name, value in shares.items()}


def _margin(model: Any, batch: Batch) -> Any:
    """r_chosen - r_rejected for each pair; the head in float32, for bfloat16 cannot tell near rewards apart."""
    import torch

    ends = _hidden(model, batch["inputs"])[batch["rows"], batch["last"]].float()
    with torch.autocast(ends.device.type, enabled=False):
        rewards = hf_trainer.plain(model).score(ends)[:, 0]
    return rewards[0::2] - rewards[1::2]


def _hidden(model: Any, inputs: dict[str, Any]) -> Any:
    return hf_trainer.hidden(model, **packed_attention.inputs(inputs, hf_trainer.device()))


def _classifier(options: TrainerOptions, start: Path, tokenizer: Any, seed: int) -> Any:
    """The model to train. A language model's output layer is left out, and a head is drawn from the seed."""
    from transformers import AutoConfig

    judged = any(
        "SequenceClassification" in name
        for name in AutoConfig.from_pretrained(start, trust_remote_code=False).architectures or []
    )
    may_lack = () if judged else ("score.weight", "score.bias", "lm_head.weight", "lm_head.bias")
    model = hf_trainer.load(options, start, seed, "SequenceClassification", num_labels=1, may_lack=may_lack)
    if not hasattr(model, "score"):
        kind = type(model).__name__
        raise UserError(f"{start}: {kind} reads no reward at its last token; use a decoder (Llama, Qwen, Gemma ...)")
    if not judged:
        _draw_head(model.score, derive(seed, "head"))
    model.config.get_text_config().pad_token_id = _pad(tokenizer)
    return hf_trainer.ready(options, model)


def _draw_head(head: Any, seed: int) -> None:
    import torch

    drawn = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    head.weight.data.copy_(HEAD_STD * drawn)
    if head.bias is not None:
        head.bias.data.zero_()


def _pad(tokenizer: Any) -> int:
    """A token that never ends a conversation: transformers looks for the last token that is not this one."""
    end = tokenizer.eos_token_id
    known = [
        token for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id) if token is not None
    ]
    return next((token for token in known if token != end), 0 if end is None else end)
