"""What each command does; cli.py reads the arguments and turns faults into exit statuses."""

import os
import sys
from argparse import Namespace
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from raft.core.errors import UserError


def run(options: Namespace) -> None:
    """Starts a recipe's run, or goes on with it; with --restart the run that is there is moved aside first."""
    from raft.config import preflight, recipe

    if options.seeds is not None:
        _run_seeds(options)
        return
    with preflight.all_faults():
        loaded = recipe.load(recipe.find(options.recipe), options.overrides)
    if options.restart:
        import shlex

        from raft.core import signals
        from raft.core.terminal import say

        if (aside := set_aside(loaded)) is not None:
            say(f"{loaded.folder} was moved to {aside}")
        others = [word for word in sys.argv[1:] if not (len(word) > 2 and "--restart".startswith(word))]
        signals.resume_with(shlex.join(["raft", *others]))
    _start(loaded)


def set_aside(loaded: Any, own: Collection[str] = ()) -> Path | None:
    """Moves the run of a recipe aside, and gives the folder that it is in now; None where there is no run yet.

    UserError, and nothing is moved, where the recipe has a fault, or reads a file in the run; those named in `own` are
    written again afterwards.
    """
    from raft.config import preflight
    from raft.store import runs

    runs.refuse_foreign(loaded.folder)
    for needed in [*loaded.needs, loaded]:
        preflight.check(needed, fetch=True, restart=needed is loaded)
    inside = [name for name in (str(loaded.path), *_texts(loaded.config)) if _within(name, loaded.folder)]
    if lost := [name for name in inside if Path(name).name not in own]:
        raise UserError(
            f"{loaded.folder} would be moved aside, and the recipe reads {lost[0]} in it; copy that to another place "
            "and name it there"
        )
    return runs.set_aside(loaded.folder)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a recipe."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _within(name: str, folder: Path) -> bool:
    """Whether a text of a recipe is a path into a folder."""
    try:
        return folder.absolute() in Path(name).absolute().parents and Path(name).exists()
    except (OSError, ValueError):  # no path at all
        return False


def _run_seeds(options: Namespace) -> None:
    """A run of the recipe for each seed, one after the other, and what they gained.

    That of the recipe's own seed is the run of the recipe itself.
    """
    from raft.cli import compare as comparison
    from raft.config import preflight, recipe
    from raft.core.terminal import say

    if options.restart:
        raise UserError("--seeds resumes the runs that are there; leave --restart out, or restart one of them alone")
    numbers = [word.strip() for word in options.seeds.split(",")]
    if not all(word.isdecimal() for word in numbers) or len(set(map(int, numbers))) < len(numbers):
        raise UserError(f"--seeds {options.seeds}: give different whole numbers, such as 0,1,2")
    file = recipe.find(options.recipe)
    with preflight.all_faults():
        own = recipe.load(file, options.overrides)
        overrides = [word for word in options.overrides if not word.startswith(("name=", "seed="))]
        named = {seed: f"name={own.recipe.name}-seed{seed}" for seed in map(int, numbers)}
        each = [
            own if seed == own.recipe.seed else recipe.load(file, [*overrides, name, f"seed={seed}"])
            for seed, name in named.items()
        ]
    for loaded in each:
        _start(replace(loaded, seeds=options.seeds))
    if lines := comparison.seeds([loaded.folder for loaded in each]):
        say("\n" + "\n".join(lines))


def resume(options: Namespace) -> None:
    """Goes on with a run from its own folder, or branches off a new one."""
    from raft.config import preflight, recipe
    from raft.store import branch

    with branch.resumed(options.run) as folder:
        if options.from_iteration is not None:
            _start(branch.off(folder, options.from_iteration, options.overrides))
            return
        with preflight.all_faults():
            loaded = recipe.load_run(folder, options.overrides)
        if loaded.folder != folder:
            raise UserError(
                f"name: {loaded.recipe.name}: raft resume continues in {folder} itself; leave name= out, or make "
                f"another run: raft run RECIPE name=..., or raft resume {folder} --from-iteration N name=..."
            )
        _start(loaded)


def pull(options: Namespace) -> None:
    """Brings a mirrored run into a folder, and names the command that goes on with it."""
    from raft.core import progress
    from raft.core.resume_command import to_resume
    from raft.core.terminal import say

    with progress.screen("reading the mirror"):
        from raft.pipeline import policies
        from raft.store import mirror, runs, stamps

        folder, fetched, there = mirror.pull(options.url, options.to)
    if runs.about(folder)["job"] == "align" and stamps.complete(folder):
        runs.Run(folder, 0).link_best(policies.number_of(folder, "best"))
    say(f"{folder}: {fetched} artifacts fetched" + (f", {there} were there" if there else ""))
    say(f"next: {to_resume(folder)}")


