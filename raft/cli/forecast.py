"""The time and space that a run will need: two small iterations of it on this machine, and a line through both.

`raft check --measure` makes the forecast, with the real models, in a temporary folder; it is kept in the run's folder
as forecast.json, and the run adds what it really took.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raft.cli.check_rewards import rewards_of
from raft.config import preflight, recipe
from raft.config.jobs import Align
from raft.config.recipe import Loaded
from raft.core import atomic, device, logs, progress, timing
from raft.core.atomic import read_object
from raft.core.errors import UserError
from raft.core.protocols import judges
from raft.core.run_paths import CANDIDATES, ROUNDS, IterationPaths, RunPaths
from raft.core.terminal import say
from raft.generators.vllm import VLLM
from raft.launch.local import Local
from raft.pipeline import loop
from raft.pipeline.observer import Observer
from raft.store import runs
from raft.store.stamps import read_stamp, stamp_path, stamped

SMALL, LARGE = 32, 128  # prompts of the two iterations, or all that the recipe has, and a quarter of them
LONG = 900  # seconds of a run from which on it pays that workers start 20 s later
STAGES = {  # artifact of an iteration -> what a person calls it
    "responses.jsonl": "generate", "scores.jsonl": "score", "reference.jsonl": "reference", "selected.jsonl": "select",
    "policy": "train", "evaluation/responses.jsonl": "evaluate", "evaluation/scores.jsonl": "evaluate",
    "evaluation/gold.jsonl": "evaluate", "evaluation/references.jsonl": "evaluate",
    "evaluation/likelihoods.jsonl": "evaluate", "metrics.json": "measure",
}  # fmt: skip

Seconds = dict[str, float]  # by artifact


class Quiet(Observer):
    """Sends output of libraries to the run's log, and prints nothing."""

    def on_run_begin(self, run: runs.Run, loaded: Loaded) -> None:
        logs.begin(run.folder)


def forecast(loaded: Loaded, overrides: Sequence[str]) -> dict[str, Any]:
    """What the run of a recipe of job: align will need. Its policy and rewards have to exist."""
    left_open = loaded.recipe.prompts.per_iteration is None
    loaded = replace(loaded, recipe=preflight.sized(loaded.recipe))
    whole = loaded.recipe
    small, large = _sizes(whole)
    with tempfile.TemporaryDirectory(prefix="raft-forecast-") as folder:
        began = time.monotonic()
        first = _rehearsed(loaded, overrides, small, Path(folder))
        start_up = time.monotonic() - began - sum(_seconds(first).values()) - _asked_at_start(first.parent / "000")
        try:
            second = _rehearsed(loaded, overrides, large, Path(folder))
        except UserError:
            begun = stamp_path(RunPaths(Path(folder) / f"forecast-{large}").doctor).exists()
            if begun or not left_open:
                raise
            second = _rehearsed(loaded, overrides, None, Path(folder))  # fewer prompts are left than could be foreseen
        drawn = int(_rows(second, "responses.jsonl"))
        at_small, at_large = _seconds(first), _seconds(second)
        sizes = {name: _rows(second, name) for name in at_large}
        result: dict[str, Any] = {
            "seconds": _by_stage(
                {
                    name: line(_rows(first, name), at_small[name], sizes[name], at_large[name], _wanted(whole, name))
                    for name in at_large
                }
            ),
            "start_up": round(start_up, 1),
            "memory_gb": round(_peak_gb(), 3),
            "disk_gb": round(_disk(whole, second, drawn) / 1e9, 6),
            "truncated": _truncated(second),
            "measured_with": [small, drawn],
        }
    evaluation = result["seconds"].get("evaluate", 0.0)
    result["iteration"] = round(sum(result["seconds"].values()) - evaluation * (1 - evaluated(whole)), 1)
    result["run"] = round(result["start_up"] + evaluation + result["iteration"] * whole.iterations, 1)
    return result


