"""kind: model. A sequence classifier that reads a whole conversation; one of its logits is the reward.

The checkpoint has to hold every weight, the head included: a head with random weights would give rewards
that look like any others. The reward is read at the last token of the conversation by its position, not by
its id, so a response that ends in the padding token is read where it ends.

    reward: {kind: model, model: some/reward-model, template: chat, max_tokens: 2048}
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from raft import chat
from raft.errors import Stopped, UserError
from raft.plugins import faults_of_range, source
from raft.records import Group, Prompt, Score

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """The logit `label` of a sequence classifier; `label` may be left out where the checkpoint has one.

    `template` is "chat" (the reward model's own chat template) or "plain" (prompt and response joined). A
    conversation of more than `max_tokens` tokens, or more than the model reads, is not scored; with `too_long:
    cut-prompt` the oldest part of its prompt goes first, and the part `cut_tokens` says how many tokens went.
    A forward pass reads at most `batch_tokens` tokens, padding included. `dtype: auto` is bfloat16 on an
    accelerator and float32 on a CPU; the head always works in float32.
    """

    model: str = source("model")
    revision: str | None = None
    template: Literal["chat", "plain"] = "chat"
    max_tokens: int = 2048
    too_long: Literal["error", "cut-prompt"] = "error"
    label: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: str | None = None
    batch_tokens: int = 16384
    remote_code: bool = False

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, max_tokens=(1, math.inf), batch_tokens=(1, math.inf), label=(0, math.inf))

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Scores all the groups as one block: the rewards of a block do not depend on the order within it."""
        block = list(groups)
        rows = [self._encode(group.prompt, response.text) for group in block for response in group.responses]
        rewards = self._classifier.rewards({ids for ids, _ in rows if 0 < len(ids) <= self._limit})
        scores = iter([self._score(ids, cut, rewards) for ids, cut in rows])
        for group in block:
            yield list(islice(scores, len(group.responses)))

    def release(self) -> None:
        if "_classifier" in vars(self):
            self._classifier.move("cpu")

    @cached_property
    def _classifier(self) -> "Classifier":
        return Classifier(self)

    @property
    def _limit(self) -> int:
        return min(self.max_tokens, self._classifier.longest)

    def _encode(self, prompt: Prompt, response: str) -> tuple[Ids, int]:
        """The tokens that are read, and how many of the prompt were cut off before them."""
        tokenizer = self._classifier.tokenizer
        ids = chat.encode_conversation(tokenizer, prompt, response, self.template)
        if len(ids) <= self._limit or self.too_long == "error":
            return tuple(ids), 0
        kept = chat.cut_conversation(tokenizer, prompt, response, self.template, self._limit)
        return tuple(kept), len(ids) - len(kept)

    def _score(self, ids: Ids, cut: int, rewards: dict[Ids, float]) -> Score:
        if ids in rewards and math.isfinite(rewards[ids]):
            return Score(rewards[ids], {"cut_tokens": float(cut)} if cut else {})
        if ids in rewards:
            return Score(None, error=f"the reward model gave {rewards[ids]}, not a finite number")
        if not ids:
            return Score(None, error="0 tokens, nothing to read")
        whose = "reward.max_tokens" if len(ids) > self.max_tokens else f"the {self._limit} that the reward model reads"
        return Score(None, error=f"{len(ids)} tokens, more than {whose}")


class Classifier:
    """The living model: tokens to rewards, in batches of similar length."""

    def __init__(self, options: RewardModel):
        import torch

        from raft.hub import locate_model

        self.name, self.batch_tokens = options.model, options.batch_tokens
        folder = locate_model(options.model, options.revision)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = chat.load_tokenizer(str(folder))
        self.model = _load(options, folder, self.device)
        self.label = _label(options, self.model.config.num_labels)
        head = getattr(self.model, "score", None)
        self.head = head.float() if isinstance(head, torch.nn.Linear) else None
        self.longest = self._longest()

    def rewards(self, rows: Iterable[Ids]) -> dict[Ids, float]:
        """The reward of each row of tokens. Longest first: memory that does not suffice shows at once."""
        self.move(self.device)
        ordered = sorted(rows, key=lambda ids: (-len(ids), ids))
        found: dict[Ids, float] = {}
        while batch := ordered[len(found) : len(found) + self._fitting(ordered[len(found) :])]:
            found.update(zip(batch, self._read(batch), strict=True))
        return found

    def move(self, device: str) -> None:
        """To the accelerator, or to host memory, which gives the accelerator's memory back."""
        import torch

        self.model.to(device)
        if device == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _fitting(self, rows: Sequence[Ids]) -> int:
        return max(1, self.batch_tokens // len(rows[0])) if rows else 0

    def _read(self, batch: Sequence[Ids]) -> list[float]:
        """One forward pass, or two of half the size where the accelerator's memory does not suffice for one."""
        import torch

        try:
            with torch.inference_mode():
                return self._logits(batch)[:, self.label].float().tolist()
        except torch.OutOfMemoryError as fault:
            if len(batch) == 1:
                raise UserError(
                    f"{self.name}: one conversation of {len(batch[0])} tokens does not fit the accelerator's memory; "
                    "lower reward.max_tokens, or use a smaller model"
                ) from fault
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._read(batch[:half]) + self._read(batch[half:])

    def _logits(self, batch: Sequence[Ids]) -> Any:
        """The logits of a batch, padded on the right. Shape (rows, labels)."""
        import torch

        rows = [torch.tensor(ids) for ids in batch]
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        pad = self.tokenizer.pad_token_id or 0 if self.head is None else 0  # of a decoder no later token is seen
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        if self.head is None:
            return self.model(**inputs).logits
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1
        return self.head(hidden[torch.arange(len(batch), device=self.device), last].float())

    def _longest(self) -> int:
        """The tokens that the model has positions for; only encoders are bound to what the tokenizer says."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        if self.head is None:
            positions = min(positions, self.tokenizer.model_max_length)
        return int(min(positions, 1 << 30))


def _load(options: RewardModel, folder: Path, device: str) -> Any:
    """The classifier on the device; a checkpoint that is not exactly one is refused."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    dtype = ("bfloat16" if device == "cuda" else "float32") if options.dtype == "auto" else options.dtype
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=options.remote_code)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=getattr(torch, dtype), attn_implementation=_attention(options, config),
            output_loading_info=True, trust_remote_code=options.remote_code, weights_only=True,
        )  # fmt: skip
    except (Stopped, UserError):
        raise
    except Exception as fault:
        raise UserError(f"{options.model} cannot be loaded as a reward model: {fault}") from fault
    _check_complete(options.model, report)
    model = model.eval().requires_grad_(False).to(device)
    _check_finite(options.model, model)
    return model