def check(options: Namespace) -> None:
    """Says everything that is wrong with a recipe; loads no weights but, with --measure, those of its rewards."""
    from raft.config import preflight, recipe

    with preflight.all_faults():
        loaded = recipe.load(recipe.find(options.recipe), options.overrides)

    from raft.cli import memory_plan  # after the recipe's own faults: it imports every generator
    from raft.core import logs, progress

    with progress.screen("checking"):
        if options.gpu is not None:
            _fit([*loaded.needs, loaded], *options.gpu)
            return
        where = memory_plan.device()
        for needed in [*loaded.needs, loaded]:
            _check(needed, where)
    if options.measure:
        with logs.discarded():
            _measure(loaded, options.overrides)


def _check(loaded: Any, where: Any) -> None:
    """Says that a recipe has no fault, what it needs on a device, and what is likely to go wrong."""
    from raft.cli import memory_plan
    from raft.config import preflight
    from raft.core.run_paths import stamp_path
    from raft.core.terminal import say
    from raft.store.runs import last_artifact

    warnings = [*preflight.check(loaded), *preflight.at_start(loaded)]
    preflight.try_mirror(loaded)
    say(f"{loaded.path}: no fault found (job: {loaded.recipe.job}, run: {loaded.folder})")
    for line in memory_plan.lines(memory_plan.plan(loaded, where), where):
        say(line)
    if (place := loaded.recipe.store.mirror) is not None:
        say(f"  mirror: {place} can be written")
    for line in loaded.recipe.launch.lines():
        say(f"  {line}")
    asked = list(preflight.requests(loaded.recipe, loaded.folder))
    for judge in asked:
        say(f"  {judge}")
    finished = stamp_path(last_artifact(loaded.folder, loaded.recipe)).exists()
    if not finished or any(judge.total > judge.sent for judge in asked):
        warnings += preflight.unreached(loaded.recipe)
    warnings += preflight.foreseen(loaded)
    for warning in [*warnings, *memory_plan.idle(loaded.recipe, where)]:
        say(f"  warning: {warning}")
    if (refused := _refused(loaded)) is not None:
        say("  warning: raft run will refuse this: " + refused.replace("\n", "\n    "))


def _refused(loaded: Any) -> str | None:
    """Why the run of a recipe that is there would not go on with it."""
    from contextlib import suppress
    from functools import partial

    from raft.core.user_code import importable_from
    from raft.models import hub
    from raft.pipeline.loop import JOBS
    from raft.pipeline.observer import Observer
    from raft.store import replay

    walk = partial(JOBS[loaded.recipe.job], loaded.recipe, observer=Observer())
    # What a needed recipe makes may not be there, nor a model of the hub, which only a run fetches.
    with importable_from(loaded.path), hub.nothing_fetched(), suppress(UserError):
        return replay.refusal(loaded, walk)
    return None


def _fit(recipes: list[Any], count: int, gigabytes: int) -> None:
    """Says whether GPUs hold recipes. UserError where they do not, or where that is not known."""
    from raft.cli import memory_plan
    from raft.core.terminal import say

    where, small = memory_plan.card(count, gigabytes), []
    gpus = f"{count} GPUs of {gigabytes} GB" if count > 1 else f"a GPU of {gigabytes} GB"
    for needed in recipes:
        needed.recipe.launch.assume(count)
        turns = memory_plan.plan(needed, where)
        say("\n".join([f"{needed.path} on {gpus}", *memory_plan.lines(turns, where)]))
        for warning in memory_plan.idle(needed.recipe, where):
            say(f"  warning: {warning}")
        if any(memory_plan.lacks(turn, where.memory) for turn in turns):
            several = memory_plan.enough(needed, gigabytes)
            small.append(f"{needed.path} does not fit {gpus}" + (f"; {several}" if several else ""))
        elif unknown := [turn.name for turn in turns if not turn.known]:
            small.append(f"whether {needed.path} fits {gpus} is not known: see {', '.join(unknown)} above")
    if small:
        raise UserError("\n".join(small))


def _measure(loaded: Any, overrides: list[str]) -> None:
    from raft.cli import forecast
    from raft.cli.check_rewards import rehearse
    from raft.core.terminal import say

    forecast.tell_requests(loaded, overrides)
    levels = []
    for finding in rehearse(loaded):
        say(f"  {finding.level:7s}  {finding.reward}: {finding.check.replace('_', ' ')}: {finding.message}")
        levels.append(finding.level)
    if faults := levels.count("fault"):
        raise UserError(f"{faults} of these checks found an unreliable reward; nothing was started")
    if loaded.recipe.job != "align":
        if not levels:
            say(f"nothing to measure: job: {loaded.recipe.job} is not forecast, and no reward model is there to check")
        return
    expected = forecast.forecast(loaded, overrides)
    say("\n".join(forecast.lines(expected)))
    if (faster := forecast.advice(loaded.recipe, expected, len(os.sched_getaffinity(0)))) is not None:
        say(f"  {faster}")
    say(f"  saved in {forecast.write(loaded, expected)}")


