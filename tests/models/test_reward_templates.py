"""Laws of raft.models.reward_templates: what a reward model reads, to the token."""

from pathlib import Path

import pytest
from letters_tokenizer import ANSWER, ASKED, ASSISTANT, BARE, BOS, EOS, STORY, USER, WITH_BOS, make

from raft.core.errors import RowError, UserError
from raft.core.records import Prompt
from raft.models import reward_templates


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [BARE, WITH_BOS])
def test_a_conversation_has_one_bos_whoever_writes_it(template: str, adds_bos: bool):
    tokenizer = make(template, adds_bos)
    ids = reward_templates.encode(tokenizer, ASKED, ANSWER, "chat")
    expected = 1 if adds_bos or template == WITH_BOS else 0
    assert ids.count(0) == expected
    assert tokenizer.decode(ids) == BOS * expected + f"{USER}How are you today?{EOS}\n{ASSISTANT}{ANSWER}{EOS}\n"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_plain_conversation_has_the_bos_of_its_tokenizer_and_no_eos(adds_bos: bool):
    tokenizer = make(adds_bos=adds_bos, adds_eos=True)
    ids = reward_templates.encode(tokenizer, STORY, " there was", "plain")
    assert tokenizer.decode(ids) == BOS * adds_bos + "Once upon a time there was"


def test_a_text_that_brings_a_bos_does_not_get_another():
    once, twice = (
        reward_templates.encode(make(adds_bos=True), Prompt("p", text=text), "", "plain")
        for text in ("x", f"{BOS}{BOS}x")
    )
    assert once == twice


def test_tokenizers_that_frame_every_text_keep_their_frame():
    tokenizer = make(adds_bos=True, adds_eos=True)
    tokenizer.bos_token, tokenizer.cls_token, tokenizer.sep_token = None, BOS, EOS
    assert tokenizer.decode(reward_templates.encode(tokenizer, STORY, "!", "plain")) == f"{BOS}Once upon a time!{EOS}"


def test_a_prompt_of_the_wrong_kind_names_the_right_template():
    with pytest.raises(UserError, match=r"plain text, but the template is chat; use template: plain"):
        reward_templates.encode(make(), STORY, ANSWER, "chat")
    with pytest.raises(UserError, match=r"has messages, which template: plain does not write; use template: chat"):
        reward_templates.encode(make(), ASKED, ANSWER, "plain")


def long_chat() -> Prompt:
    """system, then three turns of the user with answers between them."""
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    said = ["Be kind.", "One?", "Yes.", "Two?", "No.", "Three?"]
    return Prompt("p", messages=[{"role": role, "content": text} for role, text in zip(roles, said, strict=True)])


@pytest.mark.parametrize(("cut", "gone"), [(0, 0), (1, 2), (20, 4), (1000, 4)])
def test_a_chat_loses_whole_turns_but_never_system_the_last_question_or_the_answer(cut: int, gone: int):
    tokenizer, prompt = make(WITH_BOS), long_chat()
    whole = len(reward_templates.encode(tokenizer, prompt, ANSWER, "chat"))
    kept = reward_templates.cut(tokenizer, prompt, ANSWER, "chat", whole - cut)
    rest = Prompt("p", messages=prompt.messages[:1] + prompt.messages[1 + gone :])
    assert kept == reward_templates.encode(tokenizer, rest, ANSWER, "chat")


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 5, 100])
def test_plain_text_loses_its_oldest_tokens_but_never_the_bos_or_the_response(cut: int, adds_bos: bool):
    tokenizer = make(adds_bos=adds_bos)
    whole = reward_templates.encode(tokenizer, STORY, " there was", "plain")
    kept = reward_templates.cut(tokenizer, STORY, " there was", "plain", len(whole) - cut)
    assert tokenizer.decode(kept) == BOS * adds_bos + "Once upon a time"[cut:] + " there was"


def test_a_token_that_spells_prompt_and_response_is_not_cut():
    tokenizer = make()
    kept = reward_templates.cut(tokenizer, Prompt("p", text="yo"), "u are", "plain", 1)
    assert tokenizer.decode(kept) == "ou are"


def test_the_marks_of_hh_rlhf_are_written_for_chats_and_for_dialogues():
    tokenizer = make(adds_bos=True)
    asked = Prompt("p", messages=[{"role": role, "content": role[0]} for role in ("user", "assistant", "user")])
    ids = reward_templates.encode(tokenizer, asked, "Fine.", "hh")
    assert tokenizer.decode(ids) == BOS + "###Human: u ###Assistant: a ###Human: u ###Assistant: Fine."
    dialogue = Prompt("p", text="\n\nHuman: u\n\nAssistant: a\n\nHuman: u\n\nAssistant:")
    ids = reward_templates.encode(tokenizer, dialogue, " Fine.", "hh")
    assert tokenizer.decode(ids) == BOS + "###Human: u###Assistant: a###Human: u###Assistant: Fine."


