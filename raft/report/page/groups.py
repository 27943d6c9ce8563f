"""The groups of a run for its report: read from the files of a run, packed into small blocks, and listed in an index.

Everything streams: one group is in memory at a time, and one chunk of packed ones.
"""

import base64
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from raft.core import compressed, records
from raft.core.errors import UserError
from raft.core.run_paths import GroupPaths, RunPaths
from raft.store.measuring import incomparable

CHUNK = 256 * 1024  # bytes of rows in one block, before they are packed: what a reader unpacks to show one prompt
EXCERPT = 160  # characters of a prompt in the index
FLAGS = {"truncated": 1, "tied": 2, "failed": 4, "dropped": 8, "empty": 16}  # bits of an index row

OUT_OF_STEP = "the files here do not belong together; if the run is at work, try again in a moment"

Reasons = dict[str, dict[int | None, str]]  # of a prompt: why a response (or, at None, the whole group) went no further


@dataclass(frozen=True)
class Batch:
    """What one policy answered to one list of prompts; `key` names its blocks in the page.

    `scored` and `gold` say whether the rewards compare with those of the run's last policy (`measuring.incomparable`).
    """

    key: str
    kind: Literal["training", "held-out", "labelled"]
    iteration: int | None
    policy: int | None
    prompts: Path
    paths: GroupPaths
    shows_prompts: bool = True
    scored: bool = True
    gold: bool = True

    def row(self) -> dict[str, Any]:
        """What the page has to know of it."""
        return {"key": self.key, "kind": self.kind, "iteration": self.iteration, "policy": self.policy}


def batches(folder: Path) -> list[Batch]:
    """Every list of responses that a run holds so far."""
    run, others = RunPaths(folder), incomparable(folder)
    found: list[Batch] = []
    for it in run.iterations():
        number = it.number
        if compressed.exists(it.responses):
            scored = number not in others["scores"]
            found.append(Batch(f"t{number}", "training", number, number - 1, it.prompts, it, scored=scored))
        if compressed.exists(it.evaluation.responses):
            first = not any(batch.kind == "held-out" for batch in found)
            scored, gold = (number not in others[name] for name in ("eval", "gold"))
            place = it.evaluation
            found.append(Batch(f"e{number}", "held-out", number, number, run.evaluation, place, first, scored, gold))
    if compressed.exists(run.responses):
        found.append(Batch("g", "labelled", None, None, run.prompts, run))
    return found


class Block:
    """Bytes as gzip in base64 between the tags of a script that no browser runs; written piece by piece."""

    def __init__(self, out: BinaryIO, name: str):
        self.out, self.rest = out, b""
        self.deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
        out.write(f'<script type="application/octet-stream;base64" id="{name}">'.encode())

    def write(self, content: bytes) -> None:
        """Adds bytes."""
        self._encode(self.deflate.compress(content))

    def close(self) -> None:
        """Writes what is left, and the end."""
        self._encode(self.deflate.flush())
        self.out.write(base64.b64encode(self.rest) + b"</script>\n")

    def _encode(self, packed: bytes) -> None:
        whole = self.rest + packed
        end = len(whole) - len(whole) % 3  # only at the very end may base64 be padded
        self.out.write(base64.b64encode(whole[:end]))
        self.rest = whole[end:]


def pack(batch: Batch, chunks: BinaryIO, index: BinaryIO) -> dict[str, Any]:
    """Writes a batch's groups in chunks, and its index; what the page has to know of both.

    `starts` are the numbers of the first group of each chunk.
    """
    size = prompts = responses = failed = 0
    starts: list[int] = []
    held: list[bytes] = []
    listed = Block(index, f"index-{batch.key}")

    def spill() -> None:
        block = Block(chunks, f"chunk-{batch.key}-{len(starts) - 1}")
        block.write(b"\n".join(held))
        block.close()

    for group in groups(batch):
        if not held:
            starts.append(prompts)
        listed.write((b"\n" if prompts else b"") + encoded(index_row(group)))
        prompts += 1
        responses += len(group["responses"])
        failed += sum("error" in one for one in group["responses"])
        held.append(encoded(group))
        size += len(held[-1])
        if size >= CHUNK:
            spill()
            held, size = [], 0
    if held:
        spill()
    listed.close()
    return {**batch.row(), "starts": starts, "prompts": prompts, "responses": responses, "failed": failed}