def status(options: Namespace) -> None:
    """Says how a run is doing; with --watch again and again, until it ends."""
    from raft.cli import status
    from raft.store import branch
    from raft.store.runs import require_parent
    from raft.store.stamps import require_all

    if options.watch:
        folder = status.watch(options.run, options.files)
    else:
        folder = branch.existing(options.run)
        status.tell(folder, options.files, options.json)
    require_parent(folder)
    require_all(folder)


def plot(options: Namespace) -> None:
    """Draws a figure of one or more runs, and writes its numbers."""
    from raft.core.terminal import say
    from raft.report.figures import picture
    from raft.store import branch

    folders = [branch.whole(folder) for folder in options.runs]
    output = options.output or picture.default(options.figure, folders)
    if options.figure == picture.ALL:
        files, left_out = picture.plot_all(folders, output)
        say("\n".join([*map(str, files), *(f"left out: {figure.name}: {figure.missing}" for figure in left_out)]))
        return
    picture.refuse(output)
    table = picture.plot(options.figure, folders, output)
    say(f"{output}\n{table}")


def show(options: Namespace) -> None:
    """Prints one prompt over all iterations, prompts before and after, or the list of them."""
    from raft.cli import show as shown
    from raft.core.terminal import say
    from raft.store import branch

    folder = branch.whole(options.run)
    if options.list or options.train:
        say("\n".join(shown.trained(folder) if options.train else shown.listed(folder)))
    elif options.prompt_id:
        say(shown.prompt(folder, options.prompt_id))
    else:
        found = shown.before_and_after(folder, *([options.which] if options.which else ["typical", "best"]))
        say(found or "there are no two evaluated policies to compare")


def compare(options: Namespace) -> None:
    """Says how runs differ from the first of them."""
    from raft.cli import compare as comparison
    from raft.core.terminal import say
    from raft.store import branch

    if len(options.runs) < 2:
        raise UserError(f"raft compare takes two runs or more: raft compare {options.runs[0]} OTHER")
    say("\n".join(comparison.compared([branch.whole(folder) for folder in options.runs])))


def select(options: Namespace) -> None:
    """Says what selections would choose of the responses that a run has."""
    import json
    from dataclasses import asdict

    from raft.cli import select as selecting
    from raft.config import recipe
    from raft.core.terminal import say
    from raft.core.user_code import importable_from, importable_in
    from raft.store import branch

    folder = branch.whole(options.run)
    with importable_in([str(folder.absolute())]), importable_from(recipe.begun_with(folder)):
        selections = selecting.named(folder, options.kinds)
        it = selecting.iteration(folder, options.iteration)
        found = selecting.choices(folder, it, selections)
    if options.json:
        for one in found:
            print(json.dumps({"iteration": it.number, **asdict(one)}))
        return
    head, *rows = selecting.table(found)
    legend = "; gold: of its held-out answers" if "gold" in head else ""
    say(f"{folder}, iteration {it.number}: the responses of policy {it.number - 1}{legend}")
    say("\n".join([head, *rows]))
    if options.kinds:
        section, _ = list(selections.values())[-1]
        say()
        if (number := selecting.branch_point(folder, it)) != it.number:
            say(f"policy {it.number - 1}, the start of iteration {it.number}, is gone: the branch begins at {number}")
        say(f"next: {selecting.trains_on(folder, it, section)}")


def report(options: Namespace) -> None:
    """Writes one page of HTML on a run."""
    from raft.core.terminal import say
    from raft.report.page import write as page
    from raft.store import branch

    say(str(page.write(branch.whole(options.run), options.output)))


def export(options: Namespace) -> None:
    """Writes a policy as a folder for others, and uploads it if asked to."""
    from raft.core.terminal import say
    from raft.pipeline import policies
    from raft.report import export as exported
    from raft.store import branch

    if options.alpaca_eval is not None:
        _export_answers(options)
        return
    if options.push is None:
        (folder, found), address = exported.write(options.run, options.to, options.policy), None
    else:
        folder, found, address = exported.push(options.run, options.push, options.to, options.policy)
    what = "the model" if found.number is None else f"policy {found.number}"
    say(f"{folder}  {what} of {options.run}, with a model card and the recipe")
    if (why := policies.none_better(branch.existing(options.run), options.policy)) is not None:
        say(why)
    if address is not None:
        say(f"uploaded to {address}")


