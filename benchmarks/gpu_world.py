"""What benchmarks/gpu.py runs: models with random weights, their tokenizer, prompts and a recipe, all from seeds."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from raft.models import from_scratch
from raft.models.loading import quiet
from raft.trainers.hf_trainer import free

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POLICY = {
    "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "tie_word_embeddings": True, "max_position_embeddings": 1024,
}  # fmt: skip
REWARD = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 1024, "num_labels": 1,
}  # fmt: skip
REAL: dict[str, Any] = {
    "policy": POLICY, "reward": REWARD, "vocabulary": 151936, "prompts": 4096, "words": (32, 96),
    "per_iteration": 2048, "k": 8, "max_tokens": 128, "held_out": 256, "copy": 2**32, "matrix": 8192,
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 128,
}  # fmt: skip
TINY: dict[str, Any] = {
    "policy": {**POLICY, **SMALL}, "reward": {**REWARD, **SMALL}, "vocabulary": 1000, "prompts": 128, "words": (8, 16),
    "per_iteration": 64, "k": 4, "max_tokens": 16, "held_out": 16, "copy": 2**28, "matrix": 1024,
}  # fmt: skip


def make_models(out: Path, size: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Both model folders and the prompts; of each model how many parameters it has, in all and but for embeddings."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    tokenizer = make_tokenizer(size["vocabulary"])
    found = {}
    for name, seed, kind in (("policy", 0, AutoModelForCausalLM), ("reward", 1, AutoModelForSequenceClassification)):
        found[name] = make_model(out / name, kind, size[name], tokenizer, seed)
        free()
    words = [piece.strip("Ġ") for piece in tokenizer.get_vocab() if piece.startswith("Ġ") and len(piece) > 4]
    drawn = random.Random(0)
    with open(out / "prompts.jsonl", "w", encoding="utf-8") as file:
        for number in range(size["prompts"]):
            text = " ".join(drawn.choices(sorted(words), k=drawn.randint(*size["words"])))
            file.write(json.dumps({"id": f"p{number:05d}", "prompt": f"{text}?"}) + "\n")
    return found


def make_model(folder: Path, kind: Any, shape: dict[str, Any], tokenizer: Any, seed: int) -> dict[str, int]:
    """Writes a model with seeded random weights in bfloat16, made on the device, where that takes seconds."""
    from transformers import AutoConfig

    shutil.rmtree(folder, ignore_errors=True)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(**shape, **ids, vocab_size=len(tokenizer))
    torch.manual_seed(seed)
    with torch.device(DEVICE):
        model = kind.from_config(config, dtype=torch.bfloat16)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.model_max_length = shape["max_position_embeddings"]
    tokenizer.save_pretrained(folder)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    inner = sum(count for name, count in sizes.items() if "embed_tokens" not in name and "lm_head" not in name)
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.hidden_size
    return {
        "parameters": sum(sizes.values()), "without embeddings": inner,
        "cached numbers a token": cached // config.num_attention_heads,
    }  # fmt: skip


def make_tokenizer(count: int) -> Any:
    """A tokenizer of exactly `count` pieces: markers, bytes, and words of up to three made-up syllables.

    Every piece is a text of its own, so what random weights say has words, and as many tokens for the reward model.
    A word is read from its left, syllable by syllable: each merge adds one at the end.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [(consonant, vowel) for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou"]
    syllables = ["".join(pair) for pair in letters]
    first = [("Ġ", one) for one in syllables]
    second = [(f"Ġ{a}", b) for a in syllables for b in syllables]
    third = [(f"Ġ{a}{b}", c) for a in syllables for b in syllables for c in syllables]
    markers = [from_scratch.BEGIN, from_scratch.END, from_scratch.PAD, *from_scratch.ROLES]
    known = [*markers, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [*letters, *first, *second, *third][: count - len(known)]
    vocabulary = {piece: at for at, piece in enumerate([*known, *("".join(pair) for pair in merges)])}
    assert len(vocabulary) == count
    pieces = Tokenizer(models.BPE(vocabulary, merges))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token=from_scratch.BEGIN, eos_token=from_scratch.END, pad_token=from_scratch.PAD,
        extra_special_tokens=from_scratch.ROLES, chat_template=from_scratch.CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_recipe(out: Path, size: dict[str, Any]) -> Path:
    """Two iterations, so that the second is warm, and raft's own defaults."""
    made = {
        "name": "gpu",
        "policy": {"model": str(out / "policy")},
        "iterations": 2,
        "keep_policies": "last",
        "prompts": {
            "kind": "file", "path": str(out / "prompts.jsonl"), "format": "chat",
            "per_iteration": size["per_iteration"],
        },
        "generator": {"kind": "vllm", "k": size["k"], "max_tokens": size["max_tokens"]},
        "reward": {"kind": "model", "model": str(out / "reward")},
        "trainer": {"kind": "sft", "num_train_epochs": 1},
        "evaluation": {"count": size["held_out"], "k": 1},
    }  # fmt: skip
    path = out / "gpu.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    return path
