"""Responses that somebody else made, one group in a row of a JSON Lines file.

{"prompt_id": "7", "messages": [...] or "text": "...", "meta": {...}, "responses": [{"text": "..."}, ...]}
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft import records
from raft.errors import UserError
from raft.records import Group, Prompt, Response


def groups(responses: Path, prompts: Path | None) -> Iterator[Group]:
    """The groups of a file of responses."""
    if prompts is not None:
        yield from records.groups(prompts, responses)
        return
    seen: set[str] = set()
    for number, row in enumerate(records.read(responses), start=1):
        if (
            "prompt_id" not in row
            or not isinstance(row.get("responses"), list)
            or ("text" in row) == ("messages" in row)
        ):
            raise UserError(
                f'{responses}:{number}: expected {{"prompt_id", "messages" or "text", "responses": [{{"text"}}]}}, '
                f"found the keys "
                f"{', '.join(row)}; for a run's responses.jsonl name its prompts too: --prompts prompts.jsonl"
            )
        if str(row["prompt_id"]) in seen:
            raise UserError(f"{responses}:{number}: a second row has prompt_id {row['prompt_id']}; give each its own")
        seen.add(str(row["prompt_id"]))
        prompt = Prompt(str(row["prompt_id"]), row.get("messages"), row.get("text"), row.get("meta") or {})
        yield Group(prompt, [_response(one, responses, number) for one in row["responses"]])


def _response(row: Any, file: Path, number: int) -> Response:
    if not (isinstance(row, dict) and isinstance(row.get("text"), str)):
        raise UserError(f'{file}:{number}: each response needs a "text"')
    return Response(row["text"], row.get("token_ids") or [], row.get("logprobs"), row.get("finish_reason") or "stop")
