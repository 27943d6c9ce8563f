"""Trackers: the rows of metrics.jsonl, and answers to held-out prompts, sent to TensorBoard, wandb or trackio.

Through Accelerate's trackers, which are told nothing but what the recipe's `report_to:` names; without it nothing
leaves the run's folder. What has been sent stands in tracked.json, so a run that goes on sends nothing twice. A tracker
that fails is told of once and left alone: it is never a reason to stop a run.
"""

import html
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raft.config.recipe import Loaded
from raft.core import atomic, records
from raft.core.atomic import read_object
from raft.core.run_paths import IterationPaths, RunPaths
from raft.core.terminal import safe, say
from raft.pipeline.observer import Observer
from raft.store import runs

CLASSES = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker", "trackio": "TrackioTracker"}
SHOWN = 16  # held-out prompts of a table


class Tracked(Observer):
    """Sends the figures of a run's policies to the trackers of its recipe."""

    def __init__(self) -> None:
        self.trackers: dict[str, Any] = {}

    def on_run_begin(self, run: runs.Run, loaded: Loaded) -> None:
        """Starts the trackers."""
        self.run = run
        self.state = _state(run.folder)
        for one in getattr(loaded.recipe, "trackers", []):
            name, options = (one, {}) if isinstance(one, str) else (one["name"], dict(one))
            self._try(name, lambda name=name, options=options: self._start(name, options, loaded))

    def on_iteration_end(self, it: runs.Folder, alerts: Sequence[Any]) -> None:
        """Sends what is new since the last time."""
        for name in list(self.trackers):
            self._try(name, lambda name=name: self._send(name, it))

    def on_run_end(self, run: runs.Run, loaded: Loaded) -> None:
        """Ends the trackers."""
        for name, tracker in self.trackers.items():
            self._try(name, tracker.finish)

    def _start(self, name: str, options: dict[str, Any], loaded: Loaded) -> None:
        from accelerate import tracking

        options = {key: value for key, value in options.items() if key != "name"}
        cls = getattr(tracking, CLASSES[name])
        if name == "tensorboard":
            if not any((self.run.folder / name).rglob("events*")):  # as in a run that was pulled: all is to be sent
                for sent in (self.state["sent"], self.state["tables"]):
                    sent.pop(name, None)
            tracker = cls("tensorboard", self.run.folder, **options)
        else:
            again = {"id": self.state["id"], "resume": "allow"} if name == "wandb" else {}
            tracker = cls(options.pop("project", "raft"), **{"name": loaded.recipe.name, **again, **options})
        tracker.start()
        if name == "wandb":
            tracker.tracker.define_metric("*", step_metric="iteration")  # a row may be completed after the next began
        if name != "tensorboard":
            tracker.store_init_configuration(loaded.config)
        self.trackers[name] = tracker

    def _send(self, name: str, it: runs.Folder) -> None:
        sent = self.state["sent"].setdefault(name, {})
        for row in runs.metrics_rows(self.run.folder):
            known = sent.setdefault(str(row["iteration"]), [])
            new = {key: value for key, value in row.items() if key not in known and isinstance(value, int | float)}
            if set(new) - {"iteration"}:
                values = {**new, "iteration": row["iteration"]}
                self.trackers[name].log(values, step=None if name == "wandb" else row["iteration"])
                known += new
        if (table := _answers(it)) and str(it.number) not in self.state["tables"].setdefault(name, []):
            self._table(name, it.number, table)
            self.state["tables"][name].append(str(it.number))
        atomic.write_json(RunPaths(self.run.folder).tracked, self.state)

    def _table(self, name: str, number: int, table: list[list[str]]) -> None:
        columns = ["prompt", "answer", "reward"]
        if name == "wandb":
            self.trackers[name].log_table("answers", columns=columns, data=table)
        elif name == "tensorboard":
            self.trackers[name].log({"answers": _markdown([columns, *table])}, step=number)

    def _try(self, name: str, act: Any) -> None:
        try:
            act()
        except Exception as fault:
            self.trackers.pop(name, None)
            say(f"warning: {name} is told nothing from here on ({type(fault).__name__}: {safe(str(fault))[:200]})")


def _state(folder: Path) -> dict[str, Any]:
    file = RunPaths(folder).tracked
    if file.exists():
        return read_object(file, f"delete {file}; then all figures are sent again")
    return {"id": secrets.token_hex(8), "sent": {}, "tables": {}}


def _answers(it: runs.Folder) -> list[list[str]]:
    """The first answer of a policy to the first held-out prompts, with its reward."""
    answers, prompts = IterationPaths(it.folder).evaluation, RunPaths(it.run.folder).evaluation
    scores = next(filter(Path.exists, (answers.scores, answers.gold)), None)
    if scores is None:
        return []
    rows = records.in_step(prompts, answers.responses, scores)
    shown = []
    for _, (prompt, answered, scored) in zip(range(SHOWN), rows, strict=False):
        reward = scored["scores"][0].get("reward")
        told = "" if reward is None else f"{reward:.3f}"
        shown.append([records.Prompt.of(prompt).content, answered["responses"][0]["text"], told])
    return shown


def _markdown(rows: list[list[str]]) -> str:
    """Rows as a table; what a model wrote cannot leave its cell, nor be read as HTML."""
    lines = [" | ".join(_cell(cell) for cell in row) for row in rows]
    lines.insert(1, " | ".join("---" for _ in rows[0]))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(html.escape(safe(text)).split()).replace("|", "&#124;")
