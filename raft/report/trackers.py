"""Trackers: the rows of metrics.jsonl, and answers to held-out prompts, sent to TensorBoard, wandb or trackio.

They are told nothing but what the recipe's `report_to:` names; without it nothing leaves the run's folder. What has
been sent stands in tracked.json, so a run that goes on sends nothing twice. A tracker that fails is told of once and
left alone: it is never a reason to stop a run.
"""

import html
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from raft.config.recipe import Loaded
from raft.core import atomic, records
from raft.core.atomic import read_object
from raft.core.run_paths import IterationPaths, RunPaths
from raft.core.terminal import safe, say
from raft.pipeline.observer import Observer
from raft.store import runs

PROJECT = "raft"  # unless the recipe names another
SHOWN = 16  # held-out prompts of a table
Table = list[list[str]]  # rows of prompt, answer and reward
HEAD = ["prompt", "answer", "reward"]


class Tracker(Protocol):
    """A library that is sent figures; `options` are those of the recipe, and `number` is that of a policy."""

    def __init__(self, folder: Path, loaded: Loaded, identity: str, options: dict[str, Any]): ...

    def log(self, number: int, figures: Mapping[str, float]) -> None:
        """Sends figures of a policy."""

    def answers(self, number: int, table: Table) -> None:
        """Sends answers of a policy, if the library shows tables."""

    def finish(self) -> None:
        """Ends it, when all is sent."""


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, folder: Path, loaded: Loaded, identity: str, options: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(RunPaths(folder).tensorboard), **options)

    def log(self, number: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key, value, number)
        self.writer.flush()

    def answers(self, number: int, table: Table) -> None:
        self.writer.add_text("answers", _markdown([HEAD, *table]), number)

    def finish(self) -> None:
        self.writer.close()


class WandB:
    """A run of wandb, known by an id of raft's, so that it is resumed."""

    def __init__(self, folder: Path, loaded: Loaded, identity: str, options: dict[str, Any]):
        import wandb

        self.wandb: Any = wandb
        own = {"project": PROJECT, "name": loaded.recipe.name, "id": identity, "resume": "allow"}
        self.run = wandb.init(**{**own, **options})
        self.run.define_metric("*", step_metric="iteration")  # a row may be completed after the next began
        self.run.config.update(loaded.config, allow_val_change=True)

    def log(self, number: int, figures: Mapping[str, float]) -> None:
        self.run.log({**figures, "iteration": number})

    def answers(self, number: int, table: Table) -> None:
        self.run.log({"answers": self.wandb.Table(columns=HEAD, data=table), "iteration": number})

    def finish(self) -> None:
        self.run.finish()


class Trackio:
    """A run of trackio, which resumes by name alone, so that the name ends in raft's id."""

    def __init__(self, folder: Path, loaded: Loaded, identity: str, options: dict[str, Any]):
        import trackio

        own = {"project": PROJECT, "name": f"{loaded.recipe.name}-{identity[:6]}", "resume": "allow", "embed": False}
        self.run: Any = trackio.init(**{**own, "config": loaded.config, **options})

    def log(self, number: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=number)

    def answers(self, number: int, table: Table) -> None:
        """Figures alone."""

    def finish(self) -> None:
        self.run.finish()


KINDS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


class Tracked(Observer):
    """Sends the figures of a run's policies to the trackers of its recipe."""

    def __init__(self) -> None:
        self.trackers: dict[str, Tracker] = {}

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
        for name, tracker in list(self.trackers.items()):
            self._try(name, tracker.finish)

    def _start(self, name: str, options: dict[str, Any], loaded: Loaded) -> None:
        options = {key: value for key, value in options.items() if key != "name"}
        if name == "tensorboard" and not any(RunPaths(self.run.folder).tensorboard.rglob("events*")):
            for sent in (self.state["sent"], self.state["tables"]):  # as in a run that was pulled: all is to be sent
                sent.pop(name, None)
        self.trackers[name] = KINDS[name](self.run.folder, loaded, self.state["id"], options)

    def _send(self, name: str, it: runs.Folder) -> None:
        sent = self.state["sent"].setdefault(name, {})
        for row in runs.metrics_rows(self.run.folder):
            known = sent.setdefault(str(row["iteration"]), [])
            figures = {
                key: value for key, value in row.items() if key != "iteration" and isinstance(value, int | float)
            }
            if new := {key: value for key, value in figures.items() if key not in known}:
                self.trackers[name].log(row["iteration"], new)
                known += new
        if (table := _answers(it)) and str(it.number) not in self.state["tables"].setdefault(name, []):
            self.trackers[name].answers(it.number, table)
            self.state["tables"][name].append(str(it.number))
        atomic.write_json(RunPaths(self.run.folder).tracked, self.state)

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


def _answers(it: runs.Folder) -> Table:
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


def _markdown(rows: Table) -> str:
    """Rows as a table; what a model wrote cannot leave its cell, nor be read as HTML."""
    lines = [" | ".join(_cell(cell) for cell in row) for row in rows]
    lines.insert(1, " | ".join("---" for _ in rows[0]))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(html.escape(safe(text)).split()).replace("|", "&#124;")
