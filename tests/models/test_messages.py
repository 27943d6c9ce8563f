"""Messages in the forms in which data sets come, as chat templates read them, or a reason why not."""

from typing import Any

import pytest

from raft.core.records import Prompt
from raft.generators.remote import _chat
from raft.models.messages import Malformed, answered, messages, tools, turns

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def why(value: Any, read: Any = messages) -> str:
    with pytest.raises(Malformed) as caught:
        read(value, "m")
    return str(caught.value)


def test_known_roles_stay_and_what_other_data_sets_call_them_is_translated():
    roles = ["system", "developer", "user", "assistant", "tool"]
    assert [one["role"] for one in messages([{"role": role, "content": "x"} for role in roles], "m")] == roles
    others = {"human": "user", "Human": "user", "USER": "user"} | dict.fromkeys(
        ["gpt", "bot", "model", "chatgpt", "ChatGPT"], "assistant"
    )
    found = messages([{"role": role, "content": "x"} for role in others], "m")
    assert [one["role"] for one in found] == list(others.values())


@pytest.mark.parametrize("role", ["function_call", "observation", "narrator", "", " user"])
def test_a_role_that_nobody_knows_makes_the_row_malformed_and_is_named(role: str):
    said = why([user("x"), {"role": role, "content": "x"}])
    assert said.startswith(f"m[1]: unknown role {role!r}; allowed: system, developer, user, assistant, tool, human")


def test_sharegpt_is_read_as_messages():
    found = messages([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "weight": None}], "m")
    assert found == [user("Hi"), {"role": "assistant", "content": "Ho"}]


def test_columns_of_both_forms_that_a_table_filled_with_nulls_do_not_hide_what_is_said():
    assert messages([{"role": None, "from": "human", "content": None, "value": "Hi"}], "m") == [user("Hi")]
    assert messages([{"role": "user", "content": "Hi", "tool_calls": None, "name": None}], "m") == [user("Hi")]


def test_parts_of_text_are_joined_as_they_are():
    parts = [{"type": "text", "text": "a ", "image": None}, "b", {"type": "text", "text": "c"}]
    assert messages([user(parts)], "m") == [user("a bc")]


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "video"])
def test_a_part_that_is_no_text_makes_the_row_malformed_and_is_named(kind: str):
    assert why([user([{"type": "text", "text": "a"}, {"type": kind, "image": "x.png"}])]) == (
        f"m[0]: the content has a part of type {kind}; only text is read"
    )


@pytest.mark.parametrize(
    "value, said",
    [
        ("Hi", "m is not a list of messages such as {role: user, content: ...}"),
        ([], "m is not a list of messages such as {role: user, content: ...}"),
        (["Hi"], "m is not a list of messages such as {role: user, content: ...}"),
        ([{"content": "Hi"}], "m[0] has no role"),
        ([{"role": "user"}], "m[0] has no content"),
        ([user(None)], "m[0]: the content is null"),
        ([user(7)], "m[0]: content is not text but int"),
        ([user({"text": "Hi"})], "m[0]: content is not text but dict"),
        ([user([{"type": "text", "text": None}])], "m[0]: the content has a part of type text without a text"),
        ([user("half \ud83d")], "m[0]: content holds half a character (a lone surrogate)"),
        ([user("x"), {"role": "assistant", "content": None, "tool_calls": []}], "m[1]: the content is null"),
        ([{**user("x"), "tool_calls": [CALL]}], "m[0] has tool_calls, but its role is user"),
        ([{"role": "assistant", "content": "", "function_call": {"name": "f"}}],
         "m[0] has a function_call, which chat templates do not read; write it as tool_calls"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_malformed_with_its_place(value: Any, said: str):
    assert why(value) == said


def test_tool_calls_and_their_results_stay_whole():
    said = [
        user("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Ask."},
        {"role": "tool", "content": "", "tool_call_id": "c1", "name": "weather"},
    ]
    assert turns(said, "m") == said


def test_arguments_that_are_json_in_a_text_are_read_and_a_bare_call_is_a_function():
    written = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    bare = {"name": "weather", "arguments": {"city": "Paris"}}
    none = {"name": "now", "arguments": ""}
    (found,) = messages([{"role": "assistant", "content": "", "tool_calls": [written, bare, none]}], "m")
    assert found["tool_calls"] == [
        CALL,
        {"type": "function", "function": bare},
        {"type": "function", "function": {"name": "now", "arguments": {}}},
    ]


@pytest.mark.parametrize(
    "call, said",
    [
        ({"function": {"arguments": {}}}, "m[0].tool_calls[0] names no function"),
        ({"function": {"name": "f", "arguments": "{x"}},
         "m[0].tool_calls[0]: the arguments of f are neither a mapping nor the JSON of a mapping"),
        ({"function": {"name": "f", "arguments": [1]}},
         "m[0].tool_calls[0]: the arguments of f are neither a mapping nor the JSON of a mapping"),
        ({"function": {"name": "f", "arguments": {"x": float("nan")}}},
         "m[0].tool_calls cannot be written as JSON"),
    ],
)  # fmt: skip
def test_a_call_that_no_template_can_write_is_malformed(call: dict, said: str):
    assert why([{"role": "assistant", "content": "", "tool_calls": [call]}]) == said


def test_a_prompt_ends_where_the_assistant_is_to_speak():
    answer = {"role": "gpt", "content": "Ho"}
    assert why([user("Hi"), answer], turns).startswith("m ends with the assistant's own words")
    assert why([user(" ")], turns) == "the last message is empty"
    assert answered([user("Hi"), answer], "m") == ([user("Hi")], "Ho")
    assert why([user("Hi")], answered) == "m does not end with a reply"
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert why([user("Hi"), calling], answered) == "m ends with a tool call, which is not text"


def test_tools_are_a_list_or_its_json():
    assert tools([TOOL], "t") == tools('[{"type": "function", "function": {"name": "weather", "parameters": {}}}]', "t")
    assert tools(None, "t") is tools([], "t") is tools("[]", "t") is tools(" ", "t") is None
    for bad in ("a hammer", {"name": "f"}, ["f"]):
        assert why(bad, tools).startswith("m is not a list of tools such as")


def test_what_a_prompt_says_has_its_calls():
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    said = Prompt("p", messages=[user("Rain?"), calling, {"role": "tool", "content": "dry"}]).content
    assert said.splitlines()[::2] == ["Rain?", "dry"] and '"city": "Paris"' in said.splitlines()[1]


def test_a_server_gets_tools_variables_and_arguments_as_the_protocol_has_them():
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    asked = Prompt("p", [user("Rain?"), calling], tools=[TOOL], chat_template_kwargs={"enable_thinking": False})
    sent = _chat(asked)
    assert sent["tools"] == [TOOL] and sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert sent["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
    assert asked.messages == [user("Rain?"), calling]  # the prompt itself stays
    assert _chat(Prompt("p", [user("Hi")])) == {"messages": [user("Hi")]}
