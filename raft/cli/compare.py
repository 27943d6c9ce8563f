"""`raft compare A B ...`: how the last policies of runs differ, on the same prompts, and where the runs part ways."""

import itertools
import math
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raft.config.jobs import JOBS
from raft.config.recipe import read_resolved, value_at
from raft.core import records
from raft.core.options import short
from raft.core.registry import filled
from raft.core.run_paths import RunPaths
from raft.metrics import reward_metrics
from raft.metrics.reward_metrics import NORMAL_95, Gain
from raft.store import measuring, runs, stamps
from raft.store.changes import told
from raft.store.stamps import Stamp, differences

MOST = 12  # keys that are listed of recipes
FEW = 4  # and of artifacts, which follow from them
NAMES = {"reward/eval": "held-out reward", "gold/eval": "gold reward"}


def compared(runs: Sequence[Path]) -> list[str]:
    """Lines that compare runs with the first one: their last policies, their recipes, and the first unlike artifact."""
    first, *others = labelled = [Labelled(label, run) for label, run in zip(_labels(), runs, strict=False)]
    lines = [", ".join(f"{run.label} {run.folder}" for run in labelled), *_figures(labelled)]
    for other in others:
        changed = list(_recipes(first, other))
        said = f"they differ in {len(changed)}" if changed else "the same"
        lines += [f"recipes of {first.label} and {other.label}: {said}", *_first(changed, MOST)]
        lines.append(_parting(first, other))
    return lines


class Labelled(NamedTuple):
    """A run, and the letter that stands for it."""

    label: str
    folder: Path

    def beside(self, other: "Labelled") -> str:
        """How a key's value in this run and in another are told."""
        return f"{{}} in {self.label}, {{}} in {other.label}"


def _labels() -> Iterator[str]:
    """A to Z, then A2 to Z2, and so on."""
    return (f"{letter}{turn if turn > 1 else ''}" for turn in itertools.count(1) for letter in string.ascii_uppercase)


def _recipes(first: Labelled, second: Labelled) -> Iterator[str]:
    """The keys in which two recipes differ; what only one of them says has its default in the other."""
    say = first.beside(second)
    one, other = read_resolved(first.folder), read_resolved(second.folder)
    whole = [filled(JOBS[job], of) if (job := str(of.get("job", "align"))) in JOBS else of for of in (one, other)]
    for change in differences(one, other, say=say, shown=_in_words):
        key = change.split(":", 1)[0]
        here, there = (value_at(of, key.split(".")) for of in whole)
        if key == "name":
            continue
        if here is None and there is None:  # where a name has a dot nothing is found by its key
            yield change
            continue
        for found in differences(here, there, key, say, _in_words):
            path = found.split(":", 1)[0].split(".")
            if path[-1] == "kind" or any(value_at(of, path) is not None for of in (one, other)):
                yield found  # and no defaults of a section that only one of them has


def _in_words(value: Any) -> str:
    """A value, shortened."""
    return f"{len(value)} key{'s' * (len(value) != 1)}" if isinstance(value, dict) else short(value)


def _first(changes: list[str], most: int) -> list[str]:
    """Lines on the first of these changes, and how many more there are."""
    more = [f"  and {len(changes) - most} more"] if len(changes) > most else []
    return [*(f"  {change}" for change in changes[:most]), *more]


def seeds(folders: list[Path]) -> list[str]:
    """Lines on runs that differ in their seed alone: what each gained, and the mean with its spread over seeds."""
    lines = []
    for figure, name in NAMES.items():
        gained = {}
        for folder in folders:
            means = measuring.held_out_means(folder)[figure]
            if 0 in means and (gain := reward_metrics.gain(means[0], means[max(means)])) is not None:
                gained[folder] = gain
        if len(gained) < 2:
            continue
        found = np.array([gain.difference for gain in gained.values()])
        lines += [f"{name}, from the first policy to the last:"]
        lines += [f"  {folder}  {_sum(gain)}" for folder, gain in gained.items()]
        lines += [f"  mean of {len(found)} seeds {found.mean():+.3f}, standard deviation {found.std(ddof=1):.3f}"]
    return lines


