"""A reward model in memory: a backbone, its head, and conversations as tokens to outputs.

A decoder reads packed rows, in which what the responses of a prompt begin with stands once (`models.packed_attention`,
which proves on the model that this makes no difference); other models read batches of similar length, padded.

The checkpoint has to hold every weight, the head included, and nothing beside: transformers would go on with a random
head, or leave a bias out, with no more than a warning. Nothing of it is code; heads are our own (`raft.rewards.heads`).
"""

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from raft.core import device
from raft.core.errors import Stopped, UserError
from raft.core.options import choice, faults_of_range, source
from raft.models import chat_templates, loading, model_folder, packed_attention, packing
from raft.models.checkpoint import Checkpoint, has_safetensors
from raft.models.loading import left_over, quiet
from raft.models.packing import Layout
from raft.rewards import heads
from raft.rewards.heads import HEADS, Attributes, Classifier, Head, Token

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}

ATTRIBUTES = {  # words in the names of outputs that are no classes
    "helpfulness", "correctness", "coherence", "complexity", "verbosity", "harmlessness", "honesty", "truthfulness",
    "factuality", "relevance", "fluency", "quality", "safety", "score", "rating", "reward",
}  # fmt: skip

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which model is read, and how.

    `head: auto` finds the head; `label` chooses among several outputs, by name or number (for `head: token` it is the
    id whose logit is the reward). `read` says what of that output is the reward: itself (`logit`), or, where the
    outputs are the classes of one softmax, log p - log(1 - p) of the class (`log-odds`) or p (`probability`); `auto`
    goes by the config. `dtype: auto` is bfloat16 on an accelerator and float32 on a CPU; the head of a decoder always
    works in float32. A forward pass reads at most `max_tokens_per_batch` tokens, padding included; by default 2048 on
    a CPU, where that many fit its cache, and 16384 on an accelerator.
    """

    model: str = source("model")
    revision: str | None = None
    head: str = choice(("auto", *HEADS), "auto")
    label: int | str | None = None
    read: Literal["auto", "logit", "log-odds", "probability"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None
    max_tokens_per_batch: int | None = None

    def resolved(self) -> dict[str, Any]:
        """What follows the device where the recipe leaves it open."""
        tokens = self.max_tokens_per_batch or BATCH_TOKENS[device.current()]
        return {"dtype": device.dtype_of(self.dtype), "max_tokens_per_batch": tokens}

    def faults(self) -> Iterator[tuple[str, str]]:
        """Values out of range."""
        if self.max_tokens_per_batch is not None:
            yield from faults_of_range(self, max_tokens_per_batch=(1, math.inf))
        if isinstance(self.label, int):
            yield from faults_of_range(self, label=(0, math.inf))
        elif self.label is not None and self.head == "token":
            yield "label", f"{self.label!r} is no token id; give a number"

    def check_head(self, folder: Path) -> None:
        """UserError if the model of a folder has no head that is read, or none of its outputs is the reward.

        By config.json and by the names and shapes of its tensors.
        """
        if not has_safetensors(folder):  # the tensors of old weights are known only when they are read
            return
        config, checkpoint = described(folder), Checkpoint(folder)
        kind = heads.choose(self.model, self.head, config, checkpoint)
        if issubclass(kind, Classifier) and "score.weight" in checkpoint.names:
            _chosen(self, heads.named(config, checkpoint.shape("score.weight")[0]))


class Outputs:
    """What the outputs of a reward model are: `names` are theirs, `chosen` is the place of the one that is the reward.

    `rows` is for how many tokens the model has embeddings.
    """

    rows: int

    def __init__(self, options: Options, kind: type[Head], config: Any, names: Sequence[str]):
        self.name, self.config, self.names = options.model, config, names
        self.chosen = 0 if kind is Token else _chosen(options, names)
        self.reading = reading(options, kind, config, names)

    def reward(self, outputs: Sequence[float]) -> float:
        """The reward by the outputs of a conversation: what `reading` says of the chosen one."""
        logit, others = outputs[self.chosen], [one for at, one in enumerate(outputs) if at != self.chosen]
        if self.reading == "logit":
            return logit
        odds = logit - _logsumexp(others) if others and not _independent(self.config) else logit
        return odds if self.reading == "log-odds" else 0.5 * (1 + math.tanh(odds / 2))

    def fault(self, ids: Ids) -> str | None:
        """Why the model cannot read a conversation, None where it can."""
        if max(ids) < self.rows:
            return None
        return f"the model has embeddings for {self.rows:,} tokens, and this conversation has the id {max(ids)}"


class RewardModelRunner(Outputs):
    """A reward model that turns rows of tokens into outputs.

    With `pairs` a conversation is two segments, which some encoders have to be told apart.
    """

    def __init__(self, options: Options, pairs: bool = False):
        from raft.models.hub import locate_model

        self.pairs = pairs
        folder = locate_model(options.model, options.revision)
        model_folder.check(folder)
        self.device = device.current()
        self.on_device = False
        self.max_tokens_per_batch = options.max_tokens_per_batch or BATCH_TOKENS[self.device]
        self.tokenizer = chat_templates.load_tokenizer(str(folder))
        config = read_config(options.model, folder)
        checkpoint = Checkpoint(folder)
        kind = heads.choose(options.model, options.head, config, checkpoint)
        self.head: Head | None = None
        if kind is Classifier and "score.weight" not in checkpoint.names:
            self.model = _load(options, folder, config, "SequenceClassification", set())
            names: Sequence[str] = heads.labels(config, config.num_labels)
        else:
            self.head = heads.build(kind, options.model, config, checkpoint, self.tokenizer, options.label)
            own = {"lm_head.weight"} & checkpoint.names if kind is Token else {*self.head.weights}
            self.model = _load(options, folder, config, "", own)
            names = list(self.head.names)
        super().__init__(options, kind, config, names)
        self.to_device()
        _check_finite(self.name, self.model)
        self.rows = chat_templates.check_rows(self.tokenizer, self.model, options.model)
        self.longest = self._longest()
        self.packs = (
            self.head is not None
            and options.attn_implementation is None
            and packed_attention.adopt(self.model, _hidden)
        )

    def outputs(self, groups: Iterable[Iterable[Ids]]) -> dict[Ids, list[float]]:
        """The outputs of rows of tokens, by groups: the prefix that the rows of a group share is read once.

        Largest first: memory that does not suffice shows at once.
        """
        self.to_device()
        ordered = [sorted(set(group)) for group in groups]
        outputs: dict[Ids, list[float]] = {}
        for batch in packing.batches(ordered, self.max_tokens_per_batch, self.packs):
            outputs.update(self._read([[ordered[number][at] for number, at in part] for part in batch]))
        return outputs

    def read_together(self, rows: Sequence[Ids]) -> list[list[float]]:
        """The outputs of rows as one padded batch, in their order, whatever `max_tokens_per_batch` says."""
        import torch

        self.to_device()
        with torch.inference_mode():
            return self._forward(rows, self._padded(rows)).float().tolist()

    @property
    def takes_positions(self) -> bool:
        """Whether a row can be padded on its left: a decoder that is told the positions of its tokens."""
        return self.head is not None and "position_ids" in inspect.signature(self.model.forward).parameters

    def read_padded_left(self, rows: Sequence[Ids]) -> list[list[float]]:
        """The outputs of rows as one batch, padded on the left: only to prove that the side does not matter."""
        import torch

        assert self.head is not None, "only what takes positions is padded on the left"
        self.to_device()
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=self.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self.device)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            hidden = self.model(
                input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False
            ).last_hidden_state
            behind = [longest - len(row) for row in rows]
            read = [[start + at for at in self.head.places(row)] for start, row in zip(behind, rows, strict=True)]
            return self.head(hidden[torch.arange(len(rows))[:, None], torch.tensor(read)]).float().tolist()

    def fault(self, ids: Ids) -> str | None:
        return super().fault(ids) or (None if self.head is None else self.head.fault(ids))

    def to_device(self) -> None:
        """Moves the model to the accelerator, or its layers to several."""
        if self.on_device:
            return
        with device.fits(f"the reward model {self.name}", "use a smaller one, or give it more GPUs"):
            loading.to_device(self.model)
            if self.head is not None:
                self.head.to(self.device)
        self.on_device = True

    def release(self) -> None:
        """Moves it to host memory, which gives the accelerator's memory back."""
        loading.to_host(self.model)
        if self.head is not None:
            self.head.to("cpu")
        self.on_device = False
        device.free_cache()

    def _read(self, batch: list[list[Ids]]) -> dict[Ids, list[float]]:
        """One forward pass, or two of half the size where the accelerator's memory does not suffice for one."""
        import torch

        rows = [row for group in batch for row in group]
        try:
            with torch.inference_mode():
                outputs = self._forward(rows, packing.pack(batch) if self.packs else self._padded(rows))
                return dict(zip(rows, outputs.float().tolist(), strict=True))
        except torch.OutOfMemoryError as fault:
            if len(rows) == 1:
                raise UserError(
                    f"{self.name}: one conversation of {len(rows[0])} tokens does not fit the accelerator's memory; "
                    "lower reward.max_length, or use a smaller model"
                ) from fault
        device.free_cache()
        larger = batch if len(batch) > 1 else [[row] for row in rows]
        half = len(larger) // 2
        return self._read(larger[:half]) | self._read(larger[half:])

    def _padded(self, rows: Sequence[Ids]) -> Layout:
        return packing.pad(rows, 0 if self.head is not None else self.tokenizer.pad_token_id or 0)

    def _forward(self, rows: Sequence[Ids], batch: Layout) -> Any:
        """The outputs [rows, names] of rows in a padded or packed batch."""
        import torch

        inputs = packed_attention.inputs(batch.inputs, self.device)
        if self.head is not None:
            read = np.stack([places[self.head.places(row)] for places, row in zip(batch.places, rows, strict=True)])
            hidden = _hidden(self.model, **inputs)
            return self.head(hidden[torch.as_tensor(batch.row)[:, None], torch.as_tensor(read)])
        if self.pairs and getattr(self.config, "type_vocab_size", 0) > 1:
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            behind = (ids == self.tokenizer.sep_token_id).cumsum(1) - (ids == self.tokenizer.sep_token_id).int()
            inputs["token_type_ids"] = ((behind >= 1) & (mask == 1)).long()
        return self.model(**inputs).logits

    def _longest(self) -> int:
        """The tokens that the model has positions for; only encoders are bound to what the tokenizer says."""
        positions = loading.positions(self.model) or math.inf
        if self.head is None:
            positions = min(positions, self.tokenizer.model_max_length)
        return int(min(positions, 1 << 30))


