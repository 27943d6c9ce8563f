"""raft from Python: the same recipes, runs and messages as on the command line, for scripts and notebooks.

    import raft

    run = raft.run("quickstart", iterations=2, generator={"k": 4})
    run.metrics[-1]["reward/eval"]

What can be put right raises `UserError` with one message. Nothing of the process stays changed: signal handlers,
environment, current folder, logging and random states are after each call what they were before it.
"""

import asyncio
import dataclasses
import gc
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raft.config.recipe import read_resolved
from raft.core import atomic, garbage, given, logs, progress, records, signals, terminal, user_code
from raft.core.errors import Stopped, UserError
from raft.core.records import Example, Pair, Prompt, Response, Score
from raft.core.run_paths import IterationPaths, RunPaths
from raft.pipeline.observer import Observer as Callback
from raft.store import branch, runs, stamps
from raft.store.keys import Artifact

__all__ = ["Callback", "Run", "ScoredGroup", "UserError", "check", "named", "open_run", "run"]

Recipe = str | os.PathLike[str] | Mapping[str, Any]
Which = int | Literal["best", "last"]

NAMES = re.compile(r"[\w-]+(\.[\w-]+)*")  # of options that an override can name; others are given with their section
READ = {"prompts": "raft.data.prompts", "examples": "raft.data.examples", "references": "raft.data.examples"}
CLASSES = {"raft.data.prompts": "File", "raft.data.examples": "FileExamples"}


def run(
    recipe: Recipe,
    /,
    *,
    outputs: str | os.PathLike[str] = "outputs",
    callbacks: Iterable[Callback] = (),
    quiet: bool = False,
    restart: bool = False,
    **overrides: Any,
) -> "Run":
    """Runs a recipe and those that it needs, or goes on where they stopped; returns the run when it is complete.

    `recipe` is the path of a YAML file, the name of a recipe that comes with raft, or the recipe itself as a dict.
    `overrides` are merged into it as those of the command line are: nested dicts, or dotted keys in a dict. A function
    in the place of a reward is a rule, `f(prompt, response) -> float`. Rows (a `datasets.Dataset`, or a list of texts
    or dicts) in the place of `prompts` or `examples`, or under `rows` in such a section, are copied into the run. Both
    replace what the recipe says there, but for how rows are read.

    `outputs` is the folder for runs. `callbacks` are told of each step; what one of them raises stops the run. With
    `quiet` nothing is printed. With `restart` the run that is there is moved aside first; nothing is deleted.

    Raises UserError for what can be put right, and KeyboardInterrupt when Ctrl-C has stopped the run in order. The
    same call goes on, without `restart`.
    """
    objects = _Objects(f"{os.fspath(outputs)}/${{name}}/{given.ROWS}")
    with _as_before(quiet), objects.lent():
        loaded = objects.load(recipe, overrides, Path(outputs))
        if restart:
            _set_aside(loaded, objects, quiet)
        again = "the same call without restart=True" if restart else "the same call"
        return _start(loaded, objects, callbacks, quiet, again)


def check(recipe: Recipe, /, *, outputs: str | os.PathLike[str] = "outputs", **overrides: Any) -> list[str]:
    """Finds every fault of a recipe without loading a model; returns warnings of what will go wrong later.

    Takes a recipe as `run` does. UserError lists all faults.
    """
    from raft.config import preflight

    with tempfile.TemporaryDirectory(prefix="raft-check-") as folder:
        objects = _Objects(folder)
        with _as_before(quiet=True), objects.lent():
            loaded = objects.load(recipe, overrides, Path(outputs))
            objects.write(Path(folder))
            needed = [*loaded.needs, loaded]
            warnings = []
            for one in needed:
                warnings += [*preflight.check(one), *preflight.at_start(one), *preflight.foreseen(one)]
                preflight.try_mirror(one)
            return warnings


def open_run(folder: str | os.PathLike[str]) -> "Run":
    """A run that exists, finished or not. UserError: the folder holds no run."""
    return Run(branch.existing(Path(folder)))


def named(function: Callable[..., Any], name: str) -> given.Named:
    """A callable with a name by which runs know it, for what has no source of its own to be known by.

    That is a lambda, a closure, a method of an object, or a function that uses a model. Whoever
    changes what it computes gives it another name: raft cannot see that, and would go on with the old scores.
    """
    if not callable(function):
        raise UserError(f"a {type(function).__name__} cannot be called; give a function f(prompt, response)")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise UserError(f"{name!r} is not a name; give a text such as 'my reward v1'")
    return given.Named(function, name)


