"""Laws of given responses: a row that cannot be read is a UserError that names its file and line, never a traceback."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from raft.core.errors import UserError
from raft.core.records import Prompt, Response
from raft.data import responses_file

CHAT = [{"role": "user", "content": "why?"}]
GOOD = {"prompt_id": "p", "text": "why? ", "responses": [{"text": "so"}, {"text": ""}]}
ASKED = [{"id": "p", "messages": CHAT, "meta": {"answer": 1}}, {"id": "q", "text": "how? "}]
ANSWERED = [{"prompt_id": "p", "responses": [{"text": "so"}]}, {"prompt_id": "q", "responses": [{"text": "thus"}]}]


def lines(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def fault(responses: Path, prompts: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        list(responses_file.groups(responses, prompts))
    return str(caught.value)


def test_a_row_is_a_group_and_a_number_is_an_id_too(tmp_path: Path):
    full = {"text": "so", "token_ids": [1, 2], "logprobs": [-0.5, -0.25], "finish_reason": "length"}
    rows = [GOOD, {"prompt_id": 7, "messages": CHAT, "text": None, "meta": None, "responses": [full], "more": 1}]
    first, second = responses_file.groups(lines(tmp_path / "in.jsonl", rows), None)
    assert first.prompt == Prompt("p", text="why? ") and [one.text for one in first.responses] == ["so", ""]
    assert second.prompt == Prompt("7", messages=CHAT) and second.responses == [Response(**full)]


def test_responses_and_their_prompts_go_in_step(tmp_path: Path):
    found = responses_file.groups(lines(tmp_path / "in.jsonl", ANSWERED), lines(tmp_path / "prompts.jsonl", ASKED))
    assert [(one.prompt.id, one.prompt.meta, one.responses[0].text) for one in found] == [
        ("p", {"answer": 1}, "so"), ("q", {}, "thus"),
    ]  # fmt: skip


WRONG: dict[str, tuple[Any, str]] = {
    "no id": ({"prompt_id": None}, "prompt_id is neither text nor a whole number but None"),
    "an id that is true": ({"prompt_id": True}, "neither text nor a whole number but True"),
    "text null": ({"text": None}, "has neither messages nor text"),
    "text a number": ({"text": 3}, "text is not text but int"),
    "both": ({"messages": CHAT}, "has messages and text"),
    "messages a text": ({"text": None, "messages": "why?"}, "messages is not a list of messages such as"),
    "no messages": ({"text": None, "messages": []}, "messages is not a list of messages such as"),
    "messages of texts": ({"text": None, "messages": ["why?"]}, "messages is not a list of messages such as"),
    "a message without a role": ({"text": None, "messages": [{"content": "x"}]}, r"messages\[0\] has no role"),
    "a message without words": ({"text": None, "messages": [{"role": "user", "content": None}]}, "the content is null"),
    "an empty message": ({"text": None, "messages": [{"role": "user", "content": ""}]}, "the last message is empty"),
    "an answer as prompt": (
        {"text": None, "messages": [{"role": "assistant", "content": "x"}]}, "ends with the assistant's own words",
    ),
    "meta a list": ({"meta": [1]}, r"meta is not a mapping but \[1\]"),
    "no responses": ({"responses": []}, "responses is not a list of at least one response"),
    "responses a text": ({"responses": "so"}, "responses is not a list of at least one response"),
    "a response of words": ({"responses": ["so"]}, r'responses\[0\] is not a response with a "text" that is text'),
    "a response of null": ({"responses": [{"text": "a"}, {"text": None}]}, r"responses\[1\] is not a response"),
    "token ids a text": ({"responses": [{"text": "a", "token_ids": "1"}]}, r"responses\[0\]\.token_ids is not a list"),
    "logprobs a number": ({"responses": [{"text": "a", "logprobs": 1}]}, r"responses\[0\]\.logprobs is not a list"),
    "a reason that is 1": ({"responses": [{"text": "a", "finish_reason": 1}]}, r"finish_reason is not text but 1"),
    "half a character": ({"responses": [{"text": "\ud800"}]}, "holds what no JSON can say"),
    "not a number": ({"meta": {"a": float("nan")}}, "meta cannot be written as JSON"),
    "the same id": ({}, "a second row has prompt_id p; give each its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_cannot_be_read_is_named_by_file_and_line(tmp_path: Path, name: str):
    change, words = WRONG[name]
    bad = {**GOOD, "prompt_id": "p" if name == "the same id" else "q", **change}
    said = fault(lines(tmp_path / "in.jsonl", [GOOD, "", bad]))
    assert said.startswith(f"{tmp_path / 'in.jsonl'}:3: ")
    assert re.search(words, said)


OUT_OF_STEP: dict[str, tuple[list[Any], list[Any], str]] = {
    "another order": (ASKED[::-1], ANSWERED, r"in\.jsonl:1: prompt_id is 'p', but at .*prompts\.jsonl:1 id is 'q'"),
    "too few prompts": (ASKED[:1], ANSWERED, r"in\.jsonl:2: .*prompts\.jsonl has no prompt for these responses"),
    "too few responses": (ASKED, ANSWERED[:1], r"prompts\.jsonl:2: .*in\.jsonl has no responses to this prompt"),
    "no ids": ([{"text": "x"}], [{"responses": [{"text": "y"}]}], r"in\.jsonl:1 and .*prompts\.jsonl:1: id is neither"),
    "a bad prompt": ([{"id": "p", "prompt": "x"}], ANSWERED[:1], r"prompts\.jsonl:1: has neither messages nor text"),
    "no rows": ([], [], r"in\.jsonl: no rows; give at least one prompt with its responses"),
}


@pytest.mark.parametrize("name", OUT_OF_STEP)
def test_responses_out_of_step_with_their_prompts_are_refused(tmp_path: Path, name: str):
    prompts, responses, words = OUT_OF_STEP[name]
    said = fault(lines(tmp_path / "in.jsonl", responses), lines(tmp_path / "prompts.jsonl", prompts))
    assert re.search(words, said)


def test_the_responses_of_a_run_without_their_prompts_are_told_what_they_need(tmp_path: Path):
    said = fault(lines(tmp_path / "in.jsonl", ANSWERED))
    assert (
        "has neither messages nor text" in said
        and "a run's responses.jsonl needs its prompts.jsonl too (--prompts" in said
    )


def test_a_line_that_says_a_key_twice_or_is_nested_too_deep_is_refused(tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"prompt_id": "p", "text": "a", "text": "b", "responses": [{"text": "x"}]}\n')
    assert re.search(r"in\.jsonl:1: .*the key 'text' appears twice", fault(tmp_path / "in.jsonl"))
    deep = "[" * 900 + "]" * 900
    (tmp_path / "in.jsonl").write_text(
        f'{{"prompt_id": "p", "text": "a", "meta": {{"a": {deep}}}, "responses": [{{"text": ""}}]}}'
    )
    assert re.search(r"in\.jsonl:1: .*nested", fault(tmp_path / "in.jsonl"))


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path):
    assert "no file at" in fault(tmp_path / "none.jsonl")
    assert "is a folder" in fault(tmp_path)


def test_prompts_are_read_in_the_published_forms_of_messages(tmp_path: Path):
    talk = [{"from": "human", "value": "why?"}]
    row = {"prompt_id": "p", "messages": talk, "responses": [{"text": "so"}]}
    (group,) = responses_file.groups(lines(tmp_path / "in.jsonl", [row]), None)
    assert group.prompt.messages == CHAT
