"""`raft score`: any reward on responses that somebody else made, row by row, resumable."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft import records, stages
from raft.errors import UserError
from raft.imports import beside
from raft.plugins import component
from raft.recipe import RecipeError, find
from raft.records import Group, Prompt, Response


def score_file(reward: str, responses: Path, scores: Path, prompts: Path | None) -> str:
    """Scores every group of `responses` into `scores`, in order; returns a sentence on what was done.

    A row is {"prompt_id", "messages" or "text", "meta", "responses": [{"text"}]}, or a row of a run's
    responses.jsonl if its prompts.jsonl is given. Blocks that an earlier call finished are kept.
    """
    if not responses.is_file():
        raise UserError(f"no file at {responses.absolute()}")
    made = _finished(scores)
    count = failed = 0
    with open(scores, "ab") as out:
        for group, found in stages.scored(_reward(reward), _behind(groups(responses, prompts), made)):
            out.write(records.dump({"prompt_id": group.prompt.id, "scores": [one.row() for one in found]}))
            out.flush()
            count += 1
            failed += sum(one.reward is None for one in found)
    kept = f" ({made} were there already)" if made else ""
    return f"{scores}: {made + count} groups scored{kept}, {failed} responses without a reward"


def groups(responses: Path, prompts: Path | None) -> Iterator[Group]:
    """The groups of a file of responses."""
    if prompts is not None:
        yield from records.groups(prompts, responses)
        return
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
        prompt = Prompt(str(row["prompt_id"]), row.get("messages"), row.get("text"), row.get("meta") or {})
        yield Group(prompt, [_response(one, responses, number) for one in row["responses"]])


def _response(row: Any, file: Path, number: int) -> Response:
    if not (isinstance(row, dict) and isinstance(row.get("text"), str)):
        raise UserError(f'{file}:{number}: each response needs a "text"')
    return Response(row["text"], row.get("token_ids") or [], row.get("logprobs"), row.get("finish_reason") or "stop")


def _reward(name: str) -> Any:
    """The reward of a recipe, or of a YAML file that is just a reward section."""
    from raft import recipe

    path = find(name)
    options, lines = recipe.read_one(path)
    options = options.get("reward", options) if "kind" not in options else options
    faults: list[Any] = []
    with beside(path):
        found = component("reward", options, "reward", faults)
    if faults:
        raise RecipeError(path, faults, lines)
    return found


def _finished(scores: Path) -> int:
    """How many whole blocks of scores an earlier call left; what is behind them is cut away."""
    if not scores.exists():
        return 0
    ends = [0]
    with open(scores, "rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            ends.append(ends[-1] + len(line))
    whole = (len(ends) - 1) // stages.BLOCK * stages.BLOCK
    with open(scores, "ab") as out:
        out.truncate(ends[whole])
    return whole


def _behind(items: Iterator[Group], count: int) -> Iterator[Group]:
    for index, item in enumerate(items):
        if index >= count:
            yield item
