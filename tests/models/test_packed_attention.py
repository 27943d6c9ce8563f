"""Packed rows through real architectures: each text gets what it gets alone, however it is packed."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from raft.models import packed_attention, packing

SHAPE = {
    "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
GPT = {"vocab_size": 97, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}
READ = {
    "llama": SHAPE,
    "qwen2": SHAPE,
    "qwen3": SHAPE | {"head_dim": 16},
    "mistral": SHAPE | {"sliding_window": 5},
    "gemma3_text": SHAPE | {"head_dim": 16, "sliding_window": 5},
    "gpt2": GPT,
    "gpt_neox": SHAPE,
}
NOT_READ = {
    "gemma2": SHAPE | {"head_dim": 16},  # a soft cap
    "gpt_neo": {
        "vocab_size": 97, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128,
        "attention_types": [[["global", "local"], 1]],
    },  # an attention of its own
    "bloom": {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4},  # places from the mask
    "mamba": {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},  # no attention at all
}  # fmt: skip


def make(kind: str, options: dict, head: bool = False):
    torch.manual_seed(0)
    cls = AutoModelForCausalLM if head else AutoModel
    return cls.from_config(AutoConfig.for_model(kind, **options)).eval()


def families(seed: int = 0) -> list[list[np.ndarray]]:
    random = np.random.default_rng(seed)

    def some(count: int) -> np.ndarray:
        return random.integers(1, 97, count)

    prompts = [some(length) for length in (11, 7, 1)]
    return [[np.concatenate([one, some(random.integers(1, 15))]) for _ in range(4)] for one in prompts] + [[some(20)]]


def hidden(model, **inputs):
    return model(**inputs, use_cache=False).last_hidden_state


def alone(model, text: np.ndarray) -> torch.Tensor:
    return hidden(model, input_ids=torch.as_tensor(text)[None])[0]


@pytest.fixture(params=[False, True], ids=["one-by-one", "together"])
def together(request, monkeypatch) -> bool:
    """Whether texts of like length are computed in one call, as on a GPU."""
    monkeypatch.setattr(packed_attention, "TOGETHER", {"cpu"} if request.param else set())
    return request.param


@pytest.mark.parametrize("kind", READ)
def test_texts_that_share_their_beginning_get_what_they_get_alone(kind, together):
    plain, model = make(kind, READ[kind]), make(kind, READ[kind])
    assert packed_attention.adopt(model, hidden)
    laid = packing.pack(families())
    with torch.no_grad():
        packed = hidden(model, **packed_attention.inputs(laid.inputs))[0]
        texts = [text for family in families() for text in family]
        for places, text in zip(laid.places, texts, strict=True):
            expected = alone(plain, text)
            assert float((packed[places] - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_gradients_are_those_of_the_texts_alone(kind, together):
    plain, model = make(kind, READ[kind]), make(kind, READ[kind])
    packed_attention.adopt(model, hidden)
    laid = packing.pack(families())
    packed = hidden(model, **packed_attention.inputs(laid.inputs))[0]
    way = torch.linspace(-1, 1, 64)
    sum(packed[places[-1]] @ way for places in laid.places).backward()
    sum(alone(plain, text)[-1] @ way for family in families() for text in family).backward()
    expected = dict(plain.named_parameters())
    for name, one in model.named_parameters():
        if one.grad is not None:
            assert float((one.grad - expected[name].grad).abs().max()) < 1e-4 * float(expected[name].grad.abs().max())


def test_texts_alone_share_a_call_where_that_pads_them_to_no_more_than_twice_the_shortest():
    spans = [
        (0, 40, 0, 0),
        (40, 30, 0, 0),
        (70, 20, 0, 0),
        (90, 9, 0, 0),
        (99, 8, 0, 0),
        (107, 5, 99, 8),
        (112, 6, 0, 0),
    ]
    assert list(packed_attention._grouped(spans, together=True)) == [
        ([40, 30, 20], []),
        ([9], []),
        ([8], [5]),
        ([6], []),
    ]
    assert list(packed_attention._grouped(spans, together=False)) == [
        ([40], []), ([30], []), ([20], []), ([9], []), ([8], [5]), ([6], []),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", NOT_READ)
def test_a_model_that_cannot_read_packed_rows_keeps_its_own_attention(kind):
    model = make(kind, NOT_READ[kind], head=True)
    before = model.config._attn_implementation
    text = torch.arange(1, 20)[None]
    with torch.no_grad():
        expected = model(input_ids=text).logits
        assert not packed_attention.adopt(model, lambda model, **inputs: model(**inputs, use_cache=False).logits)
        assert torch.equal(model(input_ids=text).logits, expected)
    assert model.config._attn_implementation == before and not packed_attention.adopted(model)


def test_other_masks_work_as_they_do_with_sdpa():
    model = make("llama", SHAPE)
    texts = [text for family in families() for text in family]
    laid = packing.pad(texts)
    with torch.no_grad():
        expected = hidden(model, **packed_attention.inputs(laid.inputs))
        packed_attention.adopt(model, hidden)
        assert torch.equal(hidden(model, **packed_attention.inputs(laid.inputs)), expected)


def test_a_wrong_span_is_not_adopted(monkeypatch):
    """The proof sees it when a text sees another: here every span goes on from the one before it."""
    packed = packing.pack

    def leaking(families):
        laid = packed(families)
        spans = laid.inputs["attention_mask"][0, 0]
        spans[1:, 2:] = spans[:-1, :2]
        return laid

    monkeypatch.setattr(packing, "pack", leaking)
    assert not packed_attention.adopt(make("llama", SHAPE), hidden)


def test_a_saved_model_does_not_name_our_attention(tmp_path):
    model = make("llama", SHAPE, head=True)
    assert packed_attention.adopt(model, lambda model, **inputs: model(**inputs, use_cache=False).logits)
    model.save_pretrained(tmp_path)
    assert packed_attention.NAME not in (tmp_path / "config.json").read_text()
