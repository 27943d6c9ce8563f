"""Tiny policies and examples to fine-tune them on, for the tests of the trainer."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from raft.core.errors import UserError
from raft.core.records import Example, Response
from raft.models import from_scratch
from raft.trainers.sft import SFT

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
ROTARY = {**SHAPE, "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **ROTARY, "tie_word_embeddings": False},
    "llama-tied": {"model_type": "llama", **ROTARY, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **ROTARY},
    "gemma2": {"model_type": "gemma2", **ROTARY, "sliding_window": 8, "query_pre_attn_scalar": 32},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
        "initializer_range": 0.1,
    },
}
TEXTS = [
    "The fox likes plums.",
    "An owl, by night, sees all.",
    "Two scones?",
    "Mint tea and a bun for the mole, please!",
]
SGD = {"optim": "sgd", "max_grad_norm": 0.0}


def make_folders(root: Path) -> dict[str, Path]:
    """A policy of each architecture, by its name."""
    for name, config in CONFIGS.items():
        from_scratch.make(root / name, TEXTS, config, 280, seed=3)
    return {name: root / name for name in CONFIGS}


def example(number: int, words: int, weight: float = 1.0, finish_reason: str = "stop") -> Example:
    tokens = np.random.default_rng(number).integers(10, 260, words).tolist()
    response = Response("", tokens, None, finish_reason)
    return Example(str(number), response, text=TEXTS[number % 4][: 6 + number], weight=weight)


EXAMPLES = [
    example(n, words, weight) for n, (words, weight) in enumerate([(9, 1.0), (3, 2.5), (17, 0.5), (1, 1.0), (6, 1.5)])
]


def train(
    start: Path, out: Path, examples: Iterable[Example] = EXAMPLES, seed: int = 0, **options: Any
) -> dict[str, float]:
    return SFT(**{"num_train_epochs": 1, "batch_size": 5, "lr_scheduler_type": "constant", **options}).train(
        start, iter(examples), out, seed, lambda done, total: None, lambda *filters: None
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def fresh(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


def without_dropout(folder: Path, copy: Path) -> Path:
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    config.update({key: 0.0 for key in config if key in ("attn_pdrop", "embd_pdrop", "resid_pdrop")})
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def refused(start: Path, out: Path, examples: list[Example] = EXAMPLES, **options: Any) -> str:
    with pytest.raises(UserError) as fault:
        train(start, out, examples, **options)
    return str(fault.value)
