"""Log-probabilities of responses under a policy, computed by transformers in the same way for every policy."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raft.core import device, signals
from raft.core.records import Group, Score
from raft.core.timing import part
from raft.models import chat_templates, loading, packed_attention, packing

BLOCK = 16  # groups that share batches; fixed, because floats can depend on the batch
ADVICE = "leave out evaluation.kl and selection.kl_coef"


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How likely a policy finds responses, as a launch asks for rewards: by blocks of groups, on any device."""

    folder: Path
    batch_size = BLOCK

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """For each response the natural log-probability of its tokens given its prompt, at temperature 1.

        Where a prompt has no token, as an empty text of a tokenizer without BOS, a response is given its first token.
        """
        for logprobs in self._block(list(groups)):
            yield [Score(logprob) for logprob in logprobs]

    def release(self) -> None:
        """Forgets the model."""
        vars(self).pop("_loaded", None)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, bool]:
        """The model, its tokenizer, and whether it reads packed rows."""
        with part("load"), device.fits(f"{self.folder}, in float32,", ADVICE):
            model = loading.load_model(self.folder)
            loading.to_device(model)
            return model, chat_templates.load_tokenizer(str(self.folder)), packed_attention.adopt(model, _hidden)

    def _block(self, block: list[Group]) -> list[list[float]]:
        """The log-probabilities of groups that share batches."""
        model, tokenizer, packed = self._loaded
        prompts = [chat_templates.encode_prompt(tokenizer, group.prompt) for group in block]
        rows = [
            [prompt + response.token_ids for response in group.responses]
            for prompt, group in zip(prompts, block, strict=True)
        ]
        sums = [[0.0] * len(texts) for texts in rows]
        signals.check()
        for batch in packing.batches(rows, packing.FORWARD[device.current()], packed):
            texts = [[rows[number][at] for number, at in part] for part in batch]
            places = [place for part in batch for place in part]
            layout = packing.pack(texts) if packed else packing.pad([text for part in texts for text in part])
            with device.fits("a batch of responses, in float32,", ADVICE):
                totals = _likely(model, layout, [max(1, len(prompts[number])) for number, _ in places])
            for (number, at), total in zip(places, totals, strict=True):
                sums[number][at] = total
        return sums


def _likely(model: Any, layout: packing.Layout, begins: list[int]) -> list[float]:
    """For each text, the sum of the log-probabilities of its tokens from `begins` on."""
    import torch

    # Token t is predicted one place before its own.
    asked = [places[begin - 1 : -1] for places, begin in zip(layout.places, begins, strict=True)]
    targets = np.concatenate(
        [
            layout.inputs["input_ids"][row, places[begin:]]
            for row, places, begin in zip(layout.row, layout.places, begins, strict=True)
        ]
    )
    counts = [len(predicted) for predicted in asked]
    rows, columns = np.repeat(layout.row, counts), np.concatenate(asked)
    keep, at = np.unique(columns, return_inverse=True)
    inputs = packed_attention.inputs(layout.inputs, model.device)
    with torch.inference_mode(), _products():
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            kept = torch.as_tensor(keep, device=model.device)
            logits = model(**inputs, logits_to_keep=kept, use_cache=False).logits
        else:
            logits = model(**inputs, use_cache=False).logits[:, keep]
        likely = logits[rows, at].float().log_softmax(-1)
        picked = likely.gather(-1, torch.as_tensor(targets, device=model.device)[:, None])[:, 0].cpu()
    return [float(part.sum()) for part in picked.split(counts)]


@contextmanager
def _products() -> Iterator[None]:
    """Matrix products of float32 in TF32 on a GPU, for every policy alike; data sheets give those 7 times the speed."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.current() == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _hidden(model: Any, **inputs: Any) -> Any:
    return model.base_model(**inputs, use_cache=False).last_hidden_state