def _figures(labelled: list[Labelled]) -> Iterator[str]:
    """The last evaluated policy of each run by each held-out figure, against the first run that has it."""
    measured = {run: means for run in labelled if any((means := measuring.held_out_means(run.folder)).values())}
    last = {run: max(number for found in means.values() for number in found) for run, means in measured.items()}
    for figure, name in NAMES.items():
        found = {run: means[figure][at] for run, means in measured.items() if (at := last[run]) in means[figure]}
        if len(found) < 2:
            continue
        first, one = next(iter(found.items()))
        yield f"{name} of the last policy, compared with {first.label}:"
        for run in measured:
            if run not in found:
                yield f"  {run.label}, policy {last[run]}: none"
                continue
            wanted = runs.wanted(run.folder, "align") or 0
            of = f" of {wanted}" if wanted > last[run] else ""
            said = f"  {run.label}, policy {last[run]}{of}: {np.nanmean(found[run]):.3f}"
            if run is first:
                yield said
            elif (unlike := _unlike(first, run, figure, last[first], last[run])) is not None:
                yield f"{said}; not compared, because it has another reward{unlike}"
            else:
                gain, how = _gain(first.folder, run.folder, one, found[run])
                better = f"{(run if gain.difference > 0 else first).label} is better"
                none = "too few prompts to tell" if gain.few else "no clear difference"
                yield f"{said}; {_sum(gain)} {how}: {better if gain.clear else none}"


def _sum(gain: Gain) -> str:
    return f"{gain.difference:+.3f}" + ("" if math.isnan(gain.half_width) else f" ± {gain.half_width:.3f}")


def _unlike(first: Labelled, second: Labelled, figure: str, at: int, to: int) -> str | None:
    """How the reward behind a figure of two policies differs, as far as it can be told; None where it does not."""
    file = next(file for name, file in measuring.SCORES.items() if measuring.HELD_OUT[name] == figure)
    place = RunPaths(second.folder).iteration(to).folder / file
    one, other = stamps.read_stamp(RunPaths(first.folder).iteration(at).folder / file), stamps.read_stamp(place)
    if one is None or other is None:
        return ""
    made, remade = ({name: stamp["key"].get(name) for name in ("stage", "section")} for stamp in (one, other))
    if made == remade:
        return None
    change = next(told(place, made, remade, first.beside(second), _in_words, verb="differs"), None)
    return f" ({change})" if change else ""


def _gain(first: Path, second: Path, one: np.ndarray, other: np.ndarray) -> tuple[Gain, str]:
    """The difference on the same prompts where there are any, else between two samples of prompts."""
    ids = [[row["id"] for row in records.read(RunPaths(folder).evaluation)] for folder in (first, second)]
    places = {name: at for at, name in enumerate(ids[1])}
    both = [(at, places[name]) for at, name in enumerate(ids[0]) if name in places]
    if both and (gain := reward_metrics.gain(*_paired(one, other, both))) is not None:
        return gain, f"on {gain.prompts} prompts that both have"
    known = [values[~np.isnan(values)] for values in (one, other)]
    error = math.hypot(*(reward_metrics.standard_error(values) for values in known))
    before, after = (float(values.mean()) for values in known)
    return Gain(before, after, NORMAL_95 * error, min(map(len, known))), "on different prompts"


def _paired(one: np.ndarray, other: np.ndarray, both: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    at, to = np.array(both).T
    return one[at], other[to]


def _parting(first: Labelled, second: Labelled) -> str:
    """The first artifact that is not the same in both runs, and why."""
    one, other, say = _by_name(first.folder), _by_name(second.folder), first.beside(second)
    if one.keys().isdisjoint(other):
        return "artifacts: none is in both runs, whose jobs or stages differ"
    for name in (name for name in one if name in other):
        here, there = one[name], other[name]
        if here["hash"] != there["hash"]:
            changed = [
                change
                for change in told(Path(name), here["key"], there["key"], say, _in_words, verb="differs")
                if not change.startswith("inputs.")
            ]
            changed.sort(key=lambda change: not change.split(":")[0].endswith(".kind"))  # all else follows from it
            why = "\n".join(_first(changed, FEW)) or "  what it was made from"
            return f"first artifact that differs: {name}, made from other inputs:\n{why}"
        if here.get("content") != there.get("content"):
            versions = "".join(f"\n  {change}" for change in differences(here["versions"], there["versions"], say=say))
            return (
                f"first artifact that differs: {name}, made from the same inputs"
                + (versions and f", by other versions:{versions}")
                + ("" if versions else "; the machines or their numerics differ (docs/exactness.md)")
            )
    alone = [name for name in {**one, **other} if (name in one) != (name in other)]
    more = f"; {len(alone)} more are in one of them alone" if alone else ""
    return f"every artifact that both have is the same{more}"


def _by_name(folder: Path) -> dict[str, Stamp]:
    """The stamps of a run by the names of their artifacts, in the order in which they were made."""
    made = ((path, stamp) for path, stamp in stamps.stamped(folder) if stamp["key"]["stage"] not in runs.DESCRIBING)
    found: list[tuple[str, Any]] = [(str(path.relative_to(folder)), stamp) for path, stamp in made]
    return dict(sorted(found, key=lambda one: one[1]["began"]))
