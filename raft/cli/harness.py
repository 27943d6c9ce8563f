"""`raft eval`: tasks of lm-evaluation-harness on policy 0 and another policy of a run, before and after.

What the harness found about a policy and a task is a file in the run: the same question is not computed twice, and an
interrupted command goes on with the tasks that are missing.
"""

import difflib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from raft.core import device as devices
from raft.core import progress, signals
from raft.core.atomic import read_object, write_json
from raft.core.errors import UserError, install_extra
from raft.core.remote_folder import told
from raft.core.run_paths import RunPaths
from raft.core.terminal import complain, draws, safe
from raft.core.versions import versions
from raft.metrics.reward_metrics import NORMAL_95, standard_error
from raft.pipeline import policies
from raft.pipeline.policies import Which
from raft.store import runs, stamps
from raft.store.keys import Artifact, digest

PACKAGE = "lm_eval"
DIGITS = 4  # of a figure in the table, as the harness prints it


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How tasks are asked; the names are those of `lm_eval.simple_evaluate`. `batch_size` changes only the speed."""

    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    include_path: Path | None = None
    batch_size: int | str = 8


@dataclass(frozen=True)
class Change:
    """A metric of a task before and after, None where it is not finite, and the standard error of the difference.

    `paired`: the error is that of the differences of the same `documents`. Else the two results count as independent,
    and the error is the root of the sum of their squared errors; None where the harness gives none.
    """

    task: str
    metric: str
    filter: str
    documents: int
    num_fewshot: int | None
    higher_is_better: bool | None
    before: float | None
    before_stderr: float | None
    after: float | None
    after_stderr: float | None
    stderr: float | None
    paired: bool

    @property
    def difference(self) -> float | None:
        """After less before."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the difference."""
        if self.difference is None or self.stderr is None:
            return None
        return self.difference - NORMAL_95 * self.stderr, self.difference + NORMAL_95 * self.stderr

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "difference": self.difference, "interval": self.interval}


def compare(folder: Path, tasks: Sequence[str], which: Which, asked: Asked) -> tuple[list[str], list[Change]]:
    """What the two policies are called, and how they differ; with policy 0 itself it stands on both sides."""
    if find_spec(PACKAGE) is None:
        raise UserError(f"raft eval needs lm-evaluation-harness; {install_extra('eval')}")
    present = policies.before_and_after(folder, runs.about(folder)["job"], which)
    found = [list(_answers(folder, title, artifact, tasks, asked)) for title, artifact in present.items()]
    return list(present), list(_changes(found[0], found[-1]))


def table(titles: Sequence[str], changes: Sequence[Change]) -> str:
    """The changes as aligned columns, with what the intervals assume."""
    heads = ["task", "metric", "shots", "documents", titles[0], titles[-1], "difference"]
    rows = [
        [
            one.task,
            one.metric if one.filter == "none" else f"{one.metric}, {one.filter}",
            "" if one.num_fewshot is None else str(one.num_fewshot),
            str(one.documents),
            _figure(one.before),
            _figure(one.after),
            _difference(one),
        ]
        for one in changes
    ]
    wide = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)) for row in [heads, *rows]]
    lines = [safe(line).rstrip() for line in lines]
    if any(one.paired for one in changes):
        lines.append("±: half of the 95 % interval, by the differences of the same documents")
    if any(one.interval and not one.paired for one in changes):
        lines.append("~: the same as if both results were independent; usually too wide")
    if worse := {one.metric for one in changes if one.higher_is_better is False}:
        lines.append(safe(f"lower is better: {', '.join(sorted(worse))}"))
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.{DIGITS}f}"


def _difference(one: Change) -> str:
    if one.difference is None:
        return "-"
    half = "" if one.stderr is None else f" {'±' if one.paired else '~'} {NORMAL_95 * one.stderr:.{DIGITS}f}"
    return f"{one.difference:+.{DIGITS}f}{half}"


