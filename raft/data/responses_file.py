"""Responses that somebody else made, one group in a row of a JSON Lines file.

{"prompt_id": "7", "messages": [...] or "text": "...", "meta": {...}, "responses": [{"text": "..."}, ...]}

Every fault of a row is a UserError with its file and line.
"""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from raft.core import records
from raft.core.errors import UserError
from raft.core.records import Group, Prompt, Response
from raft.data.sources import jsonl
from raft.models.messages import Malformed, require_json, tools, turns, words
from raft.models.reasoning import without_thought

SHAPE = (
    '{"prompt_id", "messages" or "text", "responses": [{"text"}]}; '
    "a run's responses.jsonl needs its prompts.jsonl too (--prompts, or responses.prompts)"
)
IN_TWO = '{"id", "messages" or "text"} in the one file, {"prompt_id", "responses": [{"text"}]} in the other'


def groups(
    responses: Path, prompts: Path | None, read: Callable[[Response], Response] = without_thought
) -> Iterator[Group]:
    """The groups of a file of responses; where their prompts are in another file, the two go in step.

    `read` makes of a response what is to be scored; the thought before an answer is not.
    """
    seen: set[str] = set()
    for place, asked, answered in _in_step(responses, prompts):
        try:
            group = Group(
                _prompt(asked, "prompt_id" if prompts is None else "id"), list(map(read, _responses(answered)))
            )
            records.dump({**group.row(), **group.prompt.row()})
        except Malformed as fault:
            raise UserError(f"{place}: {fault}; a row is {SHAPE if prompts is None else IN_TWO}") from None
        except ValueError as fault:  # NaN, or half a character
            raise UserError(f"{place}: holds what no JSON can say ({fault})") from None
        except RecursionError:
            raise UserError(f"{place}: lists and mappings are nested too deep; flatten them") from None
        if group.prompt.id in seen:
            raise UserError(f"{place}: a second row has prompt_id {group.prompt.id}; give each its own")
        seen.add(group.prompt.id)
        yield group
    if not seen:
        raise UserError(f"{responses}: no rows; give at least one prompt with its responses")


def _in_step(responses: Path, prompts: Path | None) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The place of each row, the row with the prompt, and the row with the responses."""
    if prompts is None:
        yield from ((place, row, row) for place, row in jsonl(responses))
        return
    rule = "each line of the one belongs to the same line of the other"
    for asked, answered in zip_longest(jsonl(prompts), jsonl(responses)):
        if answered is None:
            raise UserError(f"{asked[0]}: {responses} has no responses to this prompt; {rule}")
        if asked is None:
            raise UserError(f"{answered[0]}: {prompts} has no prompt for these responses; {rule}")
        (there, prompt), (place, row) = asked, answered
        if prompt.get("id") != row.get("prompt_id"):
            raise UserError(
                f"{place}: prompt_id is {row.get('prompt_id')!r}, but at {there} id is {prompt.get('id')!r}; {rule}"
            )
        yield f"{place} and {there}", prompt, row


def _prompt(row: dict[str, Any], column: str) -> Prompt:
    name, meta = row.get(column), row.get("meta")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise Malformed(f"{column} is neither text nor a whole number but {name!r}")
    if not isinstance(meta, dict | None):
        raise Malformed(f"meta is not a mapping but {meta!r}")
    require_json(meta, "meta")
    there = [one for one in ("messages", "text") if row.get(one) is not None]
    if len(there) != 1:
        raise Malformed(f"has {' and '.join(there) or 'neither messages nor text'}; its keys are {', '.join(row)}")
    if there == ["text"]:
        return Prompt(str(name), text=words(row, "text"), meta=meta or {})
    asked = turns(row["messages"], "messages")
    return Prompt(str(name), asked, meta=meta or {}, tools=tools(row.get("tools"), "tools"))


def _responses(row: dict[str, Any]) -> list[Response]:
    found = row.get("responses")
    if not isinstance(found, list) or not found:
        raise Malformed('responses is not a list of at least one response such as {"text": ...}')
    return [_response(one, f"responses[{at}]") for at, one in enumerate(found)]


def _response(one: Any, where: str) -> Response:
    if not (isinstance(one, dict) and isinstance(one.get("text"), str)):
        raise Malformed(f'{where} is not a response with a "text" that is text')
    for name, kind, called in (
        ("token_ids", list, "a list"), ("logprobs", list, "a list"), ("finish_reason", str, "text"),
        ("reasoning", str, "text"),
    ):  # fmt: skip
        if not isinstance(one.get(name), kind | None):
            raise Malformed(f"{where}.{name} is not {called} but {one[name]!r}")
    ids, reason, thought = one.get("token_ids") or [], one.get("finish_reason") or "stop", one.get("reasoning")
    return Response(one["text"], ids, one.get("logprobs"), reason, thought)
