"""What a report says of a run as a whole, from its files alone: figures by iteration, timings, drops, findings.

Everything here is small, whatever the size of the run; the groups themselves are in raft/report/page/groups.py.
"""

import math
import re
from pathlib import Path
from typing import Any

from raft import __version__
from raft.config.recipe import read_resolved
from raft.core import records
from raft.core.errors import UserError
from raft.core.registry import build
from raft.core.run_paths import RunPaths
from raft.metrics import diagnostics, reward_accuracy, reward_metrics
from raft.metrics.diagnostics import Alerts, Column
from raft.pipeline import evaluation, policies
from raft.store import timeline
from raft.store.measuring import held_out_means
from raft.store.runs import Run, about, is_running, metrics_rows, outcome
from raft.store.stamps import stamp_path

MOST_REASONS = 200  # kinds of reasons told apart; a file with more has a row for the rest
UNNAMED = "Other figures"  # of a newer version, or of one's own
STAMP = ("artifact", "iteration", "stage", "began", "seconds", "rows", "dropped", "pruned")


def facts(folder: Path, packed: list[dict[str, Any]]) -> dict[str, Any]:
    """All that the page tells at once, as JSON-able data; `packed` is what is known of the batches of groups."""
    known = about(folder)
    made = timeline.artifacts(folder)
    measured = metrics_rows(folder)
    rows = _finite(measured)
    paths = RunPaths(folder)
    recipe = paths.resolved
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
        "best": _best(folder, measured),
        "gains": _gains(folder) if rows else {},
        "figures": figures(rows),
        "measured": {} if rows else _measured(made),
        "batches": packed,
        "stages": [{name: one.get(name) for name in STAMP} for one in made],
        "timeline": list(timeline.shares(made, timeline.processes(known))),
        "lanes": timeline.lanes(made),
        "half_made": _half_made(folder),
        "dropped": dropped(folder),
        "findings": findings(folder, measured),
        "table": _text(paths.accuracy.with_suffix(".md")),
        "recipe": text,
    }


def findings(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was found when the rewards were examined, and what the figures say now (raft/metrics/diagnostics.py); of a
    job: reward-model also whether its accuracy is better than chance."""
    paths = RunPaths(folder)
    examined = list(records.read(paths.doctor)) if paths.doctor.exists() else []
    recipe = read_resolved(folder) if paths.resolved.exists() else {}
    faults: list[Any] = []
    options = build(Alerts, recipe.get("alerts") or {}, "alerts", faults)
    if faults:
        raise UserError(f"{paths.resolved} is damaged: {faults[0].key}: {faults[0].message}")
    rows = reward_metrics.on_common_prompts(rows, held_out_means(folder))
    measured = outcome(folder, about(folder)["job"])
    alerts = options.judge(rows or [{"iteration": 0, **measured}])
    of_figures = [
        {"reward": "figures", "check": one.name, "level": one.level, "message": one.message} for one in alerts
    ]
    found = reward_accuracy.against_chance(measured)
    of_pairs = (
        [{"reward": "reward model", "check": "accuracy", "level": found[0], "message": found[1]}] if found else []
    )
    return [*examined, *of_figures, *of_pairs]


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures that some row has, by title, with how each is shown (raft/metrics/diagnostics.py).

    A figure that no diagnostic names keeps its key as its label; a standard error and a number of prompts go with
    their figure.
    """
    present = {key for row in rows for key in row} - {"iteration"}
    known = diagnostics.columns()
    beside = {key for key in present for end in ("_se", "_n") if key.endswith(end) and key.removesuffix(end) in present}
    unknown = sorted(present - beside - {key for group in known.values() for key in group})
    lists = {key for row in rows for key in unknown if isinstance(row.get(key), list)}
    known[UNNAMED] = {key: Column(UNNAMED, key, "phrases" if key in lists else "number", "") for key in unknown}
    shown = [
        (title, [_shown(key, column) for key, column in group.items() if key in present])
        for title, group in known.items()
    ]
    return [{"title": title, "figures": group} for title, group in shown if group]


def _shown(key: str, column: Column) -> dict[str, Any]:
    names = ("label", "form", "meaning", "main")
    return {"key": key, **{name: getattr(column, name) for name in names}}


def _best(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The policy that is called best, and by which figure, once there are several to choose from."""
    if len(rows) < 2:
        return None
    return {"policy": policies.number_of(folder, "best"), "by": evaluation.compared_by(folder, rows)}


def _gains(folder: Path) -> dict[str, Any]:
    """How the last policy compares with the first on the same prompts, as the run says at its end."""
    found = evaluation.gains(Run(folder, 0))
    return _finite(
        {key: {"difference": one.difference, "half_width": one.half_width} for key, (_, one) in found.items()}
    )


def dropped(folder: Path) -> list[dict[str, Any]]:
    """How many rows each stage dropped, by reason; reasons that differ only in their numbers are counted as one."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for file in _files(folder, RunPaths(folder).dropped.name):
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
    return sorted(filter(Path.is_file, RunPaths(folder).files(pattern)))  # reading a pipe would wait for ever


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