def _answers(
    folder: Path, title: str, artifact: Artifact, tasks: Sequence[str], asked: Asked
) -> Iterator[dict[str, Any]]:
    """What the harness finds about each task, from the run's own files or computed now."""
    model, manager = None, None
    for task in tasks:
        question = _question(artifact, task, asked)
        file = _file(folder, title, question)
        known = read_object(file, f"delete {file}, and give the command again") if file.exists() else {}
        if known.get("question") != question:
            signals.check()
            complain(f"{title}: {task}")
            if model is None:
                manager = _manager(tasks, asked.include_path)
                model = _model(artifact, title, asked)
            known = {
                "policy": title,
                "question": question,
                "versions": versions(),
                **_evaluated(model, manager, task, asked),
            }
            file.parent.mkdir(exist_ok=True)
            write_json(file, known)
        yield {**known, "file": file}
    del model
    devices.free_cache()


def _question(artifact: Artifact, task: str, asked: Asked) -> dict[str, Any]:
    """What decides the answer: the weights, the task, and how it is asked."""
    options = {name: value for name, value in asdict(asked).items() if name not in ("batch_size", "include_path")}
    include = asked.include_path
    if include is not None and not include.is_dir():
        raise UserError(f"--include-path {include} is not a folder; name the one with the tasks' YAML files")
    return {
        "task": task,
        **options,
        "policy": digest(artifact.stamp["content"]),
        "include": None if include is None else digest(stamps.content_of(include)),
        "dtype": devices.dtype_of("auto"),
        PACKAGE: metadata.version(PACKAGE),
    }


def _file(folder: Path, title: str, question: dict[str, Any]) -> Path:
    """Where the answer to a question is."""
    name = re.sub(r"[^\w.-]", "-", f"{title}.{question['task']}")
    return RunPaths(folder).lm_eval / f"{name}.{digest(question)[:12]}.json"


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """The harness's index of tasks; its own tasks are read only where they are needed, as that takes a while."""
    with progress.screen("reading the tasks of lm-evaluation-harness"):
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=include, include_defaults=False)
        if not set(tasks) <= set(manager.all_tasks):
            manager = TaskManager(include_path=include)
    for task in tasks:
        if task not in manager.all_tasks:
            near = ", ".join(difflib.get_close_matches(task, manager.all_tasks, n=3))
            raise UserError(
                f"--tasks: the harness has no task {task!r}; {near and f'did you mean {near}? '}"
                "lm-eval ls tasks lists its own, and --include-path DIR adds yours"
            )
    return manager


def _model(artifact: Artifact, title: str, asked: Asked) -> Any:
    """The policy as the harness's `hf` model, loaded as everywhere in raft: whole, and without code of the folder."""
    with progress.screen(f"loading {title}"):
        import logging

        import torch
        from lm_eval.models.huggingface import HFLM

        from raft.models.chat_templates import check_rows, load_tokenizer
        from raft.models.loading import load_model

        logging.getLogger(PACKAGE).setLevel(logging.ERROR)  # it warns of a model that is passed as an object
        path = artifact.path
        tokenizer = load_tokenizer(str(path))
        if asked.apply_chat_template and not tokenizer.chat_template:
            raise UserError(f"{path} has no chat template; leave --apply-chat-template out")
        model = load_model(path, dtype=getattr(torch, devices.dtype_of("auto")))
        check_rows(tokenizer, model, str(path))
        with devices.fits(str(path), "use a smaller policy"):
            model.to(devices.current())
        return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=asked.batch_size)


