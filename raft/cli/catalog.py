"""What there is: the recipes that come with raft and the runs made so far (`raft ls`), copied recipes (`raft cp`)."""

import re
import shutil
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from raft.cli import status
from raft.config import recipe
from raft.core.errors import UserError
from raft.core.run_paths import RUN, RunPaths
from raft.core.terminal import safe
from raft.metrics import reward_accuracy, reward_metrics
from raft.store import runs, stamps

WIDE = 110  # characters of what is said of a recipe
WORD = re.compile(r"[\w./-]+")


def recipes() -> list[str]:
    """A line for each recipe that comes with raft: its name, and what its first comment says."""
    files = recipe.shipped()
    width = max(map(len, files))
    return [f"  {name:{width}s}  {_title(file)}" for name, file in files.items()]


def made(outputs: Path) -> list[str]:
    """A line for each run in a folder of outputs: where it is, its job, how far it is, and its last held-out reward."""
    return [_line(file.parent) for file in sorted(outputs.glob(f"*/{RUN}"))]


def copy(name: str, to: Path) -> list[Path]:
    """Copies a recipe, and the files beside it that it names, into a folder or to a file of another name.

    UserError if one of them is there already: nothing is overwritten.
    """
    source = recipe.find(name)
    folder, target = (to, to / source.name) if to.is_dir() else (to.parent, to)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; make it first")
    files = {source: target} | {file: folder / file.name for file in _needed(source) if file != source}
    taken = [str(to) for file, to in files.items() if to.exists() and not _same(file, to)]
    if taken:
        raise UserError(f"{', '.join(taken)} already exists and is not overwritten; name another folder or file")
    for file, place in files.items():
        shutil.copyfile(file, place)
    return list(files.values())


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _title(file: Path) -> str:
    """The first sentence of the comment that a recipe begins with, as much of it as fits a line."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("# "), lines))
    return textwrap.shorten(comment.split(". ")[0].removesuffix("."), WIDE, placeholder=" ...")


def _line(folder: Path) -> str:
    try:
        about, rows = runs.about(folder), runs.metrics_rows(folder)
        complete = stamps.complete(folder)
        state = "at work" if runs.is_running(folder) else f"iteration {complete[-1]}" if complete else ""
        key = reward_metrics.held_out_key(rows)
        measured = [row[key] for row in rows if key in row]
        last = f"{key} {measured[-1]:.3f}" if measured else ""
        if accuracy := reward_accuracy.interval(runs.outcome(folder, about["job"])):
            last = status.accuracy(accuracy)
        best = RunPaths(folder).best
        place = f"best: {best.readlink()}" if best.is_symlink() else ""
        return "  " + "  ".join(filter(None, (f"{folder!s:40s}", f"{about['job']:15s}", state, last, place)))
    except UserError as fault:
        return f"  {folder!s:40s}  damaged: {safe(str(fault))}"


def _needed(source: Path) -> Iterator[Path]:
    """A recipe, and the files beside it that it names: recipes that it needs, Python, templates; each once."""
    beside = {file for file in source.parent.iterdir() if file.is_file()}
    found, waiting = {source}, [source]
    while waiting:
        words = set(WORD.findall(waiting.pop().read_text(encoding="utf-8")))
        new = {file for file in beside - found if file.name in words or (file.suffix == ".py" and file.stem in words)}
        found |= new
        waiting += [file for file in new if file.suffix in (".yaml", ".py")]
    yield from sorted(found)
