"""Architectures that vLLM runs through transformers' own code, GPT-NeoX (Pythia) among them, beside transformers."""

import pytest

from raft.core.records import Policy, Prompt
from raft.generators import vllm
from raft.generators.vllm import VLLM
from raft.models import chat_templates, from_scratch, loading, weight_check

pytestmark = [pytest.mark.engine, pytest.mark.nightly]

CONFIG = {
    "model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 128, "max_position_embeddings": 256, "initializer_range": 0.25,
}  # fmt: skip
PROMPTS = [Prompt(id=f"p{n}", text=f"the {n} cats sat on {'a mat and ' * (n % 7)}") for n in range(8)]


def policy(folder, seed: int) -> Policy:
    from_scratch.make(folder, (prompt.content for prompt in PROMPTS), CONFIG, 300, seed)
    weight_check.make(folder, weight_check.first_texts(folder), folder / "probe.json")
    return Policy(folder, folder / "probe.json")


def trained(model, ids) -> float:
    """The length of the gradient of a text's loss."""
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return sum(float(one.grad.square().sum()) for one in model.parameters()) ** 0.5


def test_gpt_neox_answers_as_transformers_does_and_leaves_transformers_models_as_they_were(tmp_path):
    policies = [policy(tmp_path / str(seed), seed) for seed in range(2)]
    before = [loading.load_model(one.path) for one in policies]
    ids = chat_templates.load_tokenizer(str(policies[0].path))(PROMPTS[3].text, return_tensors="pt")["input_ids"]
    gradient = trained(before[0], ids)
    greedy = VLLM(k=1, max_tokens=24, temperature=0.0)
    try:
        for number in (0, 1, 0):
            answers = {g.prompt.id: g.responses[0].token_ids for g in greedy.generate(policies[number], PROMPTS, 7)}
            for model in (before[number], loading.load_model(policies[number].path)):
                tokenizer = chat_templates.load_tokenizer(str(policies[number].path))
                for prompt in PROMPTS:
                    tokens = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
                    expected = model.generate(tokens, max_new_tokens=24, do_sample=False)[0, tokens.shape[1] :]
                    assert answers[prompt.id] == expected.tolist()
        calls = []
        model = loading.load_model(policies[0].path)
        model.gpt_neox.register_forward_hook(lambda *_: calls.append(1))
        assert trained(before[0], ids) == trained(model, ids) == gradient
        assert calls
    finally:
        vllm.close()
