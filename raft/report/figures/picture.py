"""`raft plot`: a figure by its name, and the numbers behind it as CSV beside the picture."""

import json
from collections.abc import Sequence
from pathlib import Path

from raft.core.errors import UserError
from raft.core.options import suggest
from raft.core.run_paths import RunPaths, refuse_output
from raft.report.figures import best_of_n, distribution, lines, paths, style
from raft.report.figures.table import Measured, Plot, is_table, recipes, tabulate
from raft.store import measuring
from raft.store.runs import about

DRAWN = ("align", "label")  # jobs that make responses
FIGURES = {  # in the order in which the report shows them
    one.name: one for one in (lines.REWARD, distribution.PLOT, best_of_n.PLOT, paths.DISTANCE, lines.LENGTH, paths.GOLD)
}
LONGEST = 150  # bytes of the names of runs in the name of a file
ALL = "all"  # in place of a name: every figure that the runs have numbers for


def file_name(name: str) -> str:
    """What the picture of a figure is called in a run."""
    return RunPaths(Path()).curve.name if name == "reward" else f"{name}.png"


def default(figure: str, folders: Sequence[Path]) -> Path:
    """Where a figure goes without a word: into its run, and that of several runs beside the first of them."""
    first, *others = folders
    if not others:
        return first if figure == ALL else first / file_name(figure)
    names = "+".join(folder.name for folder in folders)
    if len(names.encode()) > LONGEST:
        names = f"{first.name}+{len(others)}"
    return first.with_name(names if figure == ALL else f"{names}-{figure}.png")


def refuse(out: Path) -> None:
    """UserError if picture or table would take the place of something that raft plot has not written."""
    refuse_output(out, out.name in map(file_name, FIGURES))
    table = out.with_suffix(".csv")
    refuse_output(table, is_table(table))
    if table.exists() and not is_table(table):
        raise UserError(
            f"{table}, where the numbers of the figure go, is not a table of raft plot; choose another name"
        )


def different_rewards(folders: Sequence[Path]) -> str:
    """A warning where runs were scored by different rewards, whose units are not the same; empty where not."""
    rewards = {json.dumps(measuring.last_reward(folder), sort_keys=True) for folder in folders}
    return "these runs have different rewards: compare shapes, not heights" if len(rewards) > 1 else ""


def plot(name: str, folders: Sequence[Path], out: Path) -> Path:
    """Draws a figure of runs into a png, svg or pdf file, and returns the CSV file beside it.

    UserError if there is no such figure, if a run has nothing to draw, or if the file cannot be written.
    """
    if name not in FIGURES:
        raise UserError(f"there is no figure {name!r}; {suggest(name, [*FIGURES, ALL])}")
    _refuse_other_jobs(folders)
    style.writable(out)
    return _write(FIGURES[name], [FIGURES[name].measure(folder) for folder in folders], folders, out)


def plot_all(folders: Sequence[Path], place: Path) -> tuple[list[Path], list[Plot]]:
    """Draws every figure that all of the runs have numbers for into a folder, and says which ones they lack.

    The folder is made if its parent exists. UserError if it does not, or if something else would be overwritten.
    """
    if not (place if place.exists() else place.parent).is_dir():
        raise UserError(f"{place}: no folder can be made there; with --figure {ALL}, -o names one whose parent exists")
    _refuse_other_jobs(folders)
    measured = {name: [figure.measure(folder) for folder in folders] for name, figure in FIGURES.items()}
    there = [name for name, runs in measured.items() if all(run.numbers for run in runs)]
    place.mkdir(exist_ok=True)
    files = {name: place / file_name(name) for name in there}
    for file in files.values():
        refuse(file)
    tables = [_write(FIGURES[name], measured[name], folders, file) for name, file in files.items()]
    return [*files.values(), *tables], [figure for name, figure in FIGURES.items() if name not in there]


def _refuse_other_jobs(folders: Sequence[Path]) -> None:
    """UserError if a run has no responses, which all of the figures are of."""
    for folder in folders:
        job = about(folder)["job"] if RunPaths(folder).about.exists() else "align"
        if job not in DRAWN:
            raise UserError(
                f"{folder}: nothing to draw, as figures are of responses and a job: {job} has none; raft report "
                f"{folder} shows what it made"
            )


def _write(figure: Plot, measured: Sequence[Measured], folders: Sequence[Path], out: Path) -> Path:
    found = recipes(measured, figure.missing)
    note = different_rewards(folders) if len(folders) > 1 and figure is not lines.LENGTH else ""
    style.save(lambda: style.noted(style.titled(figure.draw(found), figure.title), note), out)
    table = out.with_suffix(".csv")
    tabulate(found, table)
    return table
