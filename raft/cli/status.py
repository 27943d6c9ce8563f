"""`raft status`: the state of a run in a screenful, or as JSON, from its files alone; `--watch` goes on showing it."""

import json
import re
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raft.cli import show
from raft.config import preflight
from raft.config.recipe import read_resolved
from raft.core import compressed, progress, signals
from raft.core.errors import UserError
from raft.core.progress import State
from raft.core.resume_command import to_resume
from raft.core.run_paths import RUN, RunPaths
from raft.core.terminal import draws, safe, say, size
from raft.core.timing import words
from raft.metrics import reward_accuracy
from raft.metrics.alerts import Level
from raft.store import branch, runs, stamps

EVERY = 1.0  # seconds between two looks
PLAIN_EVERY = 15.0  # the same where there is no terminal to redraw
BLOCKS = "▁▂▃▄▅▆▇█"
CURVES = {"reward/eval": "held-out reward", "gold/eval": "gold reward", "reward/mean": "training reward"}
BETWEEN = 20.0  # seconds that may pass between a run and the one that needs it
FEW = 3  # names that stand in a line
WIDE = 40  # blocks of a curve
TAIL, LONGEST = 2**16, 500  # bytes of a log that an error is looked for in, and its characters


def summary(folder: Path) -> dict[str, Any]:
    """What `--json` prints; docs/report.md lists the keys. UserError if a file that it needs is damaged."""
    paths, known, rows = RunPaths(folder), runs.about(folder), runs.metrics_rows(folder)
    findings, stop_on = _findings(folder, rows)
    outcome = runs.outcome(folder, known["job"])
    complete, wanted = stamps.complete(folder), runs.wanted(folder, known["job"])
    gone, running = _gone(folder), runs.is_running(folder)
    finished = None if gone else _finished(folder, known["job"], wanted)
    now = _now(folder) if running else None
    of_figures = [one["check"] for one in findings or [] if one["reward"] == "figures" and one["level"] == "warning"]
    stopped_by = [name for name in of_figures if name in stop_on]
    if now is not None and known["job"] == "align":
        iteration: int | None = now.iteration
    else:
        iteration = max(complete, default=None)
    return {
        "run": str(folder),
        "name": folder.absolute().name,
        "job": known["job"],
        "state": "at work" if running else "finished" if finished else "stopped",
        "finished": finished,
        "iteration": iteration,
        "iterations": wanted,
        "stopped_by": stopped_by if not running and not finished else [],
        "error": _error(paths.log) if not running and not finished else None,
        "now": None if now is None else asdict(now),
        "workers": _workers(folder) if running else [],
        "died": sum(lane["died"] for _, stamp in stamps.stamped(folder) for lane in stamp.get("workers", [])),
        "accuracy": reward_accuracy.interval(outcome),
        "pairs": outcome.get("pairs") if known["job"] == "label" else None,
        "requests": sum(sum(counts.values()) for _, counts in preflight.sent(folder) if counts),
        "curves": {key: values for key in CURVES if (values := [row[key] for row in rows if row.get(key) is not None])},
        "gone": gone,
        "warnings": _said(findings, "warning"),
        "watch": _said(findings, "watch"),
        "best": str(paths.best.readlink()) if paths.best.is_symlink() else None,
        "log": str(paths.log) if paths.log.exists() else None,
        "report": str(paths.report) if paths.report.exists() else None,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """A summary in words."""
    said = [f"{found['run']}  job: {found['job']}", _state(found)]
    if found["error"]:
        said.append(f"error: {found['error']}")
    if found["now"] and (left := found["now"]["run_left"]) is not None:
        said.append(f"the whole run: about {words(round(left))} left")
    said += _at_work(found["workers"])
    if found["died"]:
        said.append(f"workers that died and were replaced: {found['died']} (the log says why)")
    if found["accuracy"]:
        said.append(accuracy(found["accuracy"]))
    if found["pairs"] is not None:
        said.append(f"pairs: {found['pairs']}")
    said += curves(found["curves"])
    if found["requests"]:
        said.append(f"requests to the judge: {found['requests']:,}")
    if found["gone"]:
        said.append(f"gone: {_few(found['gone'])}; raft status {found['run']} --files lists what is there")
    for level in ("warnings", "watch"):
        names = [one.split(":", 1)[0].replace("_", " ") for one in found[level] or ()]
        if names or (level == "warnings" and found[level] is not None):
            said.append(f"{level}: {len(names)}" + (f" ({_few(names)})" if names else ""))
    if found["best"]:
        said.append(f"best policy: {RunPaths(Path(found['run'])).best} -> {found['best']}")
    if found["log"]:
        said.append(f"log: {found['log']}")
    if found["state"] != "at work":
        said.append(f"report: {found['report'] or 'raft report ' + found['run'] + ' writes it'}")
    return [safe(line) for line in said]


def _workers(folder: Path) -> list[dict[str, Any]]:
    """What the workers of a cluster have done of the stage that is being made, each lane with its rate."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        lanes = json.loads(RunPaths(folder).workers.read_bytes())
        return [
            {
                "worker": str(one["worker"]),
                "done": int(one["done"]),
                "died": bool(one["died"]),
                "rate": round(float(one["done"]) / max(1e-3, one["ended"] - one["began"]), 3),
            }
            for one in lanes
        ]
    return []


def _at_work(lanes: list[dict[str, Any]]) -> Iterator[str]:
    """A line on the workers of a cluster, if there are any."""
    working = [lane for lane in lanes if not lane["died"]]
    if lanes:
        rates = sorted(lane["rate"] for lane in working if lane["done"])
        ends = list(dict.fromkeys(f"{rate:.3g}" for rate in rates[:: max(1, len(rates) - 1)]))
        pace = f"; {' to '.join(ends)} a second each" if rates else ""
        died = len(lanes) - len(working)
        yield f"workers: {len(working)} at work{pace}" + (f"; {died} died in this stage" if died else "")


def _error(log: Path) -> str | None:
    """What the last launch of a run ended with, by its log; None where that was no error. Its first line is enough."""
    if not log.is_file():
        return None
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    found = re.findall(r"^\S+ \S+ ERROR raft: (.*)$", text, re.MULTILINE)
    return found[-1][:LONGEST] if found else None


def _few(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _state(found: dict[str, Any]) -> str:
    iteration, wanted = found["iteration"], found["iterations"]
    if found["state"] == "finished":
        wanted = wanted and max(wanted, iteration or 0)  # the recipe may ask for fewer since
        of = f", {wanted} iteration{'s' * (wanted != 1)}" if wanted else ""
        return f"finished on {found['finished'].replace('T', ' ')}{of}"
    if found["state"] == "at work":
        if found["now"] is None:
            return "at work: starting"
        now = State(**found["now"])
        left = [] if now.left is None else [f"about {words(round(now.left))} left"]
        return f"at work: {', '.join(filter(None, (now.where, now.stage, now.share, *left)))}"
    run = Path(found["run"])
    again = f"{'after an error; once that is put right, ' if found['error'] else ''}resume with: {to_resume(run)}"
    if found["gone"]:
        return f"stopped: a finished artifact is gone; {again}, which remakes it or says what is missing"
    if found["job"] != "align":
        return f"stopped before its end; {again}"
    if iteration is None:
        return f"stopped before policy 0 was evaluated; {again}"
    if found["stopped_by"]:
        names = ", ".join(found["stopped_by"])
        return (
            f"stopped after iteration {iteration} of {wanted} (alerts.on_warning: stop) because of {names}; "
            f"resume with: {to_resume(run, {'alerts.on_warning': 'warn'})}"
        )
    return f"stopped in iteration {iteration + 1}{f' of {wanted}' if wanted else ''}; {again}"


def curves(values: dict[str, list[float]]) -> list[str]:
    """A line for each curve: its name, its shape, its first and its last value."""
    made = []
    for key, name in CURVES.items():
        if curve := values.get(key):
            policies = "policy" if len(curve) == 1 else "policies"
            ends = f"{curve[0]:.3f} -> {curve[-1]:.3f}" if len(curve) > 1 else f"{curve[0]:.3f}"
            made.append(f"{name:16s} {shape(curve[-WIDE:])}  {ends} ({len(curve)} {policies})")
    return made


def accuracy(found: Sequence[float]) -> str:
    """The accuracy of a reward model on held-out pairs, with its interval."""
    share, low, high = found
    return f"held-out accuracy  {share:.3f} ({low:.3f} to {high:.3f})"


def shape(values: list[float]) -> str:
    """Values as blocks, the least and the greatest of them at either end."""
    low, high = min(values), max(values)
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / (high - low) * steps) if high > low else 0] for value in values)


def _now(folder: Path) -> State | None:
    """What the run is at."""
    state = progress.read(RunPaths(folder).progress)
    return None if state is None else state.aged(time.time())


def _finished(folder: Path, job: str, wanted: int | None) -> str | None:
    """When its last artifact was made; None if it is not."""
    if wanted is None or (stamp := stamps.read_stamp(runs.result(folder, job, wanted))) is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M", time.localtime(stamp["began"] + stamp["seconds"]))


def _gone(folder: Path) -> list[str]:
    """What was finished, or is shared with the run that this one branched off, and is not there."""
    made = [path for path, stamp in stamps.stamped(folder) if not compressed.exists(path) and not stamp.get("pruned")]
    shared = [folder / name for name in runs.shared_names(folder) if not (folder / name).exists()]
    return sorted({str(path.relative_to(folder)) for path in (*made, *shared)})


def _findings(folder: Path, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]] | None, Collection[str]]:
    """What the checks and the figures do not find in order, None if that cannot be read, and the rules that end it."""
    from raft.report.page.facts import findings

    with suppress(UserError):  # of a damaged file: the command says which at its end
        found = [one for one in findings(folder, rows) if one["level"] != "ok"]
        alerts = read_resolved(folder).get("alerts") or {}
        stops = alerts.get("on_warning") == "stop"
        return found, (alerts.get("stop_on") or [one["check"] for one in found]) if stops else ()
    return None, ()


def _said(findings: list[dict[str, Any]] | None, level: Level) -> list[str] | None:
    """The findings of a level in words."""
    if findings is None:
        return None
    return [f"{one['check']}: {one['message']}" for one in findings if one["level"] == level]


def at_work(folder: Path) -> str:
    """What the run is at, in a line."""
    state = _now(folder)
    return "starting" if state is None else state.sentence()


def tell(folder: Path, listed: bool, as_json: bool) -> None:
    """Prints the status once."""
    found = summary(folder)
    if as_json:
        print(json.dumps(found, ensure_ascii=True))  # numbers and escaped text: nothing in it can act
        return
    say("\n".join(lines(found)))
    if listed:
        say(show.files(folder))


def watch(folder: Path, listed: bool) -> Path:
    """Shows the status until the run ends, and then its last one; waits for a run that is to come. The run's folder."""
    (_draw if sys.stdout is not None and draws(sys.stdout) else _tell)(folder)
    folder = branch.existing(folder)
    tell(folder, listed, False)
    return folder


def _states(folder: Path) -> Iterator[list[str]]:
    """The status in lines, again and again while there is something to wait for."""
    waited = None  # until when it is waited for a run that is to come
    while True:
        there, running = RunPaths(folder).about.exists(), runs.is_running(folder)
        if (before := None if there or running else _before(folder)) is not None:
            waited = time.monotonic() + BETWEEN
        if there and not running:
            return
        if there:
            yield lines(summary(folder))
        elif before is not None:
            yield [f"{folder} does not exist yet; {before} is running: {at_work(before)}", f"waiting for {folder}"]
        elif running or (waited is not None and time.monotonic() < waited):
            yield [f"{folder} is starting"]
        else:
            return


def _before(folder: Path) -> Path | None:
    """A run beside it that is at work: perhaps of a recipe that comes first."""
    beside = (file.parent for file in sorted(folder.parent.glob(f"*/{RUN}")) if file.parent.name != folder.name)
    return next((one for one in beside if runs.is_running(one)), None)


def _tell(folder: Path) -> None:
    """A line now and then."""
    for state in _states(folder):
        say(at_work(folder) if RunPaths(folder).about.exists() else state[0])
        signals.sleep(PLAIN_EVERY)


def _draw(folder: Path) -> None:
    """The status redrawn in place, no higher than the terminal; in the end it is taken away."""
    from rich.console import Console, ConsoleDimensions
    from rich.live import Live
    from rich.text import Text

    console = Console(file=sys.stdout, force_terminal=True, highlight=False, emoji=False, markup=False)
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:
        for state in _states(folder):
            width, height = size(sys.stdout)
            shown = Text("\n".join(state[: max(1, height - 1)]), no_wrap=True, overflow="ellipsis")
            console.size = ConsoleDimensions(width, height)
            live.update(shown, refresh=True)
            signals.sleep(EVERY)
