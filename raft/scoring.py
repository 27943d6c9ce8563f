"""`raft score`: any reward on responses that somebody else made; it goes on where it was stopped, as a run does.

OUT is written whole, out of OUT.partial; then OUT.stamp.json says what made it, and that it is done.
"""

import json
from pathlib import Path
from typing import Any

from raft import given, records, stages
from raft.errors import UserError
from raft.files import put, write_json
from raft.imports import beside
from raft.jobs import MAKES, Given
from raft.keys import describe, digest, plain, speed_options, versions
from raft.output import Output
from raft.plugins import component
from raft.progress import Progress
from raft.recipe import RecipeError, dependencies, differences, find, read_one
from raft.runs import FORMAT, locked, partial_path, stamp_path


def score_file(reward: str, responses: Path, scores: Path, prompts: Path | None) -> str:
    """Scores every group of `responses` into `scores`, in order; returns a sentence on what was done.

    A row is {"prompt_id", "messages" or "text", "meta", "responses": [{"text"}]}, or a row of a run's
    responses.jsonl if its prompts.jsonl is given. UserError if `scores` was made of something else.
    """
    for file in filter(None, (responses, prompts)):
        if not file.is_file():
            raise UserError(f"no file at {file.absolute()}")
    path = find(reward)
    with beside(path):
        section, asked = _reward(path), Given(path=str(responses), prompts=str(prompts) if prompts else None)
        key = plain({"format": FORMAT, "reward": describe(section), "responses": describe(asked)})
        scores.parent.mkdir(parents=True, exist_ok=True)
        lock = scores.with_name(f".{scores.name}.lock")
        with locked(lock, f"{scores}", "choose another OUT.jsonl"):
            try:
                stamp = _finished(scores, key) or _score(section, responses, prompts, scores, key)
            finally:
                lock.unlink()
    return f"{scores}: {stamp['rows']} groups scored, {stamp['measured']['failed']} responses without a reward"


def _reward(path: Path) -> Any:
    """The reward of a recipe, or of a YAML file that is just a reward section."""
    config, lines = read_one(path)
    options = config if "kind" in config else config.get("reward", config)
    faults: list[Any] = []
    known: dict[str, Any] = {name: config[name] for name in ("name", "variables") if name in config}
    for need in dependencies({**known, "reward": options}, path, faults):
        if not stamp_path(need.folder / MAKES[need.recipe.job][1]).exists():
            raise UserError(f"{path}: the reward needs what {need.path} makes; make it first: raft run {need.path}")
    found = component("reward", options, "reward", faults)
    if faults:
        raise RecipeError(path, faults, lines)
    return found


def _finished(scores: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The stamp of an earlier call that made the same, None if there is yet something to do."""
    if not scores.exists():
        return None
    if not stamp_path(scores).exists():
        if partial_path(scores).exists():
            return None  # a kill came before the stamp
        raise UserError(f"{scores} has no stamp, so raft score did not make it; delete it, or choose another OUT.jsonl")
    stamp = json.loads(stamp_path(scores).read_text(encoding="utf-8"))
    if changed := list(differences(stamp["key"], key)):
        raise UserError(
            f"{scores} was made by another reward, or of other responses; what differs:\n"
            + "".join(f"  {one}\n" for one in changed[:12])
            + "nothing was overwritten. Delete it, or choose another OUT.jsonl"
        )
    partial_path(scores).unlink(missing_ok=True)  # a kill can come between the stamp and this
    return stamp


def _score(reward: Any, responses: Path, prompts: Path | None, scores: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Makes the scores and their stamp. Every row is looked at before the first is scored."""
    ids = [group.prompt.id for group in given.groups(responses, prompts)]
    stamp_path(scores).unlink(missing_ok=True)  # of scores that were deleted
    temporary = scores.with_name(f".{scores.name}.tmp")
    output = Output(temporary, partial_path(scores), digest(key), 0, 0, Progress(scores.name, "prompts"))
    try:
        stages.score_groups(reward, output, given.groups(responses, prompts), ids)
    finally:
        output.progress.close()
    failed = sum(one.get("reward") is None for row in records.read(temporary) for one in row["scores"])
    put(temporary, scores)
    stamp = {
        "hash": output.hash,
        "key": key,
        "rows": output.rows,
        "measured": {"failed": failed},
        "speed": speed_options(reward),
        "versions": versions(),
    }
    write_json(stamp_path(scores), stamp)
    output.partial.unlink(missing_ok=True)
    return stamp