def test_ultrarm_reads_its_own_marks_and_keeps_the_last_line_break():
    ids = reward_templates.encode(make(adds_bos=True), ASKED, "Fine.\n", "ultrarm")
    assert make().decode(ids) == BOS + "Human: How are you today?\n\nAssistant: Fine.\n"


def test_a_template_without_a_place_for_system_refuses_one():
    system = Prompt("p", messages=[{"role": "system", "content": "Be kind."}, *ASKED.messages])
    with pytest.raises(UserError, match="turn of system, but the template hh knows only"):
        reward_templates.encode(make(), system, ANSWER, "hh")


@pytest.mark.parametrize("answer", ["Well.", ""])
def test_a_pair_is_two_segments_also_if_the_answer_is_empty(answer: str):
    from tokenizers import processors

    tokenizer = make()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[BOS, "$A", EOS], pair=[BOS, "$A", EOS, "$B", EOS], special_tokens=[(BOS, 0), (EOS, 1)]
    )
    tokenizer.bos_token, tokenizer.cls_token, tokenizer.sep_token = None, BOS, EOS
    whole = f"{BOS}How are you today?{EOS}{answer}{EOS}"
    ids = reward_templates.encode(tokenizer, ASKED, answer, "pair")
    assert tokenizer.decode(ids) == whole
    kept = reward_templates.cut(tokenizer, ASKED, answer, "pair", len(ids) - 4)
    assert tokenizer.decode(kept) == whole.replace("How ", "")
    twice = Prompt("p", messages=[*ASKED.messages, {"role": "assistant", "content": "x"}, *ASKED.messages])
    with pytest.raises(UserError, match="more than one question"):
        reward_templates.encode(tokenizer, twice, answer, "pair")


def test_a_template_of_a_file_is_rendered_in_the_sandbox(tmp_path: Path):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}")
    ids = reward_templates.encode(make(adds_bos=True), ASKED, ANSWER, str(tmp_path / "mine.jinja"))
    assert make().decode(ids) == f"{BOS}[user: How are you today?][assistant: {ANSWER}]"
    (tmp_path / "evil.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="refuses a conversation"):
        reward_templates.encode(make(), ASKED, ANSWER, str(tmp_path / "evil.jinja"))


def test_a_template_that_is_unknown_or_no_text_is_named_with_the_way_out(tmp_path: Path):
    assert list(reward_templates.template_faults("chat")) == []
    ((_, message),) = reward_templates.template_faults("ultram")
    assert "did you mean ultrarm?" in message
    ((_, message),) = reward_templates.template_faults(str(tmp_path / "none.jinja"))
    assert "no file at" in message
    (tmp_path / "latin.jinja").write_bytes("{{ messages }} schön".encode("latin-1"))
    ((key, message),) = reward_templates.template_faults(str(tmp_path / "latin.jinja"))
    assert key == "template" and "latin.jinja: not UTF-8" in message and "save the file as UTF-8" in message


def test_the_rule_for_the_bos_can_be_given():
    silent = make(BARE, adds_bos=False)
    assert reward_templates.encode(silent, ASKED, ANSWER, "chat", "one")[0] == 0
    assert reward_templates.encode(make(BARE, adds_bos=True), ASKED, ANSWER, "chat", "none").count(0) == 0
    assert reward_templates.encode(make(WITH_BOS, adds_bos=True), ASKED, ANSWER, "chat", "none").count(0) == 1
    with pytest.raises(UserError, match="writes two BOS"):
        reward_templates.encode(make("{{ bos_token }}" + WITH_BOS), ASKED, ANSWER, "chat", "none")
    silent.bos_token = None
    with pytest.raises(UserError, match="has no BOS"):
        reward_templates.encode(silent, ASKED, ANSWER, "chat", "one")


def test_calls_that_the_template_of_a_reward_model_does_not_write_are_not_scored():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    calling = [*ASKED.messages, {"role": "assistant", "content": None, "tool_calls": [call]}]
    asked = Prompt("p", messages=[*calling, {"role": "user", "content": "And?"}])
    deaf = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m['content'] or '') }}{% endfor %}"
    with pytest.raises(RowError, match="leaves out the arguments of a tool call, the function of a tool call"):
        reward_templates.encode(make(deaf), asked, ANSWER, "chat")
    heard = deaf.replace("{% endfor %}", "{{ m['tool_calls'] | tojson if m['tool_calls'] else '' }}{% endfor %}")
    assert '"city": "Rome"' in make(heard).decode(reward_templates.encode(make(heard), asked, ANSWER, "chat"))
