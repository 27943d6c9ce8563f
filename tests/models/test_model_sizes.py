"""The sizes of models and the terms of the memory plan, against real models and the bytes of real tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from raft.cli import memory_plan
from raft.models import imagined, logprobs, model_sizes, packed_attention, packing
from raft.trainers import hf_trainer
from raft.trainers.sft import Likelihood

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 128, "max_position_embeddings": 1024,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 128, "n_positions": 1024,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NEOX = {key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"} | {"model_type": "gpt_neox"}
NEO = {
    "model_type": "gpt_neo", "hidden_size": 64, "num_heads": 4, "num_layers": 3, "attention_types": [[["global"], 3]],
    "vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "llama": LLAMA, "tied": LLAMA | {"tie_word_embeddings": True}, "wide-heads": LLAMA | {"head_dim": 48},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 32}, "gpt2": GPT2, "gpt_neox": NEOX, "gpt_neo": NEO,
    "one-key": {"model_type": "gpt_bigcode", **{key: GPT2[key] for key in GPT2 if key != "model_type"}},
}  # fmt: skip


def built(config: dict[str, Any]) -> Any:
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))


def saved(folder: Path, config: dict[str, Any]) -> tuple[Any, model_sizes.Model]:
    model = built(config)
    model.save_pretrained(folder)
    return model, model_sizes.read(folder)


def of(model: Any) -> model_sizes.Model:
    return model_sizes.Model(model.config.to_dict(), {name: one.shape for name, one in model.named_parameters()})


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model_that_is_built(tmp_path: Path, name: str):
    model, known = saved(tmp_path, MODELS[name])
    assert known.parameters() == sum(one.numel() for one in model.parameters())
    if name != "gpt_neox":  # its output layer has another name
        assert known.parameters(output=False) == sum(one.numel() for one in model.base_model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_shapes_by_config_json_alone_are_those_of_the_saved_weights(tmp_path: Path, name: str, capsys):
    built(MODELS[name]).save_pretrained(tmp_path)
    imagined._main(str(tmp_path))  # what a process of its own does
    made = model_sizes.Model(MODELS[name], json.loads(capsys.readouterr().out))
    kept = model_sizes.read(tmp_path)
    assert made.parameters() == kept.parameters() and made.together() == kept.together()
    if name != "gpt_neox":  # its output layer has another name in files
        assert made.shapes == kept.shapes


def test_an_output_layer_that_is_kept_twice_and_old_buffers_count_once_and_not_at_all(tmp_path: Path):
    model, before = saved(tmp_path, MODELS["tied"])
    tensors = load_file(tmp_path / "model.safetensors")
    more = {"lm_head.weight": model.lm_head.weight.detach().clone(), "h.0.attn.bias": torch.ones(1, 1, 64, 64)}
    save_file(tensors | more, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert model_sizes.read(tmp_path).parameters() == before.parameters()


@pytest.mark.parametrize("name", MODELS)
def test_a_token_leaves_in_the_cache_what_transformers_keeps_of_it(name: str):
    model, tokens = built(MODELS[name]).eval(), 7
    layers = model(torch.arange(tokens)[None], use_cache=True).past_key_values.layers
    kept = sum(one.keys.nbytes + one.values.nbytes for one in layers)
    assert of(model).cached(4) * tokens == kept
    assert of(model).cached(2) * tokens * 2 == kept


def test_a_cache_of_another_make_is_not_known_and_layers_without_one_do_not_count():
    assert model_sizes.Model(LLAMA | {"kv_lora_rank": 8}, {}).cached(2) is None
    assert model_sizes.Model({"model_type": "rwkv", "attention_hidden_size": 64}, {}).cached(2) is None
    one = {"n_layer": 3, "n_head": 4, "n_embd": 64, "multi_query": True}
    assert model_sizes.Model(one, {}).cached(2) == 2 * 3 * 1 * 16 * 2
    assert (
        model_sizes.Model(one | {"new_decoder_architecture": True, "num_kv_heads": 2}, {}).cached(2)
        == 2 * 3 * 2 * 16 * 2
    )
    mixed = LLAMA | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    assert model_sizes.Model(mixed, {}).cached(2) == 2 * 1 * 2 * 16 * 2


def test_training_holds_16_bytes_for_each_parameter():
    model = built(LLAMA)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    held = [*model.parameters(), *(one.grad for one in model.parameters())]
    held += [one for state in optimizer.state.values() for one in state.values() if one.ndim]
    assert sum(one.nbytes for one in held) == memory_plan.STATE * of(model).parameters()


def kept_by(model: Any, tokens: int, mixed: bool) -> int:
    """Bytes of what autograd keeps of a forward pass up to the last states: storages with a side of `tokens`, once."""
    storages: dict[int, int] = {}
    alive = []

    def keep(tensor: Any) -> Any:
        if tokens in tensor.shape:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    precision = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
    with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train().base_model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    return sum(storages.values())


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "low", "high"), [("llama", 0.9, 1.2), ("qwen3", 0.75, 1.1), ("gpt_neox", 1.2, 1.7), ("gpt2", 0.8, 1.1)]
)
def test_activations_are_nearly_what_autograd_keeps(name: str, low: float, high: float, mixed: bool):
    width = {"n_embd": 256, "attn_pdrop": 0.0} if name == "gpt2" else {"hidden_size": 256, "intermediate_size": 768}
    layers = "n_layer" if name == "gpt2" else "num_hidden_layers"
    shallow, deep = (built(MODELS[name] | width | {layers: count}) for count in (2, 6))
    grown = kept_by(deep, 500, mixed) - kept_by(shallow, 500, mixed)
    counted = 500 * (of(deep).kept(mixed, False) - of(shallow).kept(mixed, False))  # type: ignore[operator]
    assert low < counted / grown < high


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
def test_with_checkpoints_each_layer_keeps_its_input_in_float32(mixed: bool):
    tokens, found = 500, []
    for layers in (2, 6):
        model = built(LLAMA | {"num_hidden_layers": layers})
        model.gradient_checkpointing_enable()
        found.append((kept_by(model, tokens, mixed), of(model).kept(mixed, True) * tokens))  # type: ignore[operator]
    (kept, counted), (kept_deep, counted_deep) = found
    assert counted_deep - counted == kept_deep - kept == 4 * tokens * 64 * 4


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that are allocated at a time while it works."""
    from torch.profiler import ProfilerActivity, profile

    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events, found = list(watched.profiler.kineto_results.experimental_event_tree()), []  # type: ignore[union-attr]
    while events:
        event = events.pop()
        events += event.children
        if event.name == "[memory]":
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    return int(np.cumsum([size for _, size in sorted(found, key=lambda one: one[0])]).max())


