"""What a run tells while it works: a line for each iteration, the curve, and one prompt before and after."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raft.cli import forecast
from raft.cli.show import before_and_after
from raft.config.jobs import JOB_OUTPUTS
from raft.config.preflight import requests
from raft.core import logs, records
from raft.core.protocols import makes_pairs
from raft.core.resume_command import to_resume
from raft.core.run_paths import RunPaths
from raft.core.terminal import rounded, safe, say
from raft.metrics import reward_accuracy
from raft.metrics.alerts import Alert, Level, changed
from raft.metrics.diagnostics import Alerts
from raft.metrics.reward_metrics import NORMAL_95
from raft.pipeline import policies
from raft.pipeline.evaluation import gains
from raft.pipeline.observer import Observer
from raft.store.keys import Artifact
from raft.store.measuring import incomparable
from raft.store.runs import Folder, Run, last_artifact
from raft.store.stamps import complete, read_stamp

REDRAWN = 5.0  # seconds between two pictures of the curve: resuming passes all iterations at once


class Console(Observer):
    """Tells a terminal (or a log, in plain lines) what a run does."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.recipe: Any = None
        self.last: dict[str, Level] = {}
        self.finished = False
        self.drawn = -math.inf

    def on_run_begin(self, run: Run, loaded: Any) -> None:
        """Names the run, and sends the noise of libraries into its log."""
        self.run, self.recipe = run, loaded.recipe
        logs.begin(run.folder)
        recipe = loaded.path if loaded.text is None else f"{loaded.recipe.name}, given in Python"
        say(f"{run.folder}  job: {loaded.recipe.job}  recipe: {recipe}")
        stamp = read_stamp(last_artifact(run.folder, self.recipe))
        self.finished = stamp is not None and not run.incomplete

    def on_notice(self, message: str) -> None:
        """Prints it."""
        say(f"notice: {safe(message)}")

    def on_warning(self, message: str) -> None:
        """Prints it, unless the run has long been finished."""
        if not self.finished:
            say(f"warning: {safe(message)}")

    def on_checks(self, artifact: Artifact) -> None:
        """Prints what the doctor warns of."""
        for row in artifact.read():
            if not self.finished and row["level"] != "ok":
                say(f"warning: {row['reward']}: {row['check'].replace('_', ' ')}: {row['message']}")

    def on_iteration_end(self, it: Folder, alerts: Sequence[Alert]) -> None:
        """Redraws the curve now and then, and prints the row of the policy that is now complete, and warnings."""
        assert self.run is not None
        if self.finished:
            return
        stopping = self.recipe.alerts.stopping(alerts)
        rows = list(records.read(RunPaths(self.run.folder).rows))
        if stopping or it.number == self.recipe.iterations or time.monotonic() - self.drawn > REDRAWN:
            draw(self.run.folder)
            self.drawn = time.monotonic()
        if it.shared:
            say(f"iteration {it.number}: shared with the run that this one branched off")
            return
        say(summary(rows, it.number, "pair" if makes_pairs(self.recipe.selection) else "response"))
        for alert in changed(alerts, self.last):
            level = "ok again" if alert.level == "ok" else alert.level
            say(f"{level}: {alert.name}: {safe(alert.message)}")
        self.last = {alert.name: alert.level for alert in alerts}
        if stopping:
            names = ", ".join(alert.name for alert in stopping)
            say(
                f"stopped after iteration {it.number} of {self.recipe.iterations} (alerts.on_warning: stop) because of "
                f"{names}; resume with: {to_resume(self.run.folder, {'alerts.on_warning': 'warn'})}"
            )

    def on_result(self, artifact: Artifact) -> None:
        """Prints what a job without iterations measured."""
        if self.recipe.job == "evaluate-reward":
            say(compared(artifact.path))
            return
        measured = artifact.stamp["measured"]
        say("  " + "  ".join(f"{name} {rounded(value)}" for name, value in measured.items()))
        if (found := reward_accuracy.against_chance(measured)) is not None and found[0] == "warning":
            say(f"warning: {found[1]}")
        for alert in changed(Alerts().judge([{"iteration": 0, **measured}]), {}):
            say(f"{alert.level}: {alert.name}: {alert.message}")

    def on_run_end(self, run: Run, loaded: Any) -> None:
        """Says whether it worked and where everything is, shows a prompt before and after, and names what is next."""
        if self.finished and (stamp := read_stamp(last_artifact(run.folder, self.recipe))) is not None:
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(stamp["began"] + stamp["seconds"]))
            say(f"already finished, on {made}; nothing to do")
        if loaded.recipe.job != "align":
            if loaded.recipe.job in JOB_OUTPUTS:
                key, name = JOB_OUTPUTS[loaded.recipe.job]
                also = f", or recipe: {loaded.path.name}" if Path(loaded.path.name).exists() else ""
                say(f"{name}: {run.folder / name}    (in a recipe {key}: this path{also})")
            return
        paths = RunPaths(run.folder)
        if not self.finished and (shown := before_and_after(run.folder, "typical", "best")) is not None:
            say(f"\n{shown}")
        say("\n" + "\n".join(verdict(run)))
        say(f"curve:       {paths.curve}\nnumbers:     {paths.rows}")
        if paths.tensorboard.is_dir():
            say(f"TensorBoard: tensorboard --logdir {run.folder.parent}")
        if (comparison := forecast.compare(run.folder)) is not None:
            say(f"\n{comparison}")
        commands = {
            f"raft show {run.folder}": "a prompt before and after",
            f"raft plot {run.folder} -o curve.pdf": "",
            f"raft report {run.folder}": "one page of HTML with everything",
        }
        if self.finished:
            more = {"iterations": max([loaded.recipe.iterations, *complete(run.folder)]) + 2}
            longer = replace(loaded.recipe, **more)
            needs = {f"{one.key}.max_requests": one.total for one in requests(longer, run.folder) if one.excess}
            commands[to_resume(run.folder, {**more, **needs})] = "two more iterations"
        listed = (f"{command}    ({what})" if what else command for command, what in commands.items())
        say("\nnext: " + "\n      ".join(listed))


