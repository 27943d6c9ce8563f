"""What ends a response: the token that a template writes behind an answer, in generation and in training."""

import json
from pathlib import Path

import pytest
import torch
from small_tokenizers import CORPUS, TEMPLATES, byte_level
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raft.core.errors import RowError, UserError
from raft.core.records import Policy, Prompt, Response
from raft.generators.sampling import Sampling
from raft.generators.transformers import Transformers
from raft.models import chat_templates

ASKED = Prompt("p", messages=[{"role": "user", "content": "Hello"}])
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
DEAF = TEMPLATES["chatml"].partition("{% if add_generation_prompt %}")[0]  # takes no notice of it


def tokenizer_of(template: str | None, **options: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), eos_token="</s>", unk_token="<unk>", chat_template=template, **options
    )


def policy(folder: Path, tokenizer: PreTrainedTokenizerFast, **config: int) -> Policy:
    """A folder whose model says the same token for ever: the one that `says` names."""
    says = config.pop("says")
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **{"eos_token_id": None, **config}))
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.fill_(0.0)
        model.lm_head.weight[says] = 10.0
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    model.generation_config.eos_token_id = config.get("eos_token_id")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Policy(folder, folder / "probe.json")


def test_the_end_that_a_template_writes_ends_a_response_and_is_kept(tmp_path: Path):
    tokenizer = tokenizer_of(TEMPLATES["chatml"])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    made = policy(tmp_path, tokenizer, says=end)
    (group,) = Transformers(k=1, temperature=0, max_tokens=5).generate(made, [ASKED], 0)
    assert group.responses[0].token_ids == [end]
    assert (group.responses[0].text, group.responses[0].finish_reason) == ("", "stop")


@pytest.mark.parametrize("option", ["stop", "truncate_at"])
def test_a_special_token_of_stop_or_cut_at_is_matched_as_a_token(tmp_path: Path, option: str):
    tokenizer = tokenizer_of(None)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    made = policy(tmp_path, tokenizer, says=start)
    sampling = {option: ["<|im_start|>"]}
    (group,) = Transformers(k=1, temperature=0, max_tokens=3, **sampling).generate(made, [Prompt("p", text="Hi")], 0)
    expected = ([start], "stop") if option == "stop" else ([], "marker")
    assert (group.responses[0].token_ids, group.responses[0].finish_reason) == expected


@pytest.mark.parametrize("option", ["stop", "truncate_at"])
def test_a_special_token_inside_a_longer_text_is_refused(option: str):
    tokenizer, sampling = tokenizer_of(None), Sampling(**{option: ["<|im_end|>\n"]})
    with pytest.raises(UserError, match=rf"generator\.{option}.*<\|im_end\|>.*left out .*alone"):
        sampling.ends(tokenizer) if option == "stop" else sampling.clean(Response("a", [9], None, "stop"), tokenizer)


def test_an_answer_is_taught_with_the_end_of_its_template_and_a_cut_one_too():
    tokenizer = tokenizer_of(TEMPLATES["chatml"])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    cut = Response("a", tokenizer("a")["input_ids"], None, "marker")
    assert chat_templates.encode_response(tokenizer, ASKED, "Fine.")[-1] == end
    assert chat_templates.trained_tokens(tokenizer, cut, is_chat=True)[-1] == end
    assert chat_templates.trained_tokens(tokenizer, cut)[-1] == tokenizer.eos_token_id


def test_what_a_template_writes_behind_the_end_is_not_taught():
    tokenizer = tokenizer_of(TEMPLATES["chatml"] + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    ids = chat_templates.encode_response(tokenizer, ASKED, "Fine.")
    assert tokenizer.decode(ids) == "Fine.<|im_end|>"


def test_behind_an_answer_without_an_end_eos_is_taught():
    tokenizer = tokenizer_of(NO_END + ASK)
    assert not chat_templates.writes_end(tokenizer)
    assert tokenizer.decode(chat_templates.encode_response(tokenizer, ASKED, "Fine.")) == "Fine.</s>"
    assert tokenizer.decode(chat_templates.encode_prompt(tokenizer, ASKED)) == "user: Hello\nassistant: "


def test_a_template_that_knows_no_generation_prompt_is_answered_where_answers_begin():
    tokenizer = tokenizer_of(DEAF)
    whole = tokenizer_of(TEMPLATES["chatml"])
    assert chat_templates.encode_prompt(tokenizer, ASKED) == chat_templates.encode_prompt(whole, ASKED)
    assert chat_templates.encode_response(tokenizer, ASKED, "Fine.") == chat_templates.encode_response(
        whole, ASKED, "Fine."
    )
    inst = tokenizer_of(TEMPLATES["inst"], bos_token="<s>")  # an answer goes on right behind its question
    assert tokenizer.decode(chat_templates.encode_prompt(inst, ASKED)) == "<s>[INST] Hello [/INST]"


@pytest.mark.parametrize(
    "template", ["Hello.", "{{ none }}", "{% for m in messages %}{{ m.role }}{{ m.text }}{% endfor %}"]
)
def test_a_template_that_leaves_the_words_out_is_refused(template: str):
    with pytest.raises(UserError, match="leaves out what the user says") as caught:
        chat_templates.encode_prompt(tokenizer_of(template), ASKED)
    assert not isinstance(caught.value, RowError)


def test_the_ends_of_a_folder_are_read_and_a_broken_one_is_named(tmp_path: Path):
    tokenizer = tokenizer_of(None)
    policy(tmp_path, tokenizer, says=9, eos_token_id=7)
    read = chat_templates.load_tokenizer(str(tmp_path))
    assert chat_templates.end_tokens(read) == {tokenizer.eos_token_id, 7}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [[2]]}))
    chat_templates._folder_ends.cache_clear()
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id is \[\[2\]\]"):
        chat_templates.end_tokens(read)


def test_what_the_policy_cannot_read_is_refused(tmp_path: Path):
    tokenizer = tokenizer_of(None)
    policy(tmp_path, tokenizer, says=9)
    tokenizer.add_tokens(["<late>"])
    tokenizer.save_pretrained(tmp_path)
    read = chat_templates.load_tokenizer(str(tmp_path))
    prompt = Prompt("p", text="a <late>")
    with pytest.raises(RowError, match=rf"token {len(tokenizer) - 1} \('<late>'\) is beyond"):
        chat_templates.require_known(read, prompt, chat_templates.encode_prompt(read, prompt))
    deaf = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1, "x": 2}, merges=[])), bos_token="</s>"
    )
    unknown = Prompt("p", text="日本語")
    with pytest.raises(RowError, match="knows no character"):
        chat_templates.require_known(deaf, unknown, chat_templates.encode_prompt(deaf, unknown))


def test_a_huge_prompt_is_too_long_by_its_beginning():
    tokenizer = tokenizer_of(None)
    huge = Prompt("p", text=" ".join(CORPUS) * 50_000)
    with pytest.raises(RowError, match=r"characters, of which the first 131072 have .* tokens, more than 100"):
        chat_templates.require_short(tokenizer, huge, 100)
    chat_templates.require_short(tokenizer, Prompt("p", text="a" * 130_000), 100)  # what is not huge is counted
