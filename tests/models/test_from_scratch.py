"""A model from nothing: complete, the same twice, and nothing lost between text and tokens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.config.jobs import Start
from raft.core import registry
from raft.core.errors import UserError
from raft.models import from_scratch

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
}
TEXTS = ["The moon smells of wet moss.", "My uncle talks to the moon.", "The rain runs from my uncle."] * 20
CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "The moon."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    from_scratch.make(made, TEXTS, CONFIG, 320, 3)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_the_same_inputs_give_the_same_bytes_and_another_seed_other_weights(folder, tmp_path):
    torch.rand(5)  # the state of the global generator plays no part
    from_scratch.make(tmp_path / "again", iter(TEXTS), CONFIG, 320, 3)
    from_scratch.make(tmp_path / "other", TEXTS, CONFIG, 320, 4)
    for name in sorted(file.name for file in folder.iterdir()):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()


def test_whoever_may_read_the_config_may_read_the_weights(folder):
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_the_global_random_state_is_left_as_it_was(tmp_path):
    before = torch.get_rng_state()
    from_scratch.make(tmp_path, TEXTS, CONFIG, 320, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_the_model_is_float32_and_fits_its_tokenizer(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) <= 320
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.model_max_length == 96
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_any_text_comes_back_as_it_was(tokenizer):
    for text in ["日本語 и 💧\t\r\n  two  blanks ", " ,.!? don 't", "\x00\x7f\u200b", "é e\u0301", ""]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_nothing_is_added_to_a_plain_text(tokenizer):
    assert tokenizer("moon")["input_ids"] == tokenizer("moon", add_special_tokens=False)["input_ids"]


def test_markers_are_one_token_each_and_never_merge_with_their_neighbours(tokenizer):
    for marker in [from_scratch.BEGIN, from_scratch.END, from_scratch.PAD, *from_scratch.ROLES]:
        alone = tokenizer(marker, add_special_tokens=False)["input_ids"]
        assert len(alone) == 1
        assert marker in tokenizer.all_special_tokens
        apart = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("moon", "moss")]
        assert tokenizer(f"moon{marker}moss", add_special_tokens=False)["input_ids"] == apart[0] + alone + apart[1]
        assert tokenizer.decode(alone, skip_special_tokens=True) == ""


def test_the_turn_of_the_assistant_ends_with_eos_and_a_question_is_the_beginning_of_its_answer(tokenizer):
    asked = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    answered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert answered == asked + "The moon." + from_scratch.END
    assert tokenizer(answered, add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_token_id


def test_a_template_of_ones_own_brings_its_markers(tmp_path):
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    from_scratch.make(tmp_path, TEXTS, CONFIG, 320, 0, template)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == template
    assert len(tokenizer("<|im_start|>", add_special_tokens=False)["input_ids"]) == 1


def test_a_template_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.jinja").write_bytes("{{ eos_token }} schön".encode("latin-1"))
    for name, words in {"latin.jinja": "latin.jinja: not UTF-8", "gone.jinja": "no file at"}.items():
        faults = []
        registry.build(Start, {"config": CONFIG, "chat_template": str(tmp_path / name)}, "policy", faults)
        assert [fault.key for fault in faults] == ["policy.chat_template"] and words in faults[0].message


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(UserError, match="alone need 262"):
        from_scratch.make(tmp_path, TEXTS, CONFIG, 261, 0)
    with pytest.raises(UserError, match="eos_token"):
        from_scratch.make(tmp_path, TEXTS, CONFIG, 320, 0, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UserError, match="vocab_size"):
        from_scratch.make(tmp_path, TEXTS, {**CONFIG, "vocab_size": 9}, 320, 0)


SIZES = {
    "llama": ({}, "6.48 billion parameters"),
    "deep": ({"num_hidden_layers": 10**6}, "1,000,000 layers are more than the 1,000"),
    "nonsense": ({"hidden_size": "many"}, "transformers makes no model of it"),
    "heads": ({"num_attention_heads": 0}, "transformers makes no model of it"),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_config_of_which_no_model_can_be_made_here_is_refused_before_it_is_built(tmp_path, monkeypatch, name):
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 4_000_000, "SC_PAGE_SIZE": 4096}.__getitem__)
    config, words = SIZES[name]
    with pytest.raises(UserError, match=r"policy\.config") as told:
        from_scratch.make(tmp_path, TEXTS, {"model_type": "llama", **config}, 300, 0)
    assert words in str(told.value)