def verdict(run: Run) -> list[str]:
    """Whether the last evaluated policy is better than the first, by each held-out reward, and where the best lies."""
    lines = []
    labels = {"reward/eval": "held-out reward", "gold/eval": "gold reward"}
    others = incomparable(run.folder)
    if earlier := sorted(others["eval"] | others["gold"]):
        what = "another generator answered for" if others["answers"] else "another reward scored"
        lines.append(
            f"{what} policy {', '.join(map(str, earlier))}, before this run branched off, so no difference can be "
            "told; a new run of this recipe begins with policy 0"
        )
    for key, (last, gain) in gains(run).items():
        label = labels[key]
        clear = "a clear gain" if gain.difference > 0 else "a clear loss"
        none = f"too few prompts ({gain.prompts}) to tell" if gain.few else "no clear gain"
        lines.append(
            f"{label} {gain.before:.3f} -> {gain.after:.3f} from policy 0 to {last} "
            f"({gain.difference:+.3f}{'' if math.isnan(gain.half_width) else f' ± {gain.half_width:.3f}'}): "
            f"{clear if gain.clear else none}"
        )
    best = RunPaths(run.folder).best
    if best.is_symlink():
        none_better = policies.none_better(run.folder)
        why = f"    ({none_better})" if none_better else ""
        lines.append(f"best policy: {best} -> {best.readlink()}{why}")
    return lines


def draw(folder: Path) -> None:
    """reward_curve.png and the numbers behind it, each replaced whole."""
    from raft.report.figures import picture

    picture.plot("reward", [folder], RunPaths(folder).curve)


def compared(figures: Path) -> str:
    """accuracy.png, replaced whole, and the table of rewards side by side."""
    from raft.report.figures.accuracy_bars import accuracy_bars

    table, picture = figures.with_suffix(".md"), figures.with_suffix(".png")
    accuracy_bars(json.loads(figures.read_text(encoding="utf-8")), picture)
    shown = safe(table.read_text(encoding="utf-8"))
    return f"\n{shown}\ntable:   {table}\npicture: {picture}\nnumbers: {figures}"


def _interval(row: dict[str, Any], key: str) -> str:
    """The half width of the 95 % interval; and of how many prompts, where some answers have no reward."""
    failed = row.get(f"{key}_failed", 0.0)
    over = f", over {row[f'{key}_n']} prompts: {failed:.1%} of the answers have no reward" if failed else ""
    error = row.get(f"{key}_se")
    return ("no interval" if error is None else f"±{NORMAL_95 * error:.3f}") + over


def summary(rows: list[dict[str, Any]], number: int, learned: str = "response") -> str:
    """One line on a policy: its evaluation, and the training responses that it came out of.

    `learned` is what a row of selected.jsonl is.
    """
    row = next(row for row in rows if row["iteration"] == number)
    before = next((row for row in rows if row["iteration"] == number - 1), {})
    parts = [f"iteration {number}:"]
    for key, label in (("reward/eval", "held-out reward"), ("gold/eval", "gold")):
        if key in row:
            parts.append(f"{label} {row[key]:.3f} ({_interval(row, key)})")
    count = before.get("selection/examples")
    trained = f"trained on {count} {learned}{'s' * (count != 1)}"
    if number and "reward/mean" in before:
        mean, best = before["reward/mean"], before["reward/best_of_k"]
        each, others = before.get("sampling/responses"), before.get("selection/candidates")
        of = "" if each is None else f"{each:.3g} to a prompt; the first round: "
        more = "" if others is None else f"; {others:.0%} of them candidates"
        parts.append(f"{trained}{more} (policy {number - 1}: {of}best of k {best:.3f}, mean {mean:.3f})")
    elif number and count is not None:
        parts.append(trained)
    return "  ".join(parts)