def evaluated(whole: Align) -> float:
    """The share of iterations whose policy is evaluated."""
    numbers = range(1, whole.iterations + 1)
    return sum(number % whole.evaluation.every == 0 or number == whole.iterations for number in numbers) / len(numbers)


def write(loaded: Loaded, result: dict[str, Any]) -> Path:
    """Keeps a forecast where its run will be."""
    loaded.folder.mkdir(parents=True, exist_ok=True)
    atomic.write_json(RunPaths(loaded.folder).forecast, result)
    return RunPaths(loaded.folder).forecast


def lines(result: dict[str, Any]) -> Iterator[str]:
    """A forecast in words."""
    stages = ", ".join(f"{name} {timing.words(seconds)}" for name, seconds in result["seconds"].items())
    small, large = result["measured_with"]
    yield f"forecast, from iterations of {small} and {large} prompts:"
    yield f"  an iteration: {timing.words(result['iteration'])} ({stages})"
    yield f"  the run: {timing.words(result['run'])}, of which {timing.words(result['start_up'])} to start"
    yield f"  memory: at least {_size(result['memory_gb'])}; disk: about {_size(result['disk_gb'])}"
    yield f"  responses cut by the limit: {result['truncated']:.0%} (generator.max_tokens)"


def _size(gigabytes: float) -> str:
    return f"{gigabytes:.3g} GB" if gigabytes >= 0.1 else f"{1000 * gigabytes:.3g} MB"


def advice(recipe: Align, result: dict[str, Any], cores: int) -> str | None:
    """A faster way to make a long run on a CPU: an engine for each core wastes less than one for all of them."""
    alone = type(recipe.launch) is Local and isinstance(recipe.generator, VLLM) and device.current() == "cpu"
    if not alone or cores < 2 or result["run"] < LONG or find_spec("ray") is None:
        return None
    return f"faster on {cores} cores: launch.kind=ray, with an engine on each (docs/several-gpus.md)"


def compare(folder: Path) -> str | None:
    """How good the forecast of a finished run was, as a sentence, also kept in its file; None if it had none."""
    file = RunPaths(folder).forecast
    if not file.exists():
        return None
    content = read_object(file, f"delete {file}: it is a forecast, and the run is finished")
    if not isinstance(expected := content.get("iteration"), int | float):
        raise UserError(f"{file} is damaged: iteration is {expected!r}, and not seconds; delete it")
    trained = [it for it in RunPaths(folder).iterations() if it.number and stamp_path(it.policy).exists()]
    actual = [sum(_seconds(it.folder).values()) for it in trained]
    content["actual"] = {"iteration": round(sum(actual) / max(1, len(actual)), 1)}
    atomic.write_json(file, content)
    return (
        f"forecast: an iteration was to take {timing.words(expected)}, "
        f"and took {timing.words(content['actual']['iteration'])} on average"
    )


def line(x: float, y: float, other_x: float, other_y: float, at: float) -> float:
    """The value at `at` of the line through two points; if their x is equal, the second value.

    Nothing takes less than no time, nor less for more: a slope below 0 is noise, and taken for 0.
    """
    if other_x <= x:
        return other_y
    slope = max(0.0, (other_y - y) / (other_x - x))
    return max(0.0, other_y + slope * (at - other_x))


def _smaller(loaded: Loaded, overrides: Sequence[str], prompts: int | None) -> list[str]:
    """The overrides of a recipe for one iteration of so many prompts; None: of all that there are."""
    return [
        *overrides, f"name=forecast-{prompts}", f"prompts.per_iteration={'null' if prompts is None else prompts}",
        f"evaluation.count={min(prompts or LARGE, loaded.recipe.evaluation.count)}", "iterations=1",
        "keep_policies=last", "alerts.on_warning=warn", "report_to=[]", "store.mirror=null",
    ]  # fmt: skip


def _rehearsed(loaded: Loaded, overrides: Sequence[str], prompts: int | None, folder: Path) -> Path:
    """The folder of an iteration with so many prompts; None: with all that there are."""
    small = replace(recipe.load(loaded.path, _smaller(loaded, overrides, prompts)), outputs=folder, needs=[])
    with progress.screen(f"forecast: an iteration of {prompts or 'all'} prompts"):
        loop.run(small, Quiet())
    return RunPaths(small.folder).iteration(1).folder


