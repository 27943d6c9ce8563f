"""The probe: what it measures, and which weights it lets through."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raft.core.errors import UserError
from raft.models import from_scratch, loading, weight_check
from raft.models.chat_templates import load_tokenizer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
LONGER = SHAPE | {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64}
SHAPES = {
    "llama": LONGER,
    "gpt2": {"vocab_size": 97, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neo": {
        "vocab_size": 97, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_neox": LONGER,
    "gemma3_text": LONGER | {"head_dim": 16},
    "qwen3_moe": LONGER | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "bloom": {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4},
}  # fmt: skip
TOKENS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("policy")
    from_scratch.make(made, weight_check.FIRST_TEXTS, LLAMA, 280, seed=3)
    return made


@pytest.fixture
def path(tmp_path) -> Path:
    weight_check.write(
        tmp_path / "probe.json",
        TOKENS,
        {"float32": [[-1.0, -2.0, -3.0], [-4.0], [-5.0, -6.0]], "bfloat16": [[-1.0, -2.0, -3.4], [-4.4], [-5.0, -6.0]]},
        {"float32": [[-1.0, -2.0, -3.5], [-4.5], [-5.0, -6.0]], "bfloat16": [[-1.0, -2.0, -3.5], [-4.5], [-5.0, -6.0]]},
    )
    return tmp_path / "probe.json"


def test_a_probe_is_the_log_probability_of_each_token_but_the_first(folder, tmp_path):
    weight_check.make(folder, TOKENS, tmp_path / "probe.json")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stored = json.loads((tmp_path / "probe.json").read_text())
    assert stored["tokens"] == weight_check.tokens(tmp_path / "probe.json") == TOKENS
    assert "before" not in stored
    for ids, logprobs in zip(TOKENS, stored["logprobs"], strict=True):
        assert len(logprobs) == len(ids) - 1
        for place, found in enumerate(logprobs):  # each token from its own prefix alone
            scores = model(torch.tensor([ids[: place + 1]])).logits[0, -1].double()
            expected = scores[ids[place + 1]] - scores.exp().sum().log()
            assert found == pytest.approx(float(expected), abs=1e-5)


def test_measuring_leaves_the_model_in_the_mode_it_was_in(folder):
    model = loading.load_model(folder)
    assert not model.training
    model.train()
    weight_check.measure(model, TOKENS)
    assert model.training


def test_the_first_texts_are_short_and_more_than_one_token(folder):
    texts = weight_check.first_texts(folder)
    assert len(texts) == weight_check.COUNT
    assert all(1 < len(ids) <= weight_check.LENGTH for ids in texts)


def test_sentences_with_tokens_that_the_model_has_no_embeddings_for_are_no_probe(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "policy")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["Once"])  # of the sentences only the second has it
    tokenizer.save_pretrained(tmp_path / "policy")
    whole = weight_check.first_texts(folder)
    assert weight_check.first_texts(tmp_path / "policy") == [whole[0], *whole[2:]]
    tokenizer.add_tokens([" ", "\u3000", "\u3002"])  # each sentence has one of these
    tokenizer.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=r"is beyond the \d+ embeddings of the model.*put the tokenizer of this model"):
        weight_check.first_texts(tmp_path / "policy")


def test_the_right_weights_pass_with_their_distance(path):
    assert weight_check.check(path, [[-1.0, -2.0, -3.0], [-4.0], [-5.0, -6.0]], 0.1) == 0
    assert weight_check.check(path, [[-1.0, -2.0, -3.0], [-4.0], [-5.0, -6.06]], 0.1) == pytest.approx(0.06 / 6**0.5)


def test_other_weights_are_refused(path):
    with pytest.raises(weight_check.ProbeError, match="does not hold the weights"):
        weight_check.check(path, [[-1.0, -2.0, 0.0], [-4.0], [-5.0, -6.0]], 0.5)


def test_numbers_that_are_not_finite_are_refused(path):
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(weight_check.ProbeError):
            weight_check.check(path, [[-1.0, -2.0, -3.0], [bad], [-5.0, -6.0]], 1e9)


def test_the_weights_of_the_policy_before_are_called_by_their_name_even_within_the_tolerance(path):
    with pytest.raises(weight_check.ProbeError, match="still holds the weights of the policy before"):
        weight_check.check(path, [[-1.0, -2.0, -3.5], [-4.5], [-5.0, -6.0]], 2.0)


def test_an_update_too_small_to_tell_from_rounding_is_not_judged_by_the_policy_before(path):
    assert weight_check.check(path, [[-1.0, -2.0, -3.5], [-4.5], [-5.0, -6.0]], 5.0) < 5


def test_an_engine_in_bfloat16_is_held_to_rounded_weights_which_lose_most_of_a_small_step(path):
    arrived = [[-1.0, -2.0, -3.4], [-4.4], [-5.0, -6.0]]
    with pytest.raises(weight_check.ProbeError, match="still holds the weights of the policy before"):
        weight_check.check(path, arrived, 0.5)
    assert weight_check.check(path, arrived, 0.5, "bfloat16") == 0
    with pytest.raises(weight_check.ProbeError, match="still holds the weights of the policy before"):
        weight_check.check(path, [[-1.0, -2.0, -3.5], [-4.5], [-5.0, -6.0]], 0.5, "bfloat16")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neo", "gpt_neox", "gemma3_text", "qwen3_moe", "bloom"])
def test_the_probe_of_rounded_weights_is_that_of_a_model_saved_in_bfloat16_and_leaves_the_weights(kind, tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPES[kind]), dtype=torch.float32).eval()
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    found = weight_check.of_engines(model, TOKENS)
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
    assert found["float32"] == weight_check.measure(model, TOKENS)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert found["bfloat16"] == weight_check.measure(rounded, TOKENS) != found["float32"]


def test_a_model_that_fails_while_its_weights_are_rounded_has_them_back():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPES["llama"]), dtype=torch.float32)
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        weight_check.of_engines(model, TOKENS)
    with pytest.raises(ZeroDivisionError), weight_check._rounded(model):
        model(torch.tensor(TOKENS[:1]))
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())


def test_texts_of_other_lengths_are_refused(path):
    with pytest.raises(weight_check.ProbeError, match="other lengths"):
        weight_check.check(path, [[-1.0, -2.0], [-4.0], [-5.0, -6.0]], 1.0)


def test_weights_without_finite_numbers_are_not_written(tmp_path):
    with pytest.raises(UserError, match="not finite"):
        weight_check.write(tmp_path / "probe.json", [[1, 2]], {"float32": [[-1.0]], "bfloat16": [[float("nan")]]})
    assert not (tmp_path / "probe.json").exists()


def test_a_folder_without_a_model_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        loading.load_model(tmp_path)


def test_soft_capping_is_never_left_to_a_kernel_that_ignores_it(tmp_path):
    shape = {**LLAMA, "model_type": "gemma2", "head_dim": 32, "attn_logit_softcapping": 1.0}
    from_scratch.make(tmp_path, weight_check.FIRST_TEXTS, shape, 280, seed=3)
    assert loading.load_model(tmp_path).config._attn_implementation == "eager"
