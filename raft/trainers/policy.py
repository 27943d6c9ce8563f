"""Training a policy on responses: what the trainers of policies share, and the examples as tokens.

A step is exactly `batch_size` examples of a keyed shuffle; only tokens of responses are learned: those that were
generated, and the end token where there was one. Neither packing nor the number of forward passes changes a loss.
"""

from abc import abstractmethod
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raft.core.errors import UserError
from raft.core.protocols import Advance, Dropped
from raft.core.records import Example
from raft.models import chat_templates, packed_attention, weight_check
from raft.models.packing import Layout
from raft.trainers import hf_trainer, microbatches, sharding
from raft.trainers.batches import Order, Texts, unlearnable
from raft.trainers.hf_trainer import Batch, Loss, TrainerOptions


@dataclass(frozen=True, kw_only=True)
class PolicyTrainer(TrainerOptions):
    """What the trainers of policies share: all but the loss, and what of an example it needs."""

    @abstractmethod
    def loss(self, model: Any, tokenizer: Any, corpus: "Corpus") -> Loss:
        """What a forward pass adds to the loss of its step."""

    def corpus(
        self, tokenizer: Any, examples: Iterable[Example], folder: Path, limit: tuple[int, str], dropped: Dropped
    ) -> "Corpus":
        """The examples that can be learned; the rest is named through `dropped`. UserError if nothing is left."""
        corpus = Corpus(folder)
        corpus.read(tokenizer, examples, limit, dropped)
        return corpus

    def fit(
        self, start: Path, examples: Iterable[Example], out: Path, seed: int, advance: Advance, dropped: Dropped,
        checkpoints: Path | None,
    ) -> dict[str, float]:  # fmt: skip
        """Writes the fine-tuned model, its tokenizer and its probe into `out`; see protocols.Trainer."""
        out.mkdir(parents=True, exist_ok=True)
        tokenizer = chat_templates.load_tokenizer(str(start))
        model = hf_trainer.ready(self, hf_trainer.load(self, start, seed))
        chat_templates.check_rows(tokenizer, model, str(start))
        corpus = self.corpus(tokenizer, examples, out, microbatches.longest(self, model), dropped)
        texts = corpus.excerpts()
        before = sharding.within(model, weight_check.of_engines, texts)
        model = hf_trainer.adapt(self, model, "CAUSAL_LM")
        steps = self._steps(model, corpus, seed)
        prove(self, model, corpus)
        loss = self.loss(model, tokenizer, corpus)
        measured = hf_trainer.fit(self, model, steps, loss, out, seed, advance, checkpoints)
        if (model := hf_trainer.save_policy(self, model, tokenizer, start, out, texts, before)) is None:
            return {}
        more = {"train/tokens": corpus.learned, "train/padding": self._padding(model, corpus, steps.order)}
        return {**hf_trainer.summary(measured, steps.order), **more}

    def _steps(self, model: Any, corpus: "Corpus", seed: int) -> hf_trainer.Steps:
        order = Order(len(corpus), self.batch_size, self.num_train_epochs, seed)
        return hf_trainer.Steps(order, lambda members: self._batches(model, corpus, members))

    def _batches(self, model: Any, corpus: "Corpus", members: np.ndarray) -> list[Batch]:
        """The forward passes of a step; their losses add up to the step's."""
        total = corpus.total(members)
        texts = [[text] for text in corpus.chosen(members)]
        return [
            corpus.batch(
                members[places], microbatches.pack_or_pad(self, model, [texts[place] for place in places]), total
            )
            for places in microbatches.split(self, model, texts)
        ]

    def _padding(self, model: Any, corpus: "Corpus", order: Order) -> float:
        """Share of the positions of the first epoch that are padding."""
        area = used = 0
        for number in range(order.per_epoch if not self.packing else 0):
            members = order.step(number)
            used += sum(corpus.texts.lengths(members))
            area += sum(batch["inputs"]["input_ids"].size for batch in self._batches(model, corpus, members))
        return 1 - used / area if area else 0.0


