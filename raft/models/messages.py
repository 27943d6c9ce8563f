"""A column of chat messages, in the form that chat templates read, whatever form the data set has.

    [{"role": "user", "content": "Hi"}]                              most data sets
    [{"from": "human", "value": "Hi"}]                               ShareGPT
    [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]  content as parts

Everything a template can read is kept (tool calls and their results, names, the thoughts of earlier turns). What would
be lost or guessed makes the row malformed: an unknown role, an image, a call in a form that no template knows.
"""

import json
from collections.abc import Sequence
from typing import Any

from raft.core import records

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
ALIASES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # of earlier turns, as templates and servers name them
KEPT = ("name", "tool_call_id", *THOUGHTS)
DEEPEST = 100  # lists and mappings inside each other
MARK = "qzxw"  # of `marked`: in no template, and not a word that a template would look for
TOOLS = "the tools"
SHAPE = "a list of messages such as {role: user, content: ...}"


class Malformed(ValueError):
    """A row that cannot become a record, and why; the others can."""


def messages(value: Any, column: str) -> list[Message]:
    """The messages of a column: each has a role of `ROLES` and a content, which is text, or None beside tool calls.

    The arguments of tool calls become mappings, as chat templates expect them. Malformed says what is wrong and where.
    """
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise Malformed(f"{column} is not {SHAPE}")
    return [_message(turn, f"{column}[{at}]") for at, turn in enumerate(value)]


def turns(value: Any, column: str) -> list[Message]:
    """As `messages`, of a conversation that ends where the assistant is to speak."""
    conversation = messages(value, column)
    require_open(conversation, column)
    return conversation


def require_open(conversation: list[Message], column: str) -> None:
    """Malformed unless messages end where the assistant is to speak."""
    last = conversation[-1]
    if last["role"] == "assistant":
        raise Malformed(f"{column} ends with the assistant's own words, so there is nothing left to say")
    if last["role"] != "tool" and not last["content"].strip():
        raise Malformed("the last message is empty")


def until_user(conversation: list[Message], column: str) -> list[Message]:
    """Messages up to the last of the user."""
    places = [at for at, message in enumerate(conversation) if message["role"] == "user"]
    if not places:
        raise Malformed(f"{column} has no words of the user")
    return conversation[: places[-1] + 1]


def answered(value: Any, column: str) -> tuple[list[Message], str]:
    """A conversation that ends with the assistant's answer: the messages before it, which may be none, and its text."""
    *before, last = messages(value, column)
    if last["role"] != "assistant":
        raise Malformed(f"{column} does not end with a reply")
    if "tool_calls" in last:
        raise Malformed(f"{column} ends with a tool call, which is not text")
    return before, last["content"]


def tools(value: Any, column: str) -> list[dict[str, Any]] | None:
    """The functions that a conversation may call, given as a list or as its JSON; None if there are none."""
    if isinstance(value, str):
        value = _parsed(value) if value.strip() else None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Malformed(f"{column} is not a list of tools such as {{type: function, function: {{name: ...}}}}")
    require_json(value, column)
    return value


def marked(
    conversation: Sequence[Message], tools: list[dict[str, Any]] | None
) -> tuple[list[Message], list[dict[str, Any]] | None, dict[str, str]]:
    """Messages and tools of the same structure with marks for words, and the meaning of each mark."""
    marks: dict[str, str] = {}

    def mark(what: str) -> str:
        marks[name := f"mark{len(marks)}of{MARK}"] = what
        return name

    def call(request: dict[str, Any]) -> dict[str, Any]:
        inner, arguments = request["function"], {}
        if inner["arguments"]:
            arguments[mark("the arguments of a tool call")] = mark("the arguments of a tool call")
        return {**request, "function": {**inner, "name": mark("the function of a tool call"), "arguments": arguments}}

    def message(turn: Message) -> Message:
        content = turn["content"] and mark(f"the words of the {turn['role']}")
        calls = {"tool_calls": [call(inner) for inner in turn["tool_calls"]]} if "tool_calls" in turn else {}
        return {**turn, "content": content, **calls}

    def tool(definition: dict[str, Any]) -> dict[str, Any]:
        inner = definition.get("function", definition)
        named = {**inner, "name": mark(TOOLS)} if isinstance(inner, dict) and "name" in inner else inner
        return {**definition, "function": named} if "function" in definition else named

    return [message(item) for item in conversation], tools and [tool(item) for item in tools], marks


