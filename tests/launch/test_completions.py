"""The laws of reading an answer: the dialects of servers, thoughts before answers, errors in their place."""

import pytest

from raft.core.errors import UserError
from raft.launch.completions import after_thought, excerpt, read


def chat(content="fine", reason="stop", usage=None, **message) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return {"choices": [choice]} | ({} if usage is None else {"usage": {"completion_tokens": usage}})


def told(answer: dict) -> tuple[str, str | None, str]:
    found = read("prompt 7", answer, True, 8)
    return found.text, found.ended, found.fault


@pytest.mark.parametrize(
    "reason", ["stop", "eos", "eos_token", "end_turn", "STOP", "stop_sequence", "complete", "COMPLETED", None]
)
def test_an_answer_that_ended_by_itself_is_whole_in_every_dialect(reason):
    assert told(chat(reason=reason)) == ("fine", "stop", "")


def test_a_missing_reason_is_as_none():
    answer = chat()
    del answer["choices"][0]["finish_reason"]
    assert told(answer) == ("fine", "stop", "")
    assert read("p", {"choices": [{"text": "x"}]}, False, 8).ended == "stop"


def test_without_a_reason_the_number_of_tokens_tells_a_cut_answer():
    assert told(chat(reason=None, usage=7))[1] == "stop" and told(chat(reason=None, usage=8))[1] == "length"
    assert told(chat(reason="stop", usage=8))[1] == "stop"


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length", "token_limit"])
def test_an_answer_that_the_limit_cut_is_told_in_every_dialect(reason):
    assert told(chat(reason=reason)) == ("fine", "length", "")


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "refusal", "RECITATION", "guardrail_intervened"])
def test_what_is_withheld_is_told_in_every_dialect(reason):
    assert told(chat(reason=reason))[2] == f"the server withholds the text or a part of it (finish_reason {reason})"


@pytest.mark.parametrize("reason", ["flubber", 5, ["stop"], {"a": 1}, "", False])
def test_a_reason_that_nobody_knows_is_named_as_such(reason):
    assert told(chat(reason=reason))[2].startswith(
        "the answer ended for a reason that raft does not know (finish_reason"
    )


@pytest.mark.parametrize(
    "answer, words",
    [
        (chat(None, refusal="I will not"), "the model refuses to answer: I will not"),
        (chat(None, reasoning_content="hm"), "the answer holds a thought (reasoning_content) and no text"),
        (chat("", reasoning="hm"), "the answer holds a thought (reasoning_content) and no text"),
        (chat([{"type": "thinking", "thinking": "hm"}]), "the answer holds a thought (reasoning_content) and no text"),
        (chat(None, "tool_calls"), "the answer calls a tool"),
        (chat(None, tool_calls=[{}]), "the answer calls a tool"),
        (chat(None), "the answer holds no text (null)"),
        (chat(None, None), "the answer holds no text (null)"),
        (chat("", None), "the answer ended for a reason that raft does not know"),
        (chat("half \ud83d"), "the text holds half a character: half \\ud83d"),
    ],
)
def test_an_answer_without_text_says_what_it_is(answer, words):
    assert told(answer)[2].startswith(words)


def test_an_answer_cut_in_its_thought_is_cut():
    assert told(chat(None, "length", reasoning_content="hm"))[1] == "length"


def test_an_empty_answer_is_one():
    assert told(chat("")) == ("", "stop", "")


def test_the_text_of_parts_is_read_and_their_thoughts_are_not():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "[[B]]"}]}, {"type": "text", "text": "so "}]
    assert told(chat([*parts, {"type": "output_text", "text": "[[A]]"}])) == ("so [[A]]", "stop", "")


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": "x"},
        {"choices": 5},
        {"choices": {"0": {}}},
        {"choices": [None]},
        {"choices": [{"text": "x", "message": {"content": "x"}}] * 2},
        {"choices": [{"message": {"content": ["x"]}, "text": 7, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": [{"type": "image_url"}]}, "text": {}}]},
        {"choices": [{"message": {"content": [{"type": "text", "text": None}]}, "text": [5]}]},
        {"choices": [{"message": [], "text": True}]},
    ],
)
def test_an_answer_in_another_protocol_is_an_error(answer, is_chat):
    with pytest.raises(UserError, match="prompt 7: an answer that is not OpenAI's protocol"):
        read("prompt 7", answer, is_chat, 8)


@pytest.mark.parametrize(
    "opens, closes",
    [
        ("<think>", "</think>"),
        ("<Thinking>", "</Thinking>"),
        ("<thought>", "</thought>"),
        ("<seed:think>", "</seed:think>"),
        ("<mm:think>", "</mm:think>"),
        ("<ifm|think_fast>", "</ifm|think_fast>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("<|channel>thought\n", "<channel|>"),
        ("◁think▷", "◁/think▷"),
        ("<unused94>thought\n", "<unused95>"),
    ],
)
def test_what_is_thought_is_not_the_answer(opens, closes):
    assert after_thought(f"{opens}[[B]]{closes} so [[A]]") == " so [[A]]"
    assert after_thought(f"[[B]]{closes} so [[A]]") == " so [[A]]"  # opened by the template
    assert after_thought(f"{opens}[[B]]{closes}{opens}[[C]]{closes}[[A]]") == "[[A]]"
    assert after_thought(f"{opens}[[B]]") is None
    assert after_thought(f"{opens}[[B]]{closes} so {opens}[[A]]") is None


@pytest.mark.parametrize("text", ["I think [[A]]", "a < think > b", "", "<b>[[A]]</b>", "x </ think>"])
def test_an_answer_without_thoughts_is_read_whole(text):
    assert after_thought(text) == text


def test_an_excerpt_is_short_harmless_and_on_one_line():
    assert excerpt("a\nb\t\x1b[2J \ud800") == "a b \\x1b[2J \\ud800"
    long = excerpt("word " * 10**6)
    assert len(long) == 200 and long.endswith("...")
    assert excerpt("\u202e" * 500).isascii()