class Corpus:
    """The examples as tokens on disk; in memory only where each response begins and how much it counts."""

    def __init__(self, folder: Path, cut: bool = False):
        self.texts, self.cut = Texts(folder), cut  # whether thoughts are left out
        self.begins = array("i")  # where the response begins in its text
        self.weights = array("d")

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, tokenizer: Any, examples: Iterable[Example], limit: tuple[int, str], dropped: Dropped) -> None:
        """Keeps what can be learned and names the rest through `dropped`. UserError if nothing is left."""
        reasons = set()
        for example in examples:
            prompt, response = self.tokens(tokenizer, example)
            reason = chat_templates.unembedded(tokenizer, [*prompt, *response]) or unlearnable(prompt, response, limit)
            reason = reason or self.unfit(example)
            if reason is None:
                self._add(prompt, response, example.weight)
                self.note(example)
            else:
                dropped(example.prompt_id, example.index, reason)
                reasons.add(reason)
        if not len(self):
            raise UserError(
                f"there is no example to train on ({'; '.join(sorted(reasons)[:3]) or 'none was given'}); "
                "raise trainer.max_length, or loosen the selection"
            )

    def read_blocks(
        self, tokenizer: Any, examples: Iterable[Example], size: int, limit: tuple[int, str], dropped: Dropped
    ) -> None:
        """Keeps the tokens of all examples that the model has, one after the other, as texts of `size` tokens."""
        longest, of = limit
        if size > longest:
            raise UserError(f"trainer.block_size: {size} tokens are more than {of} ({longest}); lower it")
        left: list[int] = []
        for example in examples:
            prompt, response = self.tokens(tokenizer, example)
            if (strange := chat_templates.unembedded(tokenizer, [*prompt, *response])) is not None:
                dropped(example.prompt_id, example.index, strange)
                continue
            left += prompt + response
            while len(left) >= size:
                self._add(left[:1], left[1:size], 1.0)
                left = left[size:]
        if not len(self):
            raise UserError(f"all examples together have {len(left)} tokens, less than a block of {size}; lower blocks")

    def _add(self, prompt: list[int], response: list[int], weight: float) -> None:
        self.texts.append([*prompt, *response])
        self.begins.append(len(prompt))
        self.weights.append(weight)

    def tokens(self, tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
        """The prompt and what is learned of the response; with `cut` neither has a part of a thought."""
        prompt, response = chat_templates.encode_prompt(tokenizer, example.prompt), example.response
        learned = chat_templates.trained_tokens(tokenizer, response, example.messages is not None)
        if not self.cut or response.reasoning is None:
            return prompt, learned
        if response.reasoning_tokens is None:  # the thought ends inside a token, so there are no tokens of the answer
            return prompt, []
        return prompt[: len(prompt) - response.opened], learned[response.reasoning_tokens :]

    def note(self, example: Example) -> None:
        """Keeps what else the loss needs of an example whose tokens have been added."""

    def unfit(self, example: Example) -> str | None:
        """Why the loss cannot be computed for an example; None if it can."""
        if 0 < example.weight < np.inf:
            return None
        return f"weight {example.weight:g} is not a positive number (a negative one is for kind: policy-gradient)"

    @property
    def learned(self) -> int:
        """Response tokens in all."""
        return sum(self.texts.lengths(range(len(self)))) - sum(self.begins)

    def total(self, members: np.ndarray) -> float:
        """The denominator of a step's loss: the weights of all its response tokens."""
        return sum(
            self.weights[index] * (length - self.begins[index])
            for index, length in zip(members, self.texts.lengths(members), strict=True)
        )

    def batch(self, members: np.ndarray, layout: Layout, total: float) -> Batch:
        """One forward pass: the positions that predict a response token, what they predict, and how much it counts."""
        begins = [self.begins[index] for index in members]
        responses = [text[begin:] for text, begin in zip(self.chosen(members), begins, strict=True)]
        counts = [len(response) for response in responses]
        # A token is predicted one column before its own.
        columns = [places[begin - 1 : -1] for places, begin in zip(layout.places, begins, strict=True)]
        keep, places = np.unique(np.concatenate(columns), return_inverse=True)
        return {
            "inputs": layout.inputs,
            "keep": keep,
            "rows": np.repeat(layout.row, counts),
            "places": places,
            "targets": np.concatenate(responses).astype(np.int64),
            "weights": np.repeat([self.weights[index] / total for index in members], counts).astype(np.float32),
        }

    def chosen(self, members: np.ndarray) -> list[np.ndarray]:
        """The tokens of these examples."""
        return [self.texts[index] for index in members]

    def excerpts(self) -> list[list[int]]:
        """The ends of the first texts, where training moves the policy most: what it is probed with."""
        return [
            self.texts[index][-weight_check.LENGTH :].tolist() for index in range(min(len(self), weight_check.COUNT))
        ]

    def two(self) -> list[np.ndarray]:
        """Two texts, short, to prove with them that packed examples do not see each other."""
        return [self.texts[index][: weight_check.LENGTH] for index in (0, len(self) - 1)]


class Predictions:
    """The logits [tokens, vocabulary] of the response tokens of a batch; no others are computed."""

    def __init__(self, model: Any):
        import inspect

        self.selects = "logits_to_keep" in inspect.signature(hf_trainer.plain(model).forward).parameters

    def __call__(self, model: Any, batch: Batch) -> Any:
        logits = self._kept(model, batch)
        return logits[0] if len(logits) == 1 else logits[batch["rows"], batch["places"]]

    def _kept(self, model: Any, batch: Batch) -> Any:
        if self.selects:
            inputs = packed_attention.inputs(batch["inputs"], batch["keep"].device)
            return model(**inputs, logits_to_keep=batch["keep"], use_cache=False).logits
        return _logits(model, batch["inputs"])[:, batch["keep"]]


def prove(options: TrainerOptions, model: Any, corpus: Corpus) -> None:
    """UserError if packed examples see each other in this model."""
    if options.packing:
        microbatches.prove(options, model, [[text] for text in corpus.two()], _logits)


def _logits(model: Any, inputs: dict[str, Any]) -> Any:
    return model(**packed_attention.inputs(inputs, hf_trainer.device()), use_cache=False).logits
