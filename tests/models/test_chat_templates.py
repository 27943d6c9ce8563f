"""Laws of raft.models.chat_templates, on small tokenizers made here and on one real one."""

from pathlib import Path

import pytest
from letters_tokenizer import ANSWER, ASK, ASKED, ASSISTANT, BARE, BOS, EOS, STORY, TURNS, USER, WITH_BOS, make

from raft.core.errors import UserError
from raft.core.records import Prompt, Response
from raft.models import chat_templates, reward_templates

REAL = Path(__file__).parents[3] / "shared/data/models/TinyStories-656K"


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [BARE, WITH_BOS])
def test_the_prompt_of_a_chat_is_what_its_template_writes(template: str, adds_bos: bool):
    tokenizer = make(template, adds_bos)
    spelled = tokenizer.decode(chat_templates.encode_prompt(tokenizer, ASKED))
    assert spelled == BOS * (template == WITH_BOS) + f"{USER}How are you today?{EOS}\n{ASSISTANT}"


def test_a_plain_prompt_is_open_at_its_end():
    tokenizer = make(adds_bos=True, adds_eos=True)
    assert tokenizer.decode(chat_templates.encode_prompt(tokenizer, STORY)) == f"{BOS}Once upon a time"


@pytest.mark.parametrize("adds_eos", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_plain_prompt_that_brings_its_bos_has_one(adds_bos: bool, adds_eos: bool):
    tokenizer = make(adds_bos=adds_bos, adds_eos=adds_eos)
    ids = chat_templates.encode_prompt(tokenizer, Prompt("p", text=f"{BOS}{USER}Hello{EOS}"))
    assert tokenizer.decode(ids) == f"{BOS}{USER}Hello{EOS}"


def test_a_decoder_that_is_framed_by_cls_and_sep_reads_an_open_prompt():
    tokenizer = make(adds_bos=True, adds_eos=True)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.cls_token, tokenizer.sep_token = None, None, BOS, EOS
    assert tokenizer("x")["input_ids"][-1] == tokenizer.sep_token_id
    assert tokenizer.decode(chat_templates.encode_prompt(tokenizer, STORY)) == f"{BOS}Once upon a time"


@pytest.mark.parametrize("blank", [None, "first", "always"])
def test_a_prompt_and_its_response_are_the_beginning_of_the_conversation(blank: str | None):
    tokenizer = make(WITH_BOS, adds_bos=True, blank=blank)
    ids = chat_templates.encode_prompt(tokenizer, ASKED)
    assert reward_templates.encode(tokenizer, ASKED, ANSWER, "chat")[: len(ids)] == ids
    if blank != "always":  # which writes a blank behind every special token, in the conversation as well
        ids = ids + chat_templates.encode_response(tokenizer, ASKED, ANSWER)
        assert reward_templates.encode(tokenizer, ASKED, ANSWER, "chat")[: len(ids)] == ids


@pytest.mark.parametrize("blank", [None, "first", "always"])
@pytest.mark.parametrize("text", [" a cat", "ly a cat", "\nA cat", "  two", "?"])
def test_a_response_goes_on_where_the_prompt_stopped(blank: str | None, text: str):
    tokenizer = make(blank=blank)
    ids = chat_templates.encode_prompt(tokenizer, STORY) + chat_templates.encode_response(tokenizer, STORY, text)
    assert tokenizer.decode(ids) == f"Once upon a time{text}{EOS}"


def test_a_written_response_ends_as_the_template_says():
    end = make().convert_tokens_to_ids(ASSISTANT)
    tokenizer = make(TURNS.replace(EOS, ASSISTANT) + ASK)  # a turn's end that is not the EOS
    ids = chat_templates.encode_response(tokenizer, ASKED, ANSWER)
    assert tokenizer.decode(ids) == f"{ANSWER}{ASSISTANT}"
    assert ids[-1] == end


def test_a_written_plain_response_ends_with_eos():
    tokenizer = make()
    ids = chat_templates.encode_response(tokenizer, STORY, " there was")
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1


def test_generated_tokens_are_trained_as_they_are():
    tokenizer = make()
    spelled_otherwise = tokenizer.convert_tokens_to_ids(["y", "o", "u"])
    assert tokenizer("you")["input_ids"] != spelled_otherwise
    response = Response("you", [*spelled_otherwise, tokenizer.eos_token_id], None, "stop")
    assert chat_templates.trained_tokens(tokenizer, response) == response.token_ids


def test_only_a_response_that_came_to_its_end_is_taught_to_end():
    tokenizer = make()
    ids = tokenizer("you")["input_ids"]
    assert chat_templates.trained_tokens(tokenizer, Response("you", ids, None, "length")) == ids
    assert chat_templates.trained_tokens(tokenizer, Response("you", ids, None, "marker")) == [
        *ids,
        tokenizer.eos_token_id,
    ]


def test_a_missing_template_is_named():
    with pytest.raises(UserError, match="has no chat template, but the prompt is a list of messages"):
        chat_templates.encode_prompt(make(None), ASKED)


def test_a_template_that_refuses_a_conversation_says_what_and_why():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + BARE
    system = Prompt("p", messages=[{"role": "system", "content": "Be kind."}, *ASKED.messages])
    with pytest.raises(UserError, match=r"refuses a conversation of system, user \(no system turn"):
        chat_templates.encode_prompt(make(strict), system)


def test_a_template_that_rewrites_the_question_when_it_is_answered_is_refused():
    moody = "{% if not add_generation_prompt %}{{ 'answered: ' }}{% endif %}" + BARE
    with pytest.raises(UserError, match="cannot be separated"):
        chat_templates.encode_response(make(moody), ASKED, ANSWER)


@pytest.mark.skipif(not REAL.exists(), reason="the TinyStories model is not on this machine")
def test_a_real_tokenizer_writes_one_bos_and_lets_a_response_go_on():
    tokenizer = chat_templates.load_tokenizer(str(REAL))
    prompt, text = Prompt("p", text="Once upon"), " a time, there was a little girl."
    ids = chat_templates.encode_prompt(tokenizer, prompt)
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    for response in (text, text.lstrip(), "", "\nThe end."):
        whole = ids + chat_templates.encode_response(tokenizer, prompt, response)
        assert tokenizer.decode(whole, skip_special_tokens=True) == "Once upon" + response
        assert whole[-1] == tokenizer.eos_token_id
        read = reward_templates.encode(tokenizer, prompt, response, "plain")
        assert read.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(read, skip_special_tokens=True) == "Once upon" + response


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        chat_templates.load_tokenizer(str(tmp_path))
