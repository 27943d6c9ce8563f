"""What a report says of a run as a whole, from its files alone: figures by iteration, timings, drops, findings.

Everything here is small, whatever the size of the run; the groups themselves are in raft/report/page/groups.py.
"""

import math
import re
from pathlib import Path
from typing import Any

from raft import __version__
from raft.core import records
from raft.core.errors import UserError
from raft.core.registry import build
from raft.metrics import alerts, reward_metrics
from raft.store import timeline
from raft.store.measuring import held_out_means
from raft.store.runs import about, is_running, metrics_rows, read_resolved
from raft.store.stamps import stamp_path

# Of each figure of metrics.jsonl: a readable name, how it is written, and what it means.
COLUMNS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Held-out prompts": {
        "reward/eval": ("reward", "reward", "mean over held-out prompts of the mean reward of their responses"),
        "gold/eval": ("gold", "reward", "the same of the gold reward, which selection never sees"),
        "reward/eval_failed": ("no reward", "share", "share of the responses to held-out prompts without a reward"),
        "gold/eval_failed": ("no gold", "share", "share of the responses to held-out prompts without a gold reward"),
        "eval/tokens": ("tokens", "number", "mean length of the responses to held-out prompts, in tokens"),
    },
    "Training prompts": {
        "reward/mean": ("mean", "reward", "mean over prompts of the mean of their K rewards"),
        "reward/best_of_k": ("best of K", "reward", "mean over prompts of the best of their K rewards"),
        "reward/std_within": ("spread", "reward", "mean over prompts of the standard deviation of their K rewards"),
        "reward/tied": ("tied", "share", "share of prompts whose rewards are all equal"),
        "reward/failed": ("no reward", "share", "share of responses that could not be scored"),
    },
    "Responses": {
        "response/tokens": ("tokens", "number", "mean length in tokens"),
        "response/truncated": ("truncated", "share", "share of responses cut by the limit"),
        "response/empty": ("empty", "share", "share of responses of nothing but white space"),
    },
    "What the policy has become": {
        "kl/first": ("KL", "number", "distance from the first policy on held-out answers, in nats per answer"),
        "entropy/token": ("entropy", "number", "mean negative log-probability of a generated token, in nats"),
        "diversity/distinct_2": ("distinct-2", "share", "share of different pairs of words in held-out answers"),
        "diversity/msttr_100": ("MSTTR-100", "share", "different words among 100, averaged over the answers"),
        "length/reward_correlation": ("length", "number", "Kendall's tau of reward and length within prompts"),
        "agreement/within": ("agreement", "number", "Kendall's tau of reward and gold reward within prompts"),
    },
    "Selection": {
        "selection/examples": ("kept", "count", "rows that the next policy learned from"),
        "selection/dropped": ("dropped", "count", "responses and prompts that were left out"),
    },
    "Training of this policy": {
        "train/loss_first": ("first loss", "number", "loss of the first step, in nats per token"),
        "train/loss": ("loss", "number", "mean loss over all steps, in nats per token"),
        "train/steps": ("steps", "count", "steps of the optimiser"),
        "train/examples": ("examples", "count", "rows that were learned from"),
        "train/tokens": ("tokens", "count", "tokens that were learned"),
        "train/padding": ("padding", "share", "share of the tokens read that were padding"),
    },
}
MOST_REASONS = 200  # kinds of reasons told apart; a file with more has a row for the rest
DEPTH = 3  # iterations/003/evaluation/
STAMP = ("artifact", "iteration", "stage", "began", "seconds", "rows", "dropped", "pruned")


def facts(folder: Path, packed: list[dict[str, Any]]) -> dict[str, Any]:
    """All that the page tells at once, as JSON-able data; `packed` is what is known of the batches of groups."""
    known = about(folder)
    made = timeline.artifacts(folder)
    measured = metrics_rows(folder)
    rows = _finite(measured)
    recipe = folder / "resolved.yaml"
    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""  # a pipe would never end
    return {
        "name": folder.resolve().name,
        "raft": __version__,
        "job": known.get("job"),
        "seed": known.get("seed"),
        "versions": known.get("versions", {}),
        "machine": known.get("machine", {}),
        "running": is_running(folder),
        "iterations": {"made": max((row["iteration"] for row in rows), default=0), "wanted": _wanted(text)},
        "as_of": max((one["began"] + one["seconds"] for one in made), default=None),
        "rows": rows,
        "columns": columns(rows),
        "others": others(rows),
        "measured": {} if rows else _measured(made),
        "batches": packed,
        "stages": [{name: one.get(name) for name in STAMP} for one in made],
        "timeline": list(timeline.shares(made, timeline.processes(known))),
        "half_made": _half_made(folder),
        "dropped": dropped(folder),
        "findings": findings(folder, measured),
        "table": _text(folder / "accuracy.md"),
        "recipe": text,
    }