def words(row: dict[str, Any], column: str) -> str:
    """The text in a column. Malformed without one."""
    value = row.get(column)
    if not isinstance(value, str):
        raise Malformed(f"{column} is not text but {_kind(value)}" if column in row else f"no column {column}")
    require_json(value, column)
    return value


def require_json(value: Any, what: str) -> None:
    """Malformed if a value cannot be written as JSON in UTF-8, or is nested too deep to travel between processes."""
    try:
        records.dump({"": value})
    except UnicodeError:
        raise Malformed(f"{what} holds half a character (a lone surrogate)") from None
    except (TypeError, ValueError, RecursionError):
        raise Malformed(f"{what} cannot be written as JSON") from None
    if _depth(value) > DEEPEST:
        raise Malformed(f"{what} is nested more than {DEEPEST} deep")


def _depth(value: Any) -> int:
    """How deep lists and mappings are nested, counted up to DEEPEST + 1."""
    level, depth = [value], 0
    while depth <= DEEPEST and (level := [item for item in level if isinstance(item, list | tuple | dict)]):
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _message(turn: dict[str, Any], where: str) -> Message:
    role = _role(turn, where)
    message: Message = {"role": role, "content": _content(turn, where)}
    message |= {name: _words(turn[name], name, where) for name in KEPT if turn.get(name) is not None}
    if turn.get("function_call"):
        raise Malformed(f"{where} has a function_call, which chat templates do not read; write it as tool_calls")
    if calls := turn.get("tool_calls"):
        if role != "assistant":
            raise Malformed(f"{where} has tool_calls, but its role is {role}")
        message["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    elif message["content"] is None:
        raise Malformed(f"{where}: the content is null")
    return message


def _role(turn: dict[str, Any], where: str) -> str:
    name = turn["role"] if turn.get("role") is not None else turn.get("from")
    if not isinstance(name, str):
        raise Malformed(f"{where} has no role")
    role = ALIASES.get(name.casefold(), name.casefold())
    if role not in ROLES:
        known = ", ".join([*ROLES, *ALIASES])
        raise Malformed(f"{where}: unknown role {name!r}; allowed: {known}")
    return role


def _content(turn: dict[str, Any], where: str) -> str | None:
    """Its text; parts are joined as they are, with nothing between them."""
    name = "value" if turn.get("content") is None and "value" in turn else "content"
    content = turn.get(name)
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if content is None:
        if name not in turn and not turn.get("tool_calls"):
            raise Malformed(f"{where} has no content")
        return None
    return _words(content, name, where)


def _words(value: Any, name: str, where: str) -> str:
    try:
        return words({name: value}, name)
    except Malformed as fault:
        raise Malformed(f"{where}: {fault}") from None


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else _kind(part)
    if kind != "text":
        raise Malformed(f"{where}: the content has a part of type {kind}; only text is read")
    if not isinstance(part.get("text"), str):
        raise Malformed(f"{where}: the content has a part of type text without a text")
    return part["text"]


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Malformed(f"{where} is not a list of calls such as {{type: function, function: {{name: ...}}}}")
    require_json(calls, where)
    return [_call(call, f"{where}[{at}]") for at, call in enumerate(calls)]


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    """A call as it is, but for arguments that are JSON in a text, as OpenAI's protocol has them: they are read."""
    inner = call.get("function")
    if inner is None:
        call = {"type": "function", "function": {name: call.get(name) for name in ("name", "arguments")}}
        inner = call["function"]
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise Malformed(f"{where} names no function")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict | None):
        raise Malformed(f"{where}: the arguments of {inner['name']} are neither a mapping nor the JSON of a mapping")
    return {**call, "function": {**inner, "arguments": arguments or {}}}


def _parsed(written: str) -> Any:
    """What a text of JSON says; if it is not JSON, the text itself, which every caller refuses."""
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