def _export_answers(options: Namespace) -> None:
    """Writes the answers of a policy to the held-out prompts."""
    from raft.core.terminal import complain, say
    from raft.pipeline import policies
    from raft.report import export as exported
    from raft.store import branch

    if options.to is not None or options.push is not None:
        raise UserError("--alpaca-eval writes one file and no model folder; leave --to and --push out")
    number, rows = exported.alpaca_eval(options.run, options.alpaca_eval, options.policy)
    say(f"{options.alpaca_eval}  the first answer of policy {number} to each of {len(rows)} held-out prompts")
    if (why := policies.none_better(branch.existing(options.run), options.policy)) is not None:
        say(why)
    if empty := sum(not row["output"].strip() for row in rows):
        complain(f"{empty} of them are empty: the policy answered nothing, or a server withheld the answer")
    if (same := len(rows) - len({row["instruction"] for row in rows})) > 0:
        complain(f"{same} instructions are there twice, as only their system messages differ; AlpacaEval joins by them")


def chat(options: Namespace) -> None:
    """Answers a prompt, or those that are typed, with the first and another policy."""
    from raft.cli import chat as talk

    talk.chat(options.run, options.prompt, options.policy, options.seed)


def evaluate(options: Namespace) -> None:
    """Compares two policies on tasks of lm-evaluation-harness."""
    from raft.cli import harness
    from raft.core.run_paths import RunPaths
    from raft.core.terminal import say
    from raft.pipeline import policies
    from raft.store import branch

    tasks = list(dict.fromkeys(name for word in options.tasks.split(",") if (name := word.strip())))
    if not tasks:
        raise UserError(f"--tasks {options.tasks!r} names no task; for example gsm8k,hellaswag")
    folder = branch.existing(options.run)
    asked = harness.Asked(
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
        include_path=options.include_path,
        batch_size=options.batch_size,
    )
    titles, changes = harness.compare(folder, tasks, options.policy, asked)
    if options.json:
        print(harness.as_json(folder, titles, changes))  # numbers and escaped text: nothing in it can act
        return
    say(f"{harness.table(titles, changes)}\nkept in {RunPaths(folder).lm_eval}")
    if (why := policies.none_better(folder, options.policy)) is not None:
        say(why)


def score(options: Namespace) -> None:
    """Scores existing responses; resumes where it was stopped."""
    from raft.core import progress
    from raft.core.terminal import say

    thoughts = {"reasoning": options.reasoning, "reasoning_marks": options.reasoning_marks}
    with progress.screen("starting"):
        from raft.pipeline import score_file  # imports what takes seconds

        said = score_file.score_file(options.reward, options.responses, options.scores, options.prompts, **thoughts)
    say(said)


def ls(options: Namespace) -> None:
    """Lists the recipes that come with raft, and the runs in a folder of outputs."""
    from raft.cli import catalog
    from raft.core.terminal import say

    say("recipes (raft cp NAME copies one):\n" + "\n".join(catalog.recipes()))
    if made := catalog.made(options.outputs):
        say("\nruns:\n" + "\n".join(made))


def cp(options: Namespace) -> None:
    """Copies a recipe with the files that it names."""
    from raft.cli import catalog
    from raft.core.terminal import say

    copied = catalog.copy(options.recipe, options.to)
    say("\n".join(map(str, copied)))


def options(options: Namespace) -> None:
    """Lists the options of a job or a section of recipes."""
    from raft.cli import options as listed
    from raft.core.terminal import say

    if options.schema:
        import json

        say(json.dumps(listed.schema(), indent=1))
    else:
        say("\n".join(listed.tables() if options.markdown else listed.listed(options.name)))


def completion(options: Namespace) -> None:
    """Prints what a shell has to run so that TAB completes raft's words."""
    from raft.cli import completion
    from raft.core.terminal import say

    say(completion.script(options.shell))


def env(options: Namespace) -> None:
    """Prints what a report of a fault needs: versions, the machine, the device."""
    import platform

    from raft import __version__
    from raft.cli import memory_plan
    from raft.core.terminal import say
    from raft.core.versions import versions

    lines = {"raft": __version__, **versions()}
    lines |= {"system": platform.platform(), "processor": f"{platform.machine()}, {os.cpu_count()} cores"}
    lines["device"] = memory_plan.device().kind
    say("\n".join(f"{name:14s} {value}" for name, value in lines.items()))


def start(loaded: Any, *observers: Any) -> None:
    """Runs a recipe and those it needs, checked first, and tells trackers of it after these observers."""
    from raft.config import preflight
    from raft.pipeline import loop
    from raft.pipeline.observer import Several
    from raft.report.trackers import Tracked

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for needed in [*loaded.needs, loaded]:
        preflight.check(needed, fetch=True)
    loop.run(loaded, Several([*observers, Tracked()]))


def _start(loaded: Any) -> None:
    from raft.core import progress

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with progress.screen("starting"):
        from raft.cli.console import Console  # imports what takes seconds

        start(loaded, Console())
