"""Generation by transformers' own `generate`: any causal architecture, any device; slower than vLLM.

It is the reference for what a response is. Every row draws its tokens with a generator of random
numbers of its own, so a response does not depend on the rows beside it, only its floats do (in float32
about the last digit, in bfloat16 enough to change a token); so the block they share is in the key.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from raft.core import device as devices
from raft.core.errors import UserError
from raft.core.options import faults_of_range, speed
from raft.core.records import Group, Policy, Prompt, Response
from raft.generators.sampling import Sampling, first_of, spell
from raft.models.chat_templates import Tokenizer, check_rows, encode_prompt, load_tokenizer
from raft.models.loading import load_model, positions

DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")
Tensor = Any  # torch.Tensor; importing it here would make every command slow


class Loaded(NamedTuple):
    """A policy in memory."""

    model: Any
    tokenizer: Tokenizer


@dataclass(frozen=True, kw_only=True)
class Transformers(Sampling):
    """Generates `batch_size` prompts together, `batch_size * k` rows.

    `dtype` auto is bfloat16 on CUDA and float32 elsewhere; `device` None is CUDA where there is one.
    """

    batch_size: int = 16
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = speed(None)
    can_continue = True

    def resolved(self) -> dict[str, Any]:
        """What follows the device where the recipe leaves it open."""
        if self.dtype != "auto" or self.device is None:
            return {"dtype": devices.dtype_of(self.dtype)}
        return {"dtype": "bfloat16" if self.device.startswith("cuda") else "float32"}

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, batch_size=(1, float("inf")))
        if self.device is not None and not DEVICE.fullmatch(self.device):
            yield "device", f"{self.device!r} is not a device; allowed: cpu, cuda, mps, xpu, with a number: cuda:1"

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        """One group for each prompt, block by block, in order."""
        loaded = self._load(policy.path)
        waiting = iter(prompts)
        while block := list(islice(waiting, self.batch_size)):
            yield from self._answer(loaded, block, seed)

    def release(self) -> None:
        """Gives the memory back; the next call loads the policy again."""
        import gc

        self._held.clear()
        gc.collect()
        devices.free_cache()

    @cached_property
    def _held(self) -> dict[Path, Loaded]:
        return {}

    def _load(self, path: Path) -> Loaded:
        """The policy at the path; what a path holds never changes, so it is loaded once."""
        if path not in self._held:
            if self._held:
                self.release()
            self._held[path] = load(path, self.resolved()["dtype"], self.device)
        return self._held[path]

    def _answer(self, loaded: Loaded, block: list[Prompt], seed: int) -> Iterator[Group]:
        rows = [ids for prompt in block for ids in [self._encode(loaded, prompt)] * self.k]
        drawing = Drawing(self, loaded, [prompt.seed(seed, k) for prompt in block for k in range(self.k)])
        with devices.fits("a block of prompts", "lower generator.batch_size or generator.k"):
            drawing.run(rows)
        opened = [self.opening(loaded.tokenizer, ids) for ids in rows]
        responses = (
            self.finish(response, loaded.tokenizer, count)
            for response, count in zip(drawing.responses(), opened, strict=True)
        )
        for prompt in block:
            yield Group(prompt, list(islice(responses, self.k)))

    def _encode(self, loaded: Loaded, prompt: Prompt) -> list[int]:
        ids = encode_prompt(loaded.tokenizer, prompt)
        if not ids:
            raise UserError(f"prompt {prompt.id} has no tokens, so there is nothing to continue; remove it")
        self.check_room(prompt, ids, positions(loaded.model))
        return ids


def load(path: Path, dtype: str, device: str | None) -> Loaded:
    """The model folder in memory, ready to generate; weights are read as data alone, and no code of the folder runs."""
    import torch
    from transformers import GenerationConfig

    if device is not None:
        devices.require(device)
    device = device or devices.current()
    tokenizer = load_tokenizer(str(path))
    model = load_model(path, dtype=getattr(torch, dtype))
    check_rows(tokenizer, model, str(path))
    with devices.fits(str(path), "lower generator.batch_size, or use a smaller policy"):
        model.to(device).eval()
    model.generation_config = GenerationConfig()  # the folder's own temperature and penalties are not the recipe's
    return Loaded(model, tokenizer)


class Drawing:
    """Responses under way, one for each row of a batch: draws their next tokens and knows which have ended.

    Both a logits processor and a stopping criterion of `generate`, which itself is left nothing to choose.
    The numbers are drawn and compared on the CPU in double precision: the same on every device.
    """

    def __init__(self, sampling: Sampling, loaded: Loaded, seeds: Sequence[int]) -> None:
        self.sampling, self.loaded = sampling, loaded
        self.ends = sampling.ends(loaded.tokenizer)
        self.warp = warpers(sampling)
        self.uniform = uniform(seeds, sampling.max_tokens)
        self.token_ids: list[list[int]] = [[] for _ in seeds]
        self.logprobs: list[list[float]] = [[] for _ in seeds]
        self.reasons: list[str | None] = [None for _ in seeds]

    def run(self, rows: Sequence[list[int]]) -> None:
        """Generates until every row has ended."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        model = self.loaded.model
        ids, mask = pad(rows, model.device)
        model.generate(
            ids,
            attention_mask=mask,
            generation_config=GenerationConfig(max_new_tokens=self.sampling.max_tokens, do_sample=False),
            logits_processor=LogitsProcessorList([self.draw]),
            stopping_criteria=StoppingCriteriaList([self.ended]),
        )

    def draw(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        """Logits (rows, vocabulary) that leave each row only its sampled token; finished rows are unchanged."""
        under_way = [row for row, reason in enumerate(self.reasons) if reason is None]
        if not under_way:
            return logits
        chosen = self._choose(under_way, self.warp(input_ids[under_way], logits[under_way])).to(logits.device)
        raw = logits[under_way].log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        for row, token, logprob in zip(under_way, chosen.tolist(), raw.tolist(), strict=True):
            self._extend(row, token, logprob)
        forced = logits.clone()
        forced[under_way] = float("-inf")
        forced[under_way, chosen] = 0.0
        return forced

    def ended(self, input_ids: Tensor, scores: Any) -> Tensor:
        """Which rows have ended, one truth value for each."""
        import torch

        return torch.tensor([reason is not None for reason in self.reasons], device=input_ids.device)

    def responses(self) -> Iterator[Response]:
        """The responses of all rows, in order."""
        for ids, logprobs, reason in zip(self.token_ids, self.logprobs, self.reasons, strict=True):
            assert reason is not None, "a response is read before it has ended"
            yield Response(self.ends.spell(self.loaded.tokenizer, ids), ids, logprobs, reason)

    def _choose(self, rows: list[int], scores: Tensor) -> Tensor:
        """One token for each row: where its uniform number falls in the cumulative distribution."""
        import torch

        if self.sampling.temperature == 0:
            return scores.argmax(-1)
        mass = scores.cpu().double().softmax(-1).cumsum(-1)
        whole = mass[:, -1]
        mark = self.uniform[rows, len(self.token_ids[rows[0]])] * whole
        mark = mark.minimum(whole.nextafter(torch.zeros_like(whole)))  # below the whole, so never past the last token
        return torch.searchsorted(mass, mark[:, None], right=True)[:, 0]

    def _extend(self, row: int, token: int, logprob: float) -> None:
        ids = self.token_ids[row]
        ids.append(token)
        self.logprobs[row].append(logprob)
        texts = self.ends.texts
        if token in self.ends.tokens or (texts and first_of(texts, spell(self.loaded.tokenizer, ids)) is not None):
            self.reasons[row] = "stop"
        elif len(ids) == self.sampling.max_tokens:
            self.reasons[row] = "length"


def pad(rows: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (rows, longest), padded on the left.

    A row is padded with its own first token: no id needs to be kept for padding, and a repetition
    penalty, which reads the padding too, finds nothing there that the prompt does not hold.
    """
    import torch

    longest = max(map(len, rows))
    ids = [[row[0]] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def uniform(seeds: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1), (seeds, count), double precision; each row depends on its seed alone.

    NumPy's generators read all 63 bits of a seed; torch's on the CPU read the lower 32, so that rows would meet.
    """
    import torch

    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(count) for seed in seeds]))


def warpers(sampling: Sampling) -> Any:
    """What changes the logits before a draw, in transformers' order: penalty, temperature, top-k, top-p, min-p."""
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as of

    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chain.append(of.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.temperature not in (0, 1):
        chain.append(of.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k is not None:
        chain.append(of.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(of.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        chain.append(of.MinPLogitsWarper(sampling.min_p))
    return chain
