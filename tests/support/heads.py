"""Tiny checkpoints with the heads of published reward models, for the tests."""

import json
from pathlib import Path
from typing import Any

import torch
from reward_models import SIZE, edit, save

WIDTH = SIZE["hidden_size"]


def rand(*shape: int, seed: int = 7, scale: float = 0.4) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * scale


def make(folder: Path, head: dict[str, torch.Tensor], architecture: str, **config: Any) -> Path:
    """A tiny Llama whose head is replaced by another, with the config of a published model."""
    save(folder, "LlamaForSequenceClassification", num_key_value_heads=2, max_position_embeddings=256, **SIZE)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["score.weight"]
        tensors.update(head)

    edit(folder, change)
    configure(folder, architectures=[architecture], **config)
    return folder


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    given = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in given.items() if value is not None}))


def labels(count: int) -> dict[str, Any]:
    """How config.json says that there are so many outputs."""
    return {"id2label": {str(at): f"LABEL_{at}" for at in range(count)}, "label2id": None}


def gate(places: tuple[list[int], list[int]], outputs: int, width: int) -> dict[str, torch.Tensor]:
    """The tensors of a gate: linear maps and normalisations at these places of its list of layers."""
    maps, norms = places
    found = {"gating.logit_scale": torch.tensor([1.7])}
    for number, place in enumerate(maps):
        last = number == len(maps) - 1
        found[f"gating.layers.{place}.weight"] = rand(outputs if last else 12, 12 if number else width, seed=place)
        if last:
            found[f"gating.layers.{place}.bias"] = rand(outputs)
    for place in norms:
        name = f"gating.layers.{place}"
        found |= {f"{name}.weight": 1 + rand(12, seed=place), f"{name}.bias": rand(12, seed=place + 1)}
        found |= {f"{name}.running_mean": rand(12, seed=place + 2), f"{name}.running_var": 1 + rand(12).abs()}
        found[f"{name}.num_batches_tracked"] = torch.tensor(3)
    return found


LLAMA_GATE = ([0, 3, 6, 9], [2, 5, 8])  # linear, ReLU, norm
LLAMA_MARK = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] + '<|eot_id|>' }}{% endfor %}"
)


def speak_llama(folder: Path) -> Any:
    """Gives a folder a tokenizer that writes Llama 3's turns, each mark a token."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    marks = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "\n\n"]
    tokenizer.add_tokens([AddedToken(one, special=one != "\n\n", normalized=False) for one in marks])
    tokenizer.chat_template = LLAMA_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer
