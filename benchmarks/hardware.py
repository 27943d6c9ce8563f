"""Which model fits which GPU: the tables of docs/hardware.md, by the arithmetic of `raft check`.

    python benchmarks/hardware.py

Each model is a folder with its config.json and a weights file that has a header and no data. So nothing is downloaded,
and nothing is counted here: raft/cli/memory_plan.py reads these folders as it reads any model's. The recipe is RECIPE.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from raft.cli import memory_plan
from raft.cli.memory_plan import CARDS, Turn, card
from raft.config import recipe
from raft.launch.ray import Ray
from raft.models import model_sizes

NAMES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
    "tie_word_embeddings",
)  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {  # what their config.json say
    name: {"model_type": kind, **dict(zip(NAMES, sizes, strict=True)), **more}
    for name, kind, sizes, more in (
        ("Qwen2.5-0.5B", "qwen2", (896, 24, 14, 2, 4864, 151936, True), {}),
        ("Qwen2.5-1.5B", "qwen2", (1536, 28, 12, 2, 8960, 151936, True), {}),
        ("Qwen2.5-3B", "qwen2", (2048, 36, 16, 2, 11008, 151936, True), {}),
        ("Qwen2.5-7B", "qwen2", (3584, 28, 28, 4, 18944, 152064, False), {}),
        ("Llama-3.1-8B", "llama", (4096, 32, 32, 8, 14336, 128256, False), {}),
        ("Qwen2.5-14B", "qwen2", (5120, 48, 40, 8, 13824, 152064, False), {}),
        ("Gemma-2-27B", "gemma2", (4608, 46, 32, 16, 36864, 256000, True), {"head_dim": 128}),
        ("Qwen2.5-32B", "qwen2", (5120, 64, 40, 8, 27648, 152064, False), {}),
        ("Llama-3.1-70B", "llama", (8192, 80, 64, 8, 28672, 128256, False), {}),
    )
}
POLICIES = tuple(name for name in MODELS if not name.startswith("Gemma"))
REWARDS = ("Llama-3.1-8B", "Gemma-2-27B", "Llama-3.1-70B")
RECIPE = """\
name: hardware
policy: {{model: {policy}}}
prompts: {{kind: file, path: prompts.jsonl, max_prompt_length: 512}}
generator: {{kind: vllm, k: 8, max_tokens: 512, max_model_len: 1024, engine_args: {{tensor_parallel_size: {split}}}}}
reward: {{kind: model, model: {reward}, max_length: 1024}}
trainer:
  kind: sft
  max_length: 1024
  gradient_checkpointing: true
  max_tokens_per_microbatch: 2048
  mixed_precision: bfloat16
  lora: {lora}