TOKENS, MANY = 256, 8000


def packed(model: Any) -> packing.Layout:
    assert packed_attention.adopt(model, lambda one, **more: one.base_model(**more, use_cache=False).last_hidden_state)
    halves = np.random.default_rng(0).integers(model.config.vocab_size, size=(2, TOKENS // 2))
    return packing.pack([[half] for half in halves])


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
def test_logits_take_12_bytes_at_the_peak_of_a_training_pass(mixed: bool):
    model = built(LLAMA | {"vocab_size": MANY}).train()
    laid, loss = packed(model), Likelihood(model)
    keep = np.arange(TOKENS)
    batch = hf_trainer.tensors(
        {
            "inputs": laid.inputs, "keep": keep, "rows": np.zeros_like(keep), "places": keep, "targets": keep,
            "weights": np.ones(TOKENS, dtype=np.float32),
        }
    )  # fmt: skip

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found = loss(model, batch)["loss"]
        found.backward()

    known = of(model)
    counted = TOKENS * (known.logits() + known.kept(mixed, False)) + mixed * 2 * known.parameters()  # type: ignore[operator]
    assert peak(work) == pytest.approx(counted, rel=0.1)


def test_logits_take_12_bytes_at_the_peak_of_the_likelihoods():
    model = built(LLAMA | {"vocab_size": MANY}).eval()
    laid = packed(model)
    counted = TOKENS * of(model).logits()  # type: ignore[operator]
    assert peak(lambda: logprobs._likely(model, laid, [1, 1])) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_pass_is_widest_in_its_inner_layer(dtype: Any):
    model = built(LLAMA | {"hidden_size": 256, "intermediate_size": 768}).eval().to(dtype)
    laid = packed(model)

    def work() -> None:
        with torch.inference_mode():
            model.base_model(**packed_attention.inputs(laid.inputs), use_cache=False)

    assert peak(work) == pytest.approx(TOKENS * of(model).passing(dtype.itemsize), rel=0.1)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("config", "lora"),
    [
        (LLAMA, {}),
        (GPT2, {"r": 4}),
        (LLAMA, {"r": 16, "target_modules": ["q_proj", "mlp.down_proj"]}),
        (LLAMA, {"target_modules": "all-linear"}),
        (LLAMA, {"r": 2, "target_modules": r".*\.1\..*(up|gate)_proj"}),
    ],
)
def test_adapters_are_those_that_peft_makes(config: dict[str, Any], lora: dict[str, Any]):
    from peft import LoraConfig, get_peft_model

    model = built(config)
    known = of(model)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    assert known.adapters(lora) == sum(one.numel() for one in adapted.parameters() if one.requires_grad)


def test_adapters_of_a_model_for_which_peft_has_no_default_are_not_known():
    assert model_sizes.Model({"model_type": "of-my-own"}, {}).adapters({"r": 8}) is None