def encoded(content: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which UTF-8 cannot say, as JSON's own escape."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", errors="backslashreplace")


def index_row(group: dict[str, Any]) -> list[Any]:
    """What the list of prompts shows, sorts and filters by.

    id, excerpt, mean, best, worst reward, mean gold reward, tokens of the longest response, flags.
    """
    rewards = [one["reward"] for one in group["responses"] if one.get("reward") is not None]
    gold = [one["gold"] for one in group["responses"] if one.get("gold") is not None]
    flags = {
        "truncated": any(one["finish"] == "length" for one in group["responses"]),
        "tied": len(rewards) >= 2 and min(rewards) == max(rewards),
        "failed": any("error" in one for one in group["responses"]),
        "dropped": "dropped" in group or any("dropped" in one for one in group["responses"]),
        "empty": any(not one["text"].strip() for one in group["responses"]),
    }
    return [
        group["id"],
        _excerpt(group.get("prompt")),
        *((_short(sum(rewards) / len(rewards)), max(rewards), min(rewards)) if rewards else (None, None, None)),
        _short(sum(gold) / len(gold)) if gold else None,
        max((one["tokens"] for one in group["responses"]), default=0),
        sum(FLAGS[name] for name, holds in flags.items() if holds),
    ]


def groups(batch: Batch) -> Iterator[dict[str, Any]]:
    """The groups of a batch with all that is known of each response. UserError if its files are out of step."""
    paths = batch.paths
    wanted = {paths.responses: True, paths.scores: batch.scored, paths.gold: batch.gold, paths.reference: True}
    rows = [records.read(file) if shown and compressed.exists(file) else None for file, shown in wanted.items()]
    picks, reasons = _picks(paths.selected), _reasons(paths.dropped)
    for prompt in records.read(batch.prompts):
        others = [None if one is None else next(one, {}) for one in rows]
        if any(one is not None and one.get("prompt_id") != prompt["id"] for one in others):
            raise UserError(f"{paths.folder}: {OUT_OF_STEP}")
        yield _group(batch, prompt, others, picks, reasons)


def _group(batch: Batch, prompt: dict[str, Any], others: Any, picks: "_Picks", reasons: Reasons) -> dict[str, Any]:
    answered, scored, gold, reference = others
    why = reasons.get(prompt["id"], {})
    group: dict[str, Any] = {"id": prompt["id"]}
    if batch.shows_prompts:
        asked = prompt.get("messages")
        group["prompt"] = prompt["text"] if asked is None else [{**one, "content": records.said(one)} for one in asked]
        group |= {"meta": prompt["meta"]} if prompt.get("meta") else {}
    if None in why:
        group["dropped"] = why[None]
    group["responses"] = [
        _response(response, index, scored, gold, reference) | ({"dropped": why[index]} if index in why else {})
        for index, response in enumerate(answered["responses"])
    ]
    if chosen := picks.of(prompt["id"], answered["responses"]):
        group["picks"] = chosen
    return group


def _response(response: dict[str, Any], index: int, scored: Any, gold: Any, reference: Any) -> dict[str, Any]:
    shown = {
        "text": response["text"],
        "tokens": len(response["token_ids"]),
        "finish": response["finish_reason"],
        "candidate": response.get("candidate"),
    }
    if scored is not None:
        score = scored["scores"][index]
        parts = {name: _short(value) for name, value in score.get("parts", {}).items()}
        shown |= {"reward": _short(score.get("reward")), "parts": parts or None, "rank": score.get("rank")}
        if score.get("reward") is None:
            shown["error"] = score.get("error") or "no reward, and no reason was given"
    if gold is not None:
        shown["gold"] = _short(gold["scores"][index].get("reward"))
    if reference is not None:
        shown["drift"] = _short(reference["policy"][index] - reference["first"][index])
    return {name: value for name, value in shown.items() if value is not None}


class _Picks:
    """The rows of selected.jsonl beside the groups; both stand in the order of the prompts."""

    def __init__(self, rows: Iterator[dict[str, Any]]):
        self.rows = rows
        self.next = next(rows, None)

    def of(self, prompt_id: str, responses: list[dict[str, Any]]) -> list[list[int]]:
        """For each pick of this group the index of the response, and of a pair that of the rejected one too."""
        found = []
        while self.next is not None and self.next["prompt_id"] == prompt_id:
            row = self.next
            if "chosen" in row:
                found.append([_place(row["chosen"], responses), _place(row["rejected"], responses)])
            else:
                found.append([row["index"]])
            self.next = next(self.rows, None)
        return found


def _picks(selected: Path) -> _Picks:
    return _Picks(records.read(selected) if selected.exists() else iter(()))


def _place(response: dict[str, Any], among: list[dict[str, Any]]) -> int:
    for index, one in enumerate(among):
        if one["text"] == response["text"] and one["token_ids"] == response["token_ids"]:
            return index
    raise UserError(f"selected.jsonl: {OUT_OF_STEP}")


def _reasons(dropped: Path) -> Reasons:
    """Why the prompts of an iteration, or responses to them, were not learned from; equal reasons are one string."""
    found: Reasons = {}
    told: dict[str, str] = {}
    for row in records.read(dropped) if dropped.exists() else ():
        if row["stage"] in ("select", "train"):
            reason = f"{row['stage']}: {row['reason']}"
            found.setdefault(row["prompt_id"], {})[row["index"]] = told.setdefault(reason, reason)
    return found


def _excerpt(prompt: Any) -> str:
    """The beginning of a prompt; of messages, that of the last one of the user."""
    if prompt is None:
        return ""
    if not isinstance(prompt, str):
        asked = [one["content"] for one in prompt if one["role"] == "user"]
        prompt = asked[-1] if asked else prompt[-1]["content"]
    return " ".join(prompt[: 4 * EXCERPT].split())[:EXCERPT]


def _short(value: float | None) -> float | None:
    """A number to six digits: more are not shown, and would not pack well."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