def _evaluated(model: Any, manager: Any, task: str, asked: Asked) -> dict[str, Any]:
    """One task, alone, so that the others of a command change nothing in it."""
    import lm_eval

    try:
        with _bars_alone(), devices.fits(f"task {task}", "lower --batch-size"):
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=[task],
                task_manager=manager,
                limit=asked.limit,
                num_fewshot=asked.num_fewshot,
                apply_chat_template=asked.apply_chat_template,
                batch_size=asked.batch_size,
            )
    except UserError:
        raise
    except Exception as fault:  # of the task's files, of its data, of its code
        raise UserError(
            f"lm-evaluation-harness cannot evaluate {task} ({told(fault)}); see that its data set can be reached, and "
            "that its file is right: lm-eval validate --tasks TASK"
        ) from fault
    assert found is not None, "one process has the results"
    documents = {name: [one["doc_hash"] for one in _in_order(rows)] for name, rows in found["samples"].items()}
    return {"documents": digest(documents), "results": list(_results(found))}


@contextmanager
def _bars_alone() -> Iterator[None]:
    """Of all that the harness prints, and the programs that it asks for versions, only bars on a terminal are shown."""
    shown = sys.stderr is not None and draws(sys.stderr)
    with open(os.devnull, "w") as nowhere, os.fdopen(os.dup(2), "w") as screen:
        bars = screen if shown else nowhere
        os.dup2(nowhere.fileno(), 2)
        try:
            with redirect_stdout(bars), redirect_stderr(bars):
                yield
        finally:
            os.dup2(screen.fileno(), 2)


def _results(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each metric of a task, and of the tasks in it, with the value of each document where the metric is their mean."""
    for name, figures in found["results"].items():
        for key, value in figures.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            rows = [row for row in _in_order(found["samples"].get(name, [])) if row["filter"] == chosen]
            yield {
                "task": name,
                "metric": metric,
                "filter": chosen,
                "documents": int(figures["sample_len"]),
                "num_fewshot": found["n-shot"].get(name),
                "higher_is_better": found["higher_is_better"].get(name, {}).get(metric),
                "value": _finite(value),
                "stderr": _finite(figures.get(f"{metric}_stderr,{chosen}")),
                "values": _values([row.get(metric) for row in rows], value),
            }


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["doc_id"])


def _values(values: Sequence[Any], mean: float) -> list[float] | None:
    """What the documents contribute, if the metric is their mean; None for all others, such as a perplexity."""
    known = [number for value in values if (number := _finite(value)) is not None]
    whole = bool(known) and len(known) == len(values)
    return known if whole and math.isclose(float(np.mean(known)), mean, abs_tol=1e-12) else None


def _finite(value: Any) -> float | None:
    """A number as JSON has it; None for "N/A" and for what is not finite."""
    return float(value) if isinstance(value, int | float | np.number) and math.isfinite(value) else None


def _changes(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> Iterator[Change]:
    for one, other in zip(before, after, strict=True):
        if one["documents"] != other["documents"]:
            raise UserError(
                f"the documents of {one['question']['task']} have changed between {one['file']} and {other['file']}; "
                "delete both, and give the command again"
            )
        for first, last in zip(one["results"], other["results"], strict=True):
            yield _change(first, last)


def _change(first: dict[str, Any], last: dict[str, Any]) -> Change:
    error, paired = math.nan, first["values"] is not None and last["values"] is not None
    if paired:
        error = standard_error(np.array(last["values"]) - np.array(first["values"]))
    elif None not in (first["stderr"], last["stderr"]):
        error = math.hypot(first["stderr"], last["stderr"])
    return Change(
        **{name: last[name] for name in ("task", "metric", "filter", "documents", "num_fewshot", "higher_is_better")},
        before=first["value"],
        before_stderr=first["stderr"],
        after=last["value"],
        after_stderr=last["stderr"],
        stderr=_finite(error),
        paired=paired,
    )


def as_json(folder: Path, titles: Sequence[str], changes: Sequence[Change]) -> str:
    """What --json prints."""
    return json.dumps(
        {
            "run": str(folder),
            "before": titles[0],
            "after": titles[-1],
            "results": [change.row() for change in changes],
        }
    )
