"""Each recipe for a GPU fits the one that its header names, by the plan of `raft check`, with its model's shapes."""

import re
from pathlib import Path

import pytest

from raft.cli import memory_plan
from raft.cli.memory_plan import Device
from raft.config import recipe
from raft.models import model_sizes

RECIPES = Path(__file__).parents[2] / "recipes"
GIGABYTES = {
    24: 25.7,
    48: 51.5,
    80: 85.5,
    141: 150.7,
}  # 1e9 bytes that cards of a name have: RTX 4090, L40S, H100, H200
LLAMA = {"model_type": "llama", "tie_word_embeddings": False}
MODELS = {  # what their config.json say
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-1.7B": {
        "model_type": "qwen3", "hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "EleutherAI/gpt-neo-2.7B": {
        "model_type": "gpt_neo", "hidden_size": 2560, "num_layers": 32, "num_heads": 20, "vocab_size": 50257,
        "attention_types": [[["global", "local"], 16]], "tie_word_embeddings": True,
    },
    "huggyllama/llama-7b": {
        **LLAMA, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
        "vocab_size": 32000,
    },
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": {
        **LLAMA, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256,
    },
    "openlm-research/open_llama_3b": {
        **LLAMA, "hidden_size": 3200, "num_hidden_layers": 26, "num_attention_heads": 32, "intermediate_size": 8640,
        "vocab_size": 32000,
    },
}  # fmt: skip


def model(name: str) -> model_sizes.Model:
    """The shapes of a model, without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**MODELS[name])
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    return model_sizes.Model(MODELS[name], {key: tuple(one.shape) for key, one in weights.items()})


@pytest.mark.parametrize(
    "name",
    ["arithmetic", "qwen3-1.7b-gsm8k", "qwen3-1.7b-skywork", "gpt-neo-2.7b-hh", "llama-7b-hh-sft", "hh-reward-sft"],
)
def test_training_fits_the_gpu_that_the_recipe_names(name, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    loaded = recipe.load(RECIPES / f"{name}.yaml")
    policy = model(loaded.recipe.policy.model)
    monkeypatch.setattr(memory_plan, "_folder", lambda loaded, part: Path(part.model))
    monkeypatch.setattr(model_sizes, "read", lambda folder: policy)
    gigabytes = int(re.findall(r"CUDA GPU of (\d+) GB", (RECIPES / f"{name}.yaml").read_text())[0])
    device = Device("cuda", int(GIGABYTES[gigabytes] * 1e9))
    turn = memory_plan._train(loaded, device)
    assert None not in turn.terms.values()
    assert memory_plan.fits(turn, device.memory), f"{turn.total / 1e9:.1f} GB"


def test_every_turn_of_the_recipe_for_a_small_gpu_fits_it(monkeypatch):
    loaded = recipe.load(RECIPES / "qwen3-1.7b-skywork-24gb.yaml")
    monkeypatch.setattr(memory_plan, "_folder", lambda loaded, part: Path(part.model))
    monkeypatch.setattr(memory_plan.vllm_options, "default_context", lambda folder: 4096)
    monkeypatch.setattr(model_sizes, "read", lambda folder: model(str(folder)))
    device = Device("cuda", int(GIGABYTES[24] * 1e9))
    turns = memory_plan.plan(loaded, device)
    assert [turn.name for turn in turns] == ["generate", "score", "likelihoods", "train"]
    for turn in turns:
        assert turn.terms and None not in turn.terms.values(), turn
        assert memory_plan.fits(turn, device.memory), f"{turn.name} {turn.total / 1e9:.1f} GB"