def tell_requests(loaded: Loaded, overrides: Sequence[str]) -> None:
    """Says how many requests `raft check --measure` may send to judges. UserError where a judge may not get so many."""
    known = dict(judges(dict(rewards_of(loaded.recipe))))
    counts = {key: judge.requests(2) if judge.remote else 0 for key, judge in known.items()}
    if known and loaded.recipe.job == "align":
        sized = replace(loaded, recipe=preflight.sized(loaded.recipe))
        for prompts in _sizes(sized.recipe):
            for one in preflight.requests(recipe.load(loaded.path, _smaller(sized, overrides, prompts)).recipe, None):
                counts[one.key] += one.total
    for key, judge in known.items():
        if judge.max_requests is not None and counts[key] > judge.max_requests:
            raise UserError(
                f"{key}.max_requests: {judge.max_requests:,} requests are allowed, and --measure alone sends up to "
                f"{counts[key]:,}; raise it, or leave --measure out"
            )
        say(f"  --measure sends up to {counts[key]:,} requests to {judge.model} ({key})")


def _sizes(whole: Align) -> tuple[int, int]:
    """The prompts of the two iterations that are rehearsed."""
    large = min(LARGE, whole.prompts.per_iteration)
    return max(1, min(SMALL, large // 4)), large


def _asked_at_start(folder: Path) -> float:
    """Seconds that the first policy's held-out answers took, without the start of the engine for them."""
    stamps = (stamp for _, stamp in stamped(IterationPaths(folder).evaluation.folder))
    return sum(stamp["seconds"] - stamp["parts"].get("start", 0.0) for stamp in stamps)


def _seconds(iteration: Path) -> Seconds:
    """What each artifact of an iteration took, by its stamp, with its parts in rounds of sampling and of candidates."""
    stamps = {name: read_stamp(iteration / name) for name in STAGES}
    found = {name: stamp["seconds"] for name, stamp in stamps.items() if stamp is not None}
    for path, stamp in [*stamped(iteration / ROUNDS), *stamped(iteration / CANDIDATES)]:
        if path.name in found:
            found[path.name] += stamp["seconds"]
    return found


def _rows(iteration: Path, name: str) -> float:
    """How many prompts an artifact of an iteration was made of."""
    it = IterationPaths(iteration)
    stamp = read_stamp(it.evaluation.responses if name.startswith("evaluation/") else it.responses)
    assert stamp is not None
    return stamp["rows"]


def _wanted(whole: Any, name: str) -> float:
    return whole.evaluation.count if name.startswith("evaluation/") else whole.prompts.per_iteration


def _by_stage(seconds: Seconds) -> Seconds:
    totals: Seconds = {}
    for name, value in seconds.items():
        totals[STAGES[name]] = totals.get(STAGES[name], 0.0) + value
    return {name: round(value, 1) for name, value in totals.items()}


def _peak_gb() -> float:
    """The most memory that this process has had, of the host and of the accelerator."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    device = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return (host + device) / 1e9


def _disk(whole: Align, iteration: Path, prompts: int) -> float:
    """Bytes of the whole run: rows in proportion to the prompts, and the policies that `keep_policies` keeps."""
    rows = sum(file.stat().st_size for file in iteration.rglob("*.jsonl")) * whole.prompts.per_iteration / prompts
    policy = sum(file.stat().st_size for file in IterationPaths(iteration).policy.iterdir())
    kept = {"last": 2, "best": 3, "all": whole.iterations}[
        whole.keep_policies
    ]  # the current, and the one being written
    return rows * whole.iterations + policy * kept


def _truncated(iteration: Path) -> float:
    """The share of responses that the limit cut."""
    metrics = json.loads(IterationPaths(iteration).metrics.read_text(encoding="utf-8"))
    return round(metrics["previous"]["response/truncated"], 4)
