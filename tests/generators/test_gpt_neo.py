"""GPT-Neo in vLLM is transformers' GPT-Neo: random weights, large enough that attention matters, and texts many
times longer than the window of the local layers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.core.records import Policy, Prompt
from raft.generators import vllm
from raft.generators.vllm import VLLM, Engine
from raft.launch import vllm_server
from raft.models import from_scratch, loading, weight_check
from raft.models.weight_check import ProbeError

pytestmark = pytest.mark.engine

WINDOW = 8
CONFIG = {
    "model_type": "gpt_neo", "hidden_size": 64, "num_heads": 2, "num_layers": 4, "window_size": WINDOW,
    "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 256, "initializer_range": 0.25,
}  # fmt: skip
GREEDY = VLLM(k=1, max_tokens=24, temperature=0.0)
SHARED = "the big old fox sat on a small red hat and " * 14  # more than a block of 128 tokens, for the prefix cache
PROMPTS = [Prompt(id=f"s{n}", text=f"the {n} cats") for n in range(4)]
PROMPTS += [Prompt(id=f"l{n}", text=f"{SHARED}{n} cats") for n in range(4)]
TEXTS = [np.random.default_rng(n).integers(3, 290, length).tolist() for n, length in enumerate((40, 200, 9, 8, 2))]


def policy(folder: Path, seed: int, **config) -> Policy:
    from_scratch.make(folder, (prompt.content for prompt in PROMPTS), CONFIG | config, 300, seed)
    weight_check.make(folder, weight_check.first_texts(folder), folder / "probe.json")
    return Policy(folder, folder / "probe.json")


def as_saved_long_ago(folder: Path) -> None:
    """Adds what old checkpoints hold beside the weights: masks, and the tied head a second time."""
    tensors = load_file(folder / "model.safetensors")
    for layer in range(CONFIG["num_layers"]):
        tensors[f"transformer.h.{layer}.attn.attention.bias"] = torch.ones(1, 1, 256, 256, dtype=torch.bool).tril()
        tensors[f"transformer.h.{layer}.attn.attention.masked_bias"] = torch.tensor(-1e9)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    made = policy(folder / "0", 0), policy(folder / "1", 1)
    as_saved_long_ago(made[1].path)
    yield made
    vllm.close()


def engine_with(held: Policy) -> Engine:
    engine = vllm._engine(GREEDY, held)
    engine.hold(held)
    return engine


@pytest.mark.nightly
def test_every_policy_that_is_loaded_in_turn_answers_as_transformers_does(policies):
    for held in (policies[0], policies[1], policies[0]):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(held.path), AutoTokenizer.from_pretrained(held.path)
        answers = {group.prompt.id: group.responses[0].token_ids for group in GREEDY.generate(held, PROMPTS, 7)}
        for prompt in PROMPTS:
            ids = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
            expected = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
            assert answers[prompt.id] == expected


def test_log_probabilities_of_texts_longer_than_the_window_are_those_of_transformers(policies):
    for held in policies:
        expected = weight_check.measure(loading.load_model(held.path), TEXTS)
        for ours, theirs in zip(engine_with(held).likelihoods(TEXTS), expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)


def test_a_prefix_that_is_in_the_cache_changes_nothing(policies):
    from vllm import SamplingParams

    engine = engine_with(policies[0])
    sampled = replace(GREEDY, temperature=1.0, k=2)
    first, again = (list(sampled.generate(policies[0], PROMPTS[4:], 7)) for _ in range(2))
    engine.llm.add_request("asked", {"prompt_token_ids": engine.tokenizer(PROMPTS[4].text)["input_ids"]},
                           SamplingParams(max_tokens=1))  # fmt: skip
    assert engine.llm.step()[0].num_cached_tokens >= 128
    by_id = {group.prompt.id: group.responses for group in first}
    for group in again:
        for one, other in zip(group.responses, by_id[group.prompt.id], strict=True):
            assert one.token_ids == other.token_ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("scale", "window"), [(32**-0.5, WINDOW), (1.0, -1), (1.0, WINDOW - 1), (1.0, WINDOW + 1)],
    ids=["scaled", "no window", "a window too short by one", "a window too long by one"],
)  # fmt: skip
def test_the_proof_refuses_an_attention_that_is_not_that_of_gpt_neo(policies, scale, window):
    def plant(scale: float, window: int) -> None:
        def change(model):
            for number, layer in enumerate(model.transformer.h):
                layer.attn["attention"].attn.impl.scale = scale
                layer.attn["attention"].attn.impl.sliding_window = window if number % 2 else -1

        engine.llm.apply_model(change)

    engine = engine_with(policies[0])
    plant(scale, window)
    with pytest.raises(ProbeError, match="does not hold the weights"):
        engine.prove(policies[0])
    plant(1.0, WINDOW)
    engine.prove(policies[0])


@pytest.mark.nightly
def test_processes_of_vllm_itself_have_the_architecture():
    """A server's processes load vLLM's plug-ins as this one does, and nothing else of raft."""
    code = (
        "from vllm.plugins import load_general_plugins\nload_general_plugins()\nfrom vllm import ModelRegistry\n"
        "print(ModelRegistry.models['GPTNeoForCausalLM'].load_model_cls())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert "raft.generators.vllm_plugin.gpt_neo.GPTNeoForCausalLM" in done.stdout, done.stderr


@pytest.mark.nightly
def test_vllms_own_server_has_the_architecture_too_and_an_untied_head(tmp_path):
    import httpx

    held = policy(tmp_path / "untied", 2, tie_word_embeddings=False)
    expected = weight_check.measure(loading.load_model(held.path), TEXTS)
    server = vllm_server.Served(held.path, {})
    try:
        for ids, theirs in zip(TEXTS, expected, strict=True):
            body = {"model": vllm_server.NAME, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
            headers = {"Authorization": f"Bearer {server.key}"}
            answer = httpx.post(f"{server.url}/completions", json=body, headers=headers, timeout=60, trust_env=False)
            table = answer.json()["choices"][0]["prompt_logprobs"]
            ours = [table[at][str(token)]["logprob"] for at, token in enumerate(ids[1:], start=1)]
            assert ours == pytest.approx(theirs, abs=1e-3)
    finally:
        server.stop()