def findings(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was found when the rewards were examined, and what the figures say now (raft/metrics/alerts.py)."""
    file = folder / "doctor.jsonl"
    examined = list(records.read(file)) if file.exists() else []
    recipe = read_resolved(folder) if (folder / "resolved.yaml").exists() else {}
    faults: list[Any] = []
    options = build(alerts.Advice, recipe.get("alerts") or {}, "alerts", faults)
    if faults:
        raise UserError(f"{folder / 'resolved.yaml'} is damaged: {faults[0].key}: {faults[0].message}")
    rows = reward_metrics.on_common_prompts(rows, held_out_means(folder))
    said = alerts.advise(rows, options) if rows else []
    told = [{"reward": "figures", "check": one.name, "level": one.level, "message": one.message} for one in said]
    return [*examined, *told]


def columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns of the table of iterations by group: those that some row has."""
    present = {key for row in rows for key in row}
    return [
        {
            "title": title,
            "columns": [
                {"key": key, "label": label, "form": form, "tip": f"{key}: {tip}"}
                for key, (label, form, tip) in group.items()
                if key in present
            ],
        }
        for title, group in COLUMNS.items()
        if present & group.keys()
    ]


def others(rows: list[dict[str, Any]]) -> list[str]:
    """The figures that have no column, in order; a standard error and a number of prompts go with their figure."""
    present = {key for row in rows for key in row} - {"iteration"}
    beside = {key for key in present for end in ("_se", "_n") if key.endswith(end) and key.removesuffix(end) in present}
    return sorted(present - beside - {key for group in COLUMNS.values() for key in group})


def dropped(folder: Path) -> list[dict[str, Any]]:
    """How many rows each stage dropped, by reason; reasons that differ only in their numbers are counted as one."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for file in _files(folder, "dropped.jsonl"):
        where = str(file.parent.relative_to(folder))
        for row in records.read(file):
            kind = (where, row["stage"], re.sub(r"\d+", "0", row["reason"]))
            if kind not in found and len(found) >= MOST_REASONS:
                kind = (where, row["stage"], "")
            told = found.setdefault(
                kind,
                {
                    "where": "" if where == "." else where,
                    "stage": row["stage"],
                    "reason": row["reason"] if kind[2] else "other reasons",
                    "prompts": 0,
                    "responses": 0,
                },
            )
            told["prompts" if row["index"] is None else "responses"] += 1
    return list(found.values())


def _measured(made: list[dict[str, Any]]) -> dict[str, Any]:
    """What a job without iterations measured: the last stage that did, but for counts of prompts."""
    told = (one["measured"] for one in reversed(made) if one["measured"] and one["stage"] != "collect")
    return _finite(next(told, {}))


def _half_made(folder: Path) -> list[dict[str, Any]]:
    """The artifacts that a stage is making, or was making when it was stopped."""
    found = []
    for file in _files(folder, "*.partial"):
        if not stamp_path(file.with_suffix("")).exists():
            with open(file, "rb") as partial:
                done = max(sum(1 for _ in partial) - 1, 0)
            found.append({"artifact": str(file.relative_to(folder)).removesuffix(".partial"), "groups": done})
    return found


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files of a run and of its parts, also of iterations that are links to those of another run."""
    found = (file for depth in range(DEPTH + 1) for file in folder.glob("*/" * depth + pattern))
    return sorted(filter(Path.is_file, found))  # reading a pipe would wait for ever


def _finite(content: Any) -> Any:
    """The same data with numbers that JSON has no word for, such as the loss of a training that diverged, as text."""
    if isinstance(content, dict):
        return {name: _finite(one) for name, one in content.items()}
    if isinstance(content, list):
        return [_finite(one) for one in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content


def _wanted(recipe: str) -> int | None:
    found = re.search(r"^iterations: (\d+)$", recipe, re.MULTILINE)
    return int(found[1]) if found else None


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None
