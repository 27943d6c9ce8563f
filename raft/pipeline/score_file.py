"""`raft score`: any reward on responses that somebody else made; it goes on where it was stopped, as a run does.

OUT is written whole, out of OUT.partial; then OUT.stamp.json says what made it, and that it is done.
"""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from raft.config.jobs import JOB_OUTPUTS, Given
from raft.config.recipe import RecipeError, dependencies, find, read_one
from raft.core import records, timing
from raft.core.atomic import commit, disk_faults, write_json
from raft.core.errors import UserError
from raft.core.progress import Progress
from raft.core.protocols import REQUESTS
from raft.core.records import Group
from raft.core.registry import component
from raft.core.user_code import importable_from
from raft.core.versions import versions
from raft.data import responses_file
from raft.models import jinja
from raft.pipeline import stages
from raft.store.artifact_writer import ArtifactWriter
from raft.store.changes import told
from raft.store.keys import describe, digest, plain, speed_options
from raft.store.runs import FORMAT, locked
from raft.store.stamps import content_of, partial_path, read_stamp, require, stamp_path


def score_file(reward: str, responses: Path, scores: Path, prompts: Path | None, **thoughts: Any) -> str:
    """Scores every group of `responses` into `scores`, in order; returns a sentence on what was done.

    A row is {"prompt_id", "messages" or "text", "meta", "responses": [{"text"}]}, or a row of a run's
    responses.jsonl if its prompts.jsonl is given; `thoughts` are the options of `jobs.Given`
    on them. UserError if `scores` was made of something else, or no response has a reward.
    """
    for file in filter(None, (responses, prompts)):
        if not file.is_file():
            raise UserError(f"no file at {file.absolute()}")
    path = find(reward)
    with importable_from(path), jinja.dated(_day(scores)):
        section = _reward(path)
        asked = Given(path=str(responses), prompts=str(prompts) if prompts else None, **thoughts)
        for name, fault in asked.faults():
            raise UserError(f"--{name.replace('_', '-')} {fault}")
        made_from = {"reward": describe(section), "responses": describe(asked)}
        key = plain({"format": FORMAT, "stage": "score_file", **made_from})
        scores.parent.mkdir(parents=True, exist_ok=True)
        lock = scores.with_name(f".{scores.name}.lock")
        with locked(lock, f"{scores}", "choose another OUT.jsonl", leave=False):
            stamp = _finished(scores, key) or _score(section, asked, scores, key)
    _require_any(scores)
    count, failed = stamp["rows"], stamp["measured"]["failed"]
    sent = sum(stamp.get(REQUESTS, {}).values())
    how = f" by {sent:,} request{'s' * (sent != 1)}" if sent else ""
    without = f"{failed} response{'s' * (failed != 1)} without a reward"
    return f"{scores}: {count} prompt{'s' * (count != 1)} scored{how}, {without}"


def _require_any(scores: Path) -> None:
    """UserError, with the first reason, where no response at all has a reward."""
    rows = ((row["prompt_id"], one) for row in records.read(scores) for one in row["scores"])
    count, first = 0, None
    for prompt_id, one in rows:
        if one.get("reward") is not None:
            return
        count, first = count + 1, first or f"prompt {prompt_id}: {one.get('error')}"
    if first is not None:
        raise UserError(
            f"{scores}: none of {count} responses has a reward; the first, {first}. All reasons stand in that file; "
            "put right what they say, delete the file, and run the same command again"
        )


def _day(scores: Path) -> str:
    """The day that templates write: that on which an earlier call began what is there, else today."""
    if scores.exists() and (stamp := read_stamp(scores)) is not None:
        return stamp.get("date") or jinja.today()
    if partial_path(scores).exists():
        with open(partial_path(scores), "rb") as lines, suppress(ValueError, AttributeError):
            return str(json.loads(lines.readline()).get("day") or jinja.today())
    return jinja.today()


def _reward(path: Path) -> Any:
    """The reward of a recipe, or of a YAML file that is just a reward section."""
    config, lines = read_one(path)
    options = config if "kind" in config else config.get("reward", config)
    faults: list[Any] = []
    known: dict[str, Any] = {name: config[name] for name in ("name", "variables") if name in config}
    for need in dependencies({**known, "reward": options}, path, faults):
        made = need.folder / JOB_OUTPUTS[need.recipe.job][1]
        if (stamp := read_stamp(made)) is None:
            raise UserError(f"{path}: the reward needs what {need.path} makes; make it first: raft run {need.path}")
        require(made, stamp)
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
    stamp = read_stamp(scores)
    assert stamp is not None
    if changed := list(told(scores, stamp["key"], key)):
        raise UserError(
            f"{scores} was made by another reward, or of other responses; what differs:\n"
            + "".join(f"  {one}\n" for one in changed[:12])
            + "nothing was overwritten. Delete it, or choose another OUT.jsonl"
        )
    require(scores, stamp)
    partial_path(scores).unlink(missing_ok=True)  # a kill can come between the stamp and this
    return stamp


def _score(reward: Any, asked: Given, scores: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Makes the scores and their stamp. All rows are validated before the first is scored."""

    def groups() -> Iterator[Group]:
        return responses_file.groups(Path(asked.path), Path(asked.prompts) if asked.prompts else None, asked.read)

    ids = [group.prompt.id for group in groups()]
    stamp_path(scores).unlink(missing_ok=True)  # of scores that were deleted
    temporary = scores.with_name(f".{scores.name}.tmp")
    progress, began = Progress(scores.name, "prompts", stage="scoring responses"), time.time()
    output = ArtifactWriter(temporary, partial_path(scores), digest(key), 0, 0, progress, key=key)
    timing.taken()
    with progress, disk_faults():
        stages.score_groups(reward, output, groups(), ids)
    failed = sum(one.get("reward") is None for row in records.read(temporary) for one in row["scores"])
    commit(temporary, scores)
    stamp = {
        "hash": output.hash,
        "key": key,
        "rows": output.rows,
        "dropped": 0,
        "date": jinja.today(),
        "measured": {"failed": failed},
        "began": round(began, 3),
        "seconds": round(time.time() - began, 3),
        "parts": timing.taken(),
        "speed": speed_options(reward),
        "versions": versions(),
        "content": content_of(scores),
    }
    if output.requests:
        stamp[REQUESTS] = output.requests
    write_json(stamp_path(scores), stamp)
    output.partial.unlink(missing_ok=True)
    return stamp