@dataclass(frozen=True)
class ScoredGroup:
    """A prompt, its responses, and how good each of them is; `gold` is None where the run has no gold reward."""

    prompt: Prompt
    responses: list[Response]
    scores: list[Score]
    gold: list[Score] | None = None


class Run:
    """A run on disk. Each call reads its files, so it can be looked at while the run is at work."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __repr__(self) -> str:
        finished = f", policies 0 to {self.iterations}" if self.job == "align" else ""
        return f"<raft.Run {self.folder}: job {self.job}{finished}>"

    @property
    def job(self) -> str:
        """What the run makes: align, sft, reward-model, evaluate-reward or label."""
        return runs.about(self.folder)["job"]

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe as it was resolved."""
        return read_resolved(self.folder)

    @property
    def iterations(self) -> int:
        """The last iteration that is complete; 0 is the first policy, and so is a run that has none."""
        return max(stamps.complete(self.folder), default=0)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one for each policy of job: align; the figures of other jobs are one row.

        `pandas.DataFrame(run.metrics)` is a table of them. docs/diagnostics.md says what each figure is.
        """
        if self.job == "align":
            return runs.metrics_rows(self.folder)
        if self.job == "evaluate-reward":
            found = json.loads(Artifact.finished(RunPaths(self.folder).accuracy).path.read_text(encoding="utf-8"))
            return [
                {"set": name, "reward": reward, **figures}
                for name, judged in found.items()
                for reward, figures in judged.items()
            ]
        from raft.config.jobs import JOB_RESULTS

        return [Artifact.finished(self.folder / JOB_RESULTS[self.job]).stamp["measured"]]

    def prompts(self, iteration: int | None = None, *, held_out: bool = False) -> Iterator[Prompt]:
        """The prompts of an iteration, the last complete one if none is named; or those held out for evaluation."""
        file = RunPaths(self.folder).evaluation if held_out else self._place(iteration).prompts
        return (Prompt.of(row) for row in Artifact.finished(file).read())

    def groups(self, iteration: int | None = None, *, held_out: bool = False) -> Iterator[ScoredGroup]:
        """Each prompt of an iteration with its responses and their scores.

        They are those that policy `iteration` was trained on, or with `held_out` its own answers to the held-out
        prompts. Where the reward only compares responses of one prompt, held-out answers have the gold reward alone.
        """
        place = self._place(iteration, held_out)
        groups = place.evaluation if held_out else place
        prompts = RunPaths(self.folder).evaluation if held_out else place.prompts
        kinds = {"scores": groups.scores, "gold": groups.gold}
        scored = [name for name, file in kinds.items() if stamps.stamp_path(file).exists()] or ["scores"]
        files = [prompts, groups.responses, *(kinds[name] for name in scored)]
        for rows in records.in_step(*(Artifact.finished(file).path for file in files)):
            scores = {name: [Score(**one) for one in row["scores"]] for name, row in zip(scored, rows[2:], strict=True)}
            responses = records.answers(rows[1])
            unknown = [Score(None, error="not scored") for _ in responses]
            yield ScoredGroup(Prompt.of(rows[0]), responses, scores.get("scores", unknown), scores.get("gold"))

    def selected(self, iteration: int | None = None) -> Iterator[Example | Pair]:
        """The responses, or pairs of them, that policy `iteration` was trained on."""
        for row in Artifact.finished(self._place(iteration).selected).read():
            yield Pair.of(row) if "chosen" in row else Example.of(row)

    def policy(self, which: Which = "best") -> Path:
        """The folder of a policy, for `from_pretrained`: of an iteration, of the last one, or of the best.

        The best is that of the highest held-out reward, or gold reward (`best_by: gold`, or a reward that only ranks).
        UserError if it was deleted to save room (`keep_policies`), or is damaged. job: sft has one policy.
        """
        from raft.pipeline import policies

        return policies.find(self.folder, which).path

    def export(
        self,
        to: str | os.PathLike[str] | None = None,
        *,
        policy: Which = "best",
        push: str | None = None,
    ) -> Path:
        """Writes a policy, or the model of job: sft or reward-model, as a folder for others; returns where it stands.

        The folder (`<run>-export` beside the run, if `to` is not given) has no links, nothing of the run but its
        recipe and curve, and a model card. `push` is the OWNER/NAME on the model hub that it is uploaded to then, as a
        private model; the token is that of the environment or of `hf auth login`. UserError if the folder exists and is
        not empty, or if the policy was deleted.
        """
        from raft.report import export

        out = None if to is None else Path(to)
        if push is not None:
            return export.push(self.folder, push, out, policy)[0]
        return export.write(self.folder, out, policy)[0]

    def resume(self, *, callbacks: Iterable[Callback] = (), quiet: bool = False, **overrides: Any) -> "Run":
        """Goes on with the run, as `raft resume` does; returns it when it is complete.

        `overrides` are those that may change (`iterations`, `keep_policies`, ...), and the functions that the run
        was given.
        """
        from raft.config import preflight, recipe

        objects = _Objects(str(self.folder / given.ROWS))
        with _as_before(quiet), objects.lent(), branch.resumed(self.folder) as folder:
            strings, python = objects.overrides(overrides)
            with preflight.all_faults():
                loaded = recipe.load_run(folder, strings, python)
            if loaded.folder != folder:
                raise UserError("name: a run keeps its name; leave it out, or call raft.run or run.branch with it")
            _start(loaded, objects, callbacks, quiet)
        return self

    def branch(
        self, from_iteration: int, *, callbacks: Iterable[Callback] = (), quiet: bool = False, **overrides: Any
    ) -> "Run":
        """Makes a new run that shares what comes before an iteration with this one; returns it when it is complete.

        As `raft resume RUN --from-iteration N` does; the same call goes on with it. `overrides` are the changes, and
        the functions that the run was given; `name` is that of the new run. UserError if they change the prompts or
        policy 0, which are shared.
        """
        objects = _Objects(str(self.folder / given.ROWS))
        with _as_before(quiet), objects.lent(), branch.resumed(self.folder) as folder:
            strings, python = objects.overrides(overrides)
            with objects.written(folder):  # where those of the run are: a branch needs both
                loaded = branch.off(folder, from_iteration, strings, python)
            objects.rows.clear()
            return _start(loaded, objects, callbacks, quiet)

    def report(self, output: str | os.PathLike[str] | None = None) -> Path:
        """Writes one page of HTML on the run; returns where it stands (report.html in the run)."""
        from raft.report.page import write as page

        return page.write(branch.whole(self.folder), None if output is None else Path(output))

    def plot(
        self, figure: str = "reward", output: str | os.PathLike[str] | None = None, others: Sequence["Run"] = ()
    ) -> Path:
        """Draws a figure of the run, and of others beside it, as png, svg or pdf, and the numbers behind it as CSV.

        Figures: reward, distribution, best-of-n, gold, kl, length. Returns where the picture stands: without `output`
        in the run, or with `others` beside it.
        """
        from raft.report.figures import picture

        folders = [branch.whole(one.folder) for one in (self, *others)]
        out = picture.default(figure, folders) if output is None else Path(output)
        picture.refuse(out)
        picture.plot(figure, folders, out)
        return out

    def _place(self, iteration: int | None, held_out: bool = False) -> IterationPaths:
        """The files of an iteration; a job without iterations has them in the run's own folder.

        UserError if there is none, or if what is trained on is asked of policy 0.
        """
        if self.job != "align":
            return IterationPaths(self.folder)
        number = self.iterations if iteration is None else iteration
        if number == 0 and not held_out:
            raise UserError(
                f"policy 0 of {self.folder} was not trained, so iteration 0 has no prompts, responses or picks; "
                "run.groups(0, held_out=True) has its answers to the held-out prompts"
            )
        if not (place := RunPaths(self.folder).iteration(number)).folder.is_dir():
            raise UserError(f"{self.folder} has no iteration {number}; the last complete one is {self.iterations}")
        return place


def _start(
    loaded: Any, objects: "_Objects", callbacks: Iterable[Callback], quiet: bool, again: str = "the same call"
) -> Run:
    from raft.cli import commands
    from raft.cli.console import Console
    from raft.cli.forecast import Quiet

    runs.refuse_foreign(loaded.folder)
    try:
        with objects.written(loaded.folder):
            commands.start(loaded, Quiet() if quiet else Console(), *callbacks)
    except Stopped:
        raise KeyboardInterrupt(f"the run was stopped; all finished work is saved, and {again} resumes") from None
    return Run(loaded.folder)


def _set_aside(loaded: Any, objects: "_Objects", quiet: bool) -> None:
    """Moves the run of a recipe aside, if there is one; a recipe with a fault moves nothing."""
    from raft.cli import commands

    if not loaded.folder.exists():
        return
    runs.refuse_foreign(loaded.folder)
    with objects.written(loaded.folder) as written:
        aside = commands.set_aside(loaded, [file.name for file in written])
    if aside is not None:
        _withdraw([aside / given.ROWS / file.name for file in written], RunPaths(aside).resolved)
        if not quiet:
            terminal.say(f"{loaded.folder} was moved to {aside}")


def _withdraw(files: Sequence[Path], resolved: Path) -> None:
    """Deletes rows that no run has begun with: a run that is refused stays as it was."""
    known = resolved.read_text(encoding="utf-8") if resolved.exists() else ""
    for file in files:
        if file.name not in known:
            file.unlink()
            with suppress(OSError):  # a run that has begun is not empty
                file.parent.rmdir()
                file.parent.parent.rmdir()


class _Objects:
    """The Python objects of a recipe: what the recipe says in their place, and where their rows are written."""

    def __init__(self, place: str):
        self.place = place
        self.functions: given.Functions = {}
        self.rows: dict[str, Any] = {}  # by the name of their file
        self.sections: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside the block recipes find the functions, those too that are met in it."""
        with given.lent(self.functions):
            yield

    def load(self, recipe: Recipe, overrides: Mapping[str, Any], outputs: Path) -> Any:
        """A recipe with its overrides, checked."""
        from raft.config import recipe as recipes

        strings, python = self.overrides(overrides)
        if not isinstance(recipe, Mapping):
            return recipes.load(recipes.find(os.fspath(recipe)), strings, outputs=outputs, given=python)
        python = dataclasses.replace(python, content=_plain(self._filled("", recipe), "recipe"))
        path = Path("<recipe>")
        return recipes.load(path, strings, outputs=outputs, given=python)

    def overrides(self, overrides: Mapping[str, Any]) -> tuple[list[str], Any]:
        """Overrides as the command line has them, and the sections that hold Python objects."""
        from raft.config.recipe import FromPython

        return list(self._flat("", overrides)), FromPython(sections=self.sections)

    @contextmanager
    def written(self, run: Path) -> Iterator[list[Path]]:
        """Inside the block the rows lie in a run; where it fails, those that the run has not begun with are deleted."""
        files = self.write(run / given.ROWS)
        try:
            yield files
        except BaseException:
            _withdraw(files, RunPaths(run).resolved)
            raise

    def write(self, folder: Path) -> list[Path]:
        """Writes the rows, each file under the hash of what it holds."""
        for name, rows in self.rows.items():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic.create(temporary := folder / f".{name}.tmp") as file:
                file.writelines(_lines(rows, name))
            atomic.commit(temporary, folder / name)
        return [folder / name for name in self.rows]

    def _flat(self, key: str, value: Any) -> Iterator[str]:
        made = self._section(key.rpartition(".")[2], value)
        if made is not None:
            self.sections[key] = made
        elif isinstance(value, Mapping) and (value or not key) and all(NAMES.fullmatch(str(name)) for name in value):
            if key and "kind" in value:  # a whole section, which replaces that of the recipe
                yield _override(key, {"kind": value["kind"]})
            for name, one in value.items():
                yield from self._flat(f"{key}.{name}" if key else str(name), one)
        else:
            yield _override(key, value)

    def _filled(self, key: str, value: Any) -> Any:
        """A part of a recipe with what it says in the place of Python objects that no override replaces."""
        if key in self.sections:
            options = value.items() if isinstance(value, Mapping) else ()
            return {name: one for name, one in options if name not in ("rows", "function")}
        if (made := self._section(key.rpartition(".")[2], value)) is not None:
            return made({})
        if isinstance(value, Mapping):
            return {name: self._filled(f"{key}.{name}" if key else str(name), one) for name, one in value.items()}
        return [self._filled("", one) for one in value] if isinstance(value, list | tuple) else value

    def _section(self, name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """What makes a section out of a Python object, given the section that was there; None if it is plain data."""
        if callable(value):
            rule = {"kind": "rule", "function": given.refer(value, self.functions)}
            return lambda there: rule
        if isinstance(value, Mapping) and callable(function := value.get("function")):
            options = _plain({**value, "function": given.refer(function, self.functions)}, name)
            return lambda there: options
        if name in READ and not isinstance(value, str | Mapping | None):
            value = {"rows": value}
        if not isinstance(value, Mapping) or "rows" not in value:
            return None
        file, own = self._file(value["rows"], name), _plain({k: v for k, v in value.items() if k != "rows"}, name)
        reads = _reads(READ.get(name, READ["prompts"]))

        def section(there: dict[str, Any]) -> dict[str, Any]:
            kept = {option: one for option, one in there.items() if option in reads}
            path = there["path"] if Path(str(there.get("path"))).name == file else f"{self.place}/{file}"
            return {**kept, **own, "kind": "file", "path": path}

        return section

    def _file(self, rows: Any, name: str) -> str:
        """The name of the file of rows, which holds the hash of what they say."""
        rows = rows if isinstance(rows, Sequence) or hasattr(rows, "__len__") else list(rows)
        digest = hashlib.sha256()
        for line in _lines(rows, name):
            digest.update(line)
        file = f"{name}-{digest.hexdigest()[:16]}.jsonl"
        self.rows[file] = rows
        return file


def _reads(module: str) -> set[str]:
    """The options that say how rows are read, and not where they are."""
    import importlib

    cls = getattr(importlib.import_module(module), CLASSES[module])
    return {item.name for item in dataclasses.fields(cls)} - {"path", "pattern"}


def _lines(rows: Iterable[Any], name: str) -> Iterator[bytes]:
    """Rows as JSON Lines; a text is a row with the one column `prompt`."""
    for index, row in enumerate(rows):
        if not isinstance(row, str | Mapping):
            raise UserError(f"{name}[{index}]: expected a text or a dict, found {type(row).__name__}")
        try:
            yield records.dump({"prompt": row} if isinstance(row, str) else dict(row))
        except (TypeError, ValueError) as fault:
            raise UserError(
                f"{name}[{index}] cannot be written as JSON ({fault}); give texts, numbers, lists and dicts, or leave "
                "the column out"
            ) from None


def _plain(value: Any, key: str) -> Any:
    """A value as JSON would give it back. UserError: a recipe cannot hold it."""

    def known(one: Any) -> Any:
        if isinstance(one, os.PathLike):
            return os.fspath(one)
        if hasattr(one, "item") and getattr(one, "shape", None) == ():  # a scalar of NumPy or torch
            return one.item()
        raise TypeError(f"a {type(one).__name__} cannot stand in a recipe")

    try:
        return json.loads(json.dumps(value, default=known, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as fault:
        raise UserError(f"{key}: {fault}; give texts, numbers, lists and dicts") from None


def _override(key: str, value: Any) -> str:
    """An override as the command line has it."""
    return f"{key}={''.join(map(_escaped, json.dumps(_plain(value, key), ensure_ascii=False)))}"


def _escaped(character: str) -> str:
    """A character of a JSON text as an override may hold it."""
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


@contextmanager
def _as_before(quiet: bool) -> Iterator[None]:
    """Inside the block raft works as on the command line; afterwards the process is as it was."""
    from raft.core import device

    environment, frozen, hook = dict(os.environ), gc.get_freeze_count(), sys.excepthook
    shown = nullcontext() if quiet else progress.screen("starting")
    loop = asyncio._get_running_loop()  # a notebook's: it waits for this call, in which requests have one of their own
    asyncio._set_running_loop(None)
    user_code.forget()
    try:
        with shown, logs.kept(), _random_kept(), user_code.unchanged(), signals.interruptible():
            yield
    finally:
        device.take(None)
        if not frozen:
            garbage.restore()  # loading a model took all that was there out of the collections, a notebook's too
        user_code.forget()
        asyncio._set_running_loop(loop)
        sys.excepthook = hook  # torch's, which writes a rank before each line of what is raised later
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def _random_kept() -> Iterator[None]:
    """Puts the global random states back, which training seeds."""
    import random

    import numpy as np

    torch = sys.modules.get("torch")
    own, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)
        if torch is not None:
            torch.set_rng_state(torchs)