"""
LORA = "{r: 32, lora_alpha: 64, target_modules: all-linear}"


@dataclass(frozen=True, kw_only=True)
class Cluster(Ray):
    """A cluster of so many GPUs, which nobody joins."""

    devices: int = 1

    def ranks(self) -> int:
        return self.devices


def main() -> None:
    """Prints the tables."""
    print("\n\n".join(tables()))


def shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """The weights of a model by name, as transformers has them for its type."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim", width // heads)
    query, key = heads * head, config["num_key_value_heads"] * head
    norms = {"llama": 2, "qwen2": 2, "gemma2": 4}[config["model_type"]]
    found = {"model.embed_tokens.weight": [config["vocab_size"], width], "model.norm.weight": [width]}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, rows in (("q", query), ("k", key), ("v", key)):
            found[f"{at}.self_attn.{name}_proj.weight"] = [rows, width]
            if config["model_type"] == "qwen2":
                found[f"{at}.self_attn.{name}_proj.bias"] = [rows]
        found[f"{at}.self_attn.o_proj.weight"] = [width, query]
        found |= {f"{at}.mlp.{name}_proj.weight": [inner, width] for name in ("gate", "up")}
        found[f"{at}.mlp.down_proj.weight"] = [width, inner]
        found |= {f"{at}.norm{number}.weight": [width] for number in range(norms)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = [config["vocab_size"], width]
    return found


@cache
def model(name: str) -> model_sizes.Model:
    """A model as raft counts it."""
    return model_sizes.Model(MODELS[name], shapes(MODELS[name]))


def write(folder: Path, name: str) -> Path:
    """The folder of a model: its config, and weights of which only the header takes room on the disk."""
    place = folder / name
    if not place.exists():
        place.mkdir()
        (place / "config.json").write_text(json.dumps(MODELS[name]))
        header, end = {}, 0
        for weight, shape in shapes(MODELS[name]).items():
            begin, end = end, end + 2 * math.prod(shape)
            header[weight] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with open(place / "model.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    return place


@cache
def turns(
    policy: str, reward: str, lora: bool, gigabytes: int, devices: int = 1, shard: str = "auto", split: int = 1
) -> dict[str, Turn]:
    """What each turn of RECIPE takes on each of so many GPUs, by its name; an engine is split over `split` of them."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = {
            "policy": write(place, policy),
            "reward": write(place, reward),
            "lora": LORA if lora else "null",
            "split": split,
        }
        (place / "recipe.yaml").write_text(RECIPE.format(**made))
        (place / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
        loaded = recipe.load(place / "recipe.yaml", [])
        launch = Cluster(devices=devices, shard=shard)  # type: ignore[arg-type]
        found = memory_plan.plan(replace(loaded, recipe=replace(loaded.recipe, launch=launch)), card(1, gigabytes))
    assert all(turn.terms and None not in turn.terms.values() for turn in found), found
    return {turn.name: turn for turn in found}


def sharded(train: Turn) -> bool:
    """Whether a training divides its weights by the ranks."""
    return any("ranks" in what for what in train.terms)


def fits(
    turn: str, policy: str = POLICIES[0], reward: str = REWARDS[0], lora: bool = False, gpu: int = 141,
    devices: int = 1, split: int = 1,
) -> bool:  # fmt: skip
    """Whether a turn fits on each of so many GPUs; an engine has to hold one text in its cache."""
    found = turns(policy, reward, lora, gpu, devices, split=split)[turn]
    return found.spare >= 0 and memory_plan.fits(found, card(1, gpu).memory)


def smallest(turn: str, **which: Any) -> str:
    """The smallest GPU that a turn fits on."""
    return next((f"{gpu} GB" for gpu in CARDS if fits(turn, gpu=gpu, **which)), "none")


def tables() -> list[str]:
    """The tables of docs/hardware.md."""
    return ["\n".join(rows) for rows in (training(), sharding(), generation(), rewards())]


def training() -> Iterator[str]:
    """Full fine-tuning, LoRA, and the likelihoods that both are examined with."""
    yield (
        "| policy | parameters | weights, gradients, AdamW | bfloat16 copies | activations | logits | full: all | on "
        "| LoRA: all | on | likelihoods | on |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for name in POLICIES:
        full, lora = (turns(name, REWARDS[0], lora, 141)["train"] for lora in (False, True))
        likely = turns(name, REWARDS[0], False, 141)["likelihoods"]
        terms = [gb(value or 0) for value in full.terms.values()]
        yield (
            f"| {name} | {model(name).parameters() / 1e9:.2f}e9 | {' | '.join(terms)} | {gb(full.total)} | "
            f"{smallest('train', policy=name)} | {gb(lora.total)} | {smallest('train', policy=name, lora=True)} | "
            f"{gb(likely.total)} | {smallest('likelihoods', policy=name)} |"
        )


def sharding() -> Iterator[str]:
    """Full fine-tuning sharded over eight GPUs, and what of RECIPE does not fit each of them."""
    yield (
        "| policy | weights, gradients, AdamW | gathered layers | activations | logits | all "
        f"| {' | '.join(f'8 x {gpu} GB' for gpu in (80, 141))} |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name in POLICIES:
        terms = turns(name, REWARDS[0], False, 141, 8, "fsdp")["train"]
        verdicts = []
        for gpu in (80, 141):
            found = turns(name, REWARDS[0], False, gpu, 8)
            wrong = [turn for turn in ("generate", "likelihoods", "train") if not fits(turn, name, gpu=gpu, devices=8)]
            how = "sharded" if sharded(found["train"]) else "a copy on each"
            verdicts.append(f"does not fit: {', '.join(wrong)}" if wrong else f"fits, {how}")
        numbers = " | ".join(gb(value or 0) for value in terms.terms.values())
        yield f"| {name} | {numbers} | {gb(terms.total)} | {' | '.join(verdicts)} |"


def generation() -> Iterator[str]:
    """The engine's weights, and how many texts its cache holds at once."""
    yield f"| policy | weights | cache of a text | {' | '.join(f'texts on {gpu} GB' for gpu in CARDS)} |"
    yield "|---|---|---|" + "---|" * len(CARDS)
    for name in POLICIES:
        text = 1024 * (model(name).cached(2) or 0)
        weights = 2 * model(name).parameters()
        room = []
        for gpu in CARDS:
            engine = turns(name, REWARDS[0], False, gpu)["generate"]
            room.append(f"{(engine.spare + text) // text:,}" if engine.spare >= 0 else "does not fit")
        yield f"| {name} | {gb(weights)} | {gb(text)} | {' | '.join(room)} |"


def rewards() -> Iterator[str]:
    """Reward models, whose forward passes take the default of tokens."""
    yield "| reward model | weights | forward pass | all | on |"
    yield "|---|---|---|---|---|"
    for name in REWARDS:
        turn = turns(POLICIES[0], name, False, 141)["score"]
        terms = " | ".join(gb(value or 0) for value in turn.terms.values())
        yield f"| {name} | {terms} | {gb(turn.total)} | {smallest('score', reward=name)} |"


def gb(count: int) -> str:
    """Bytes in 1e9, to three digits or a tenth."""
    return f"{count / 1e9:.1f}" if count >= 1e10 else f"{count / 1e9:.2f}"


if __name__ == "__main__":
    main()