def _hidden(model: Any, **inputs: Any) -> Any:
    return model(**inputs, use_cache=False).last_hidden_state


def described(folder: Path) -> SimpleNamespace:
    """What config.json says that heads are chosen by, without transformers."""
    said = {"architectures": None, "tie_word_embeddings": True, **model_folder.read(folder / "config.json")}
    labels = said.get("id2label") or {}
    return SimpleNamespace(**{**said, "id2label": {int(place): name for place, name in labels.items()}})


def read_config(name: str, folder: Path) -> Any:
    """The config of a model folder. UserError: transformers has no such architecture."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as fault:
        raise UserError(
            f"{name}: transformers knows no architecture for its config.json ({str(fault).splitlines()[0]}), and raft "
            "runs no code from elsewhere; use another reward model"
        ) from fault


def _load(options: Options, folder: Path, config: Any, kind: str, head: set[str]) -> Any:
    """The model in host memory, without the head's tensors; a checkpoint that is not exactly that is refused."""
    import torch
    import transformers

    dtype = device.dtype_of(options.dtype)
    chosen = _attention(options, config)
    try:
        with quiet():
            model, report = getattr(transformers, f"AutoModel{kind and 'For'}{kind}").from_pretrained(
                folder, config=config, dtype=getattr(torch, dtype), attn_implementation=chosen,
                output_loading_info=True, trust_remote_code=False, weights_only=True,
            )  # fmt: skip
    except (Stopped, UserError):
        raise
    except Exception as fault:
        said = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        if getattr(config, "quantization_config", None):
            raise UserError(
                f"{options.model} has quantised weights, which cannot be read here ({said}); name the model that it "
                "was made from, in float32, bfloat16 or float16"
            ) from fault
        raise UserError(f"{options.model} cannot be loaded as a reward model: {said}") from fault
    _check_complete(options.model, {"missing": set(report["missing_keys"]), "unexpected": left_over(report) - head})
    return model.eval().requires_grad_(False)


