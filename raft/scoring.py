"""`raft score`: any reward on responses that somebody else made, row by row, resumable."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft import given, records, stages
from raft.errors import UserError
from raft.imports import beside
from raft.plugins import component
from raft.recipe import RecipeError, find
from raft.records import Group


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
        for group, found in stages.scored(_reward(reward), _behind(given.groups(responses, prompts), made)):
            out.write(records.dump({"prompt_id": group.prompt.id, "scores": [one.row() for one in found]}))
            out.flush()
            count += 1
            failed += sum(one.reward is None for one in found)
    kept = f" ({made} were there already)" if made else ""
    return f"{scores}: {made + count} groups scored{kept}, {failed} responses without a reward"


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
