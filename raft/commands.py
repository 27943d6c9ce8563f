"""What each command does; cli.py reads the arguments and turns faults into exit statuses."""

import os
from argparse import Namespace
from typing import Any

from raft.errors import UserError


def run(options: Namespace) -> None:
    """Starts a recipe's run, or goes on with it."""
    from raft import recipe

    _start(recipe.load(recipe.find(options.recipe), options.overrides))


def resume(options: Namespace) -> None:
    """Goes on with a run from its own folder, or branches off a new one."""
    from raft import branch, recipe

    folder = branch.existing(options.run)
    if options.from_iteration is None:
        _start(recipe.load_run(folder, options.overrides))
        return
    _start(branch.off(folder, options.from_iteration, options.overrides))


def check(options: Namespace) -> None:
    """Says everything that is wrong with a recipe; loads no weights but, with --measure, those of its rewards."""
    from raft import preflight, recipe
    from raft.terminal import say

    loaded = recipe.load(recipe.find(options.recipe), options.overrides)
    for one in [*loaded.needs, loaded]:
        preflight.check(one)
        say(f"{one.path}: no fault found (job: {one.recipe.job}, run: {one.folder})")
    if options.measure:
        _measure(loaded)


def _measure(loaded: Any) -> None:
    from raft.rehearsal import rehearse
    from raft.terminal import say

    faults = 0
    for found in rehearse(loaded):
        say(f"  {found.level:7s}  {found.reward}: {found.check.replace('_', ' ')}: {found.message}")
        faults += found.level == "fault"
    if faults:
        raise UserError(f"{faults} of these checks found a reward that cannot be trusted; nothing was started")


def status(options: Namespace) -> None:
    """Lists what a run has made."""
    from raft import branch, runs, show
    from raft.terminal import say

    folder = branch.existing(options.run)
    say(show.status(folder, runs.is_running(folder)))


def plot(options: Namespace) -> None:
    """Draws the reward curves of one or more runs."""
    from raft import branch, runs
    from raft.plots import reward_curves
    from raft.terminal import say

    drawn = []
    for folder in map(branch.existing, options.runs):
        rows = runs.metrics_rows(folder)
        if not rows:
            raise UserError(f"{folder} has no finished iteration to draw yet; see raft status {folder}")
        drawn.append((folder.name, rows))
    output = options.output or options.runs[0] / "reward_curve.png"
    reward_curves(drawn, output)
    say(str(output))


def show(options: Namespace) -> None:
    """Prints one prompt over all iterations."""
    from raft import branch
    from raft import show as shown
    from raft.terminal import say

    folder = branch.existing(options.run)
    say(shown.prompt(folder, options.prompt_id) if options.prompt_id else shown.before_and_after(folder))


def score(options: Namespace) -> None:
    """Scores responses that somebody else made; goes on where it was stopped."""
    from raft import scoring
    from raft.terminal import say

    say(scoring.score_file(options.reward, options.responses, options.scores, options.prompts))


def _start(loaded: Any) -> None:
    from raft import loop, preflight
    from raft.narrator import Narrator

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for one in [*loaded.needs, loaded]:
        preflight.check(one, fetch=True)
    loop.run(loaded, Narrator())