def _attention(options: Options, config: Any) -> str | None:
    """The attention that transformers is asked for; None is its own choice."""
    if (needed := loading.attention(config)) is None:
        return options.attn_implementation
    if options.attn_implementation == "sdpa":
        allowed = "allowed: eager, flash_attention_2"
        raise UserError(f"reward.attn_implementation: sdpa leaves out the soft cap of {options.model}; {allowed}")
    return options.attn_implementation or needed


def _check_complete(name: str, report: dict[str, set[str]]) -> None:
    wrong = [f"{kind} {_some(keys)}" for kind, keys in report.items() if keys]
    if wrong:
        raise UserError(
            f"{name} is not a whole reward model: {'; '.join(wrong)}. Its rewards would be made up; "
            "name a reward model whose checkpoint has exactly the tensors of its class"
        )


def _check_finite(name: str, model: Any) -> None:
    """NaN passes through minimum and maximum, so the two tell of every value without a copy of the weights."""
    import torch

    bad = [key for key, weight in model.named_parameters() if not torch.stack(weight.aminmax()).isfinite().all()]
    if bad:
        raise UserError(f"{name} has weights that are NaN or infinite: {_some(bad)}; the checkpoint is damaged")


def _chosen(options: Options, names: Sequence[str]) -> int:
    """The place of the output that is the reward."""
    label = options.label
    if label is None and "reward" in names:
        return names.index("reward")
    if isinstance(label, int) and label < len(names):
        return label
    if label in names:
        return names.index(str(label))
    given = "is not given" if label is None else f"is {label}"
    raise UserError(
        f"reward.label {given}, but {options.model} has {len(names)} outputs; "
        f"allowed: 0 to {len(names) - 1}, or {', '.join(names)}"
    )


def reading(options: Options, kind: type[Head], config: Any, names: Sequence[str]) -> str:
    """How the chosen output becomes the reward. UserError where the recipe asks for what the outputs are not.

    Outputs are taken for the classes of one softmax where the config says so (problem_type), and else where there are
    several of a classifier and none has the name of an attribute; so does transformers.
    """
    said = getattr(config, "problem_type", None) if kind in (Classifier, Attributes) else "regression"
    words = {word for name in names for word in re.split(r"[^a-z]+", name.lower())}
    if options.read == "auto":
        classes = said is None and kind is Classifier and not words & ATTRIBUTES
        return "log-odds" if len(names) > 1 and (classes or said == "single_label_classification") else "logit"
    if options.read != "logit" and said == "regression":
        raise UserError(f"reward.read: {options.read}, but {options.model} has no classes; its outputs are regressions")
    return options.read


def _independent(config: Any) -> bool:
    return getattr(config, "problem_type", None) == "multi_label_classification"


def _logsumexp(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(one - most) for one in values)) if math.isfinite(most) else most


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