def _attention(options: RewardModel, config: Any) -> str | None:
    """The attention that transformers is asked for; None is its own choice."""
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None:
        return options.attention
    if options.attention == "sdpa":
        allowed = "allowed: eager, flash_attention_2"
        raise UserError(f"reward.attention: sdpa leaves out the soft cap of {options.model}; {allowed}")
    return options.attention or "eager"


def _check_complete(name: str, report: dict[str, Any]) -> None:
    wrong = [f"{kind} {_some(report[f'{kind}_keys'])}" for kind in ("missing", "unexpected") if report[f"{kind}_keys"]]
    if wrong:
        raise UserError(
            f"{name} is not a whole sequence classifier: {'; '.join(wrong)}. Its rewards would be made up; "
            "name a reward model whose checkpoint has exactly the tensors of its class"
        )


def _check_finite(name: str, model: Any) -> None:
    """NaN passes through minimum and maximum, so the two tell of every value without a copy of the weights."""
    import torch

    bad = [key for key, weight in model.named_parameters() if not torch.stack(weight.aminmax()).isfinite().all()]
    if bad:
        raise UserError(f"{name} has weights that are NaN or infinite: {_some(bad)}; the checkpoint is damaged")


def _label(options: RewardModel, count: int) -> int:
    if options.label is None and count == 1:
        return 0
    if options.label is None or options.label >= count:
        given = "is not given" if options.label is None else f"is {options.label}"
        raise UserError(f"reward.label {given}, but {options.model} has {count} logits; allowed: 0 to {count - 1}")
    return options.label


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
