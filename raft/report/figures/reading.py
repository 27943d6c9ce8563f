"""The rewards of a run by policy, from the artifacts that are finished; so it works while the run is live."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import numpy as np

from raft.core.run_paths import ROUNDS, IterationPaths, RunPaths
from raft.metrics import reward_metrics
from raft.report.figures.table import Number
from raft.store import stamps
from raft.store.keys import Artifact
from raft.store.measuring import first_round, incomparable, ranks_of, rewards_of

OfPrompts = Callable[[np.ndarray], np.ndarray]

TRAINING = "scores"  # of the training responses that are a fair sample: folder i + 1 holds those of policy i
REWARDS: dict[str, tuple[tuple[str, OfPrompts], ...]] = {  # the quantities of each file of scores, by IterationPaths
    TRAINING: (("reward/best_of_k", reward_metrics.prompt_best), ("reward/mean", reward_metrics.prompt_means)),
    "evaluation.scores": (("reward/eval", reward_metrics.prompt_means),),
    "evaluation.gold": (("gold/eval", reward_metrics.prompt_means),),
}
FILES = {TRAINING: "scores", "selected": "scores", "evaluation.scores": "eval", "evaluation.gold": "gold"}
NO_TRAINING_REWARDS = (
    "no rewards of training responses that can be compared between prompts; wait for its first scores (raft status "
    "shows how far it is)"
)


def training(folder: Path) -> dict[int, np.ndarray]:
    """The rewards of each policy's training responses, [N, K] by its number; folder i + 1 holds those of policy i.

    Without those that only compare the responses of one prompt: they say nothing between prompts.
    """
    found = {number - 1: _rewards(scores) for number, scores in _finished(folder, TRAINING)}
    return {policy: rewards for policy, (rewards, comparable) in found.items() if comparable}


def winners(folder: Path) -> dict[int, np.ndarray]:
    """The rewards of what was selected out of each policy's responses, [M] by its number; none for pairs."""
    found = {
        number - 1: np.array([row["reward"] for row in selected.read() if row.get("reward") is not None], dtype=float)
        for number, selected in _finished(folder, "selected")
    }
    return {policy: rewards for policy, rewards in found.items() if len(rewards)}


def held_out(folder: Path, name: str) -> dict[int, np.ndarray]:
    """The rewards of each policy's held-out responses, [N, K] by its number; `name` is "scores" or "gold"."""
    return {policy: _rewards(scores)[0] for policy, scores in _finished(folder, f"evaluation.{name}")}


def rewards(folder: Path) -> list[Number]:
    """The means over prompts of each policy's rewards, with intervals, quantity by quantity (REWARDS).

    A file is read again only if it changes: the curve is drawn after each iteration, and several figures need it.
    """
    found = [one for name in REWARDS for file in _files(folder, name) for one in _means(*file, name)]
    order = [quantity for quantities in REWARDS.values() for quantity, _ in quantities]
    return sorted(found, key=lambda one: order.index(one.quantity))


def k_of(folder: Path) -> int | None:
    """How many responses a training prompt has; None if there are none yet, or not equally many everywhere."""
    files = list(_files(folder, TRAINING))
    widths = {width for _, path, state in files if (width := _width(path, state)) is not None}
    in_rounds = any(path.parent.parent.name == ROUNDS for _, path, _ in files)
    return widths.pop() if len(widths) == 1 and not in_rounds else None


def numbers(policy: int, quantities: list[str], per_prompt: np.ndarray, table: np.ndarray) -> list[Number]:
    """The means over prompts of several quantities, [N, Q], with their bootstrap intervals; the unknown are left out.

    The same prompts are drawn for all of them, and at every call. `table` are the rewards [N, K] that the values were
    taken from: they tell which share is missing.
    """
    missing = float(np.isnan(table).mean()) if table.size else 0.0
    lows, highs = reward_metrics.bootstrap_bands(per_prompt.astype(float), np.random.default_rng(0))
    known = ~np.isnan(per_prompt)
    return [
        Number(policy, quantity, float(column[there].mean()), float(low), float(high), int(there.sum()), missing)
        for quantity, column, there, low, high in zip(quantities, per_prompt.T, known.T, lows, highs, strict=True)
        if there.any()
    ]


@lru_cache(maxsize=4096)
def _means(place: int, path: Path, state: tuple[int, ...], name: str) -> list[Number]:
    table, comparable = _rewards(Artifact.finished(path))
    if name == TRAINING and not comparable:
        return []
    policy = place - (name == TRAINING)
    per_prompt = np.stack([of_prompts(table) for _, of_prompts in REWARDS[name]], axis=-1)
    return numbers(policy, [quantity for quantity, _ in REWARDS[name]], per_prompt, table)


@lru_cache(maxsize=4096)
def _width(path: Path, state: tuple[int, ...]) -> int | None:
    first = next(Artifact.finished(path).read(), None)
    return None if first is None else len(first["scores"])


def _rewards(scores: Artifact) -> tuple[np.ndarray, bool]:
    """The rewards [N, K], and whether they can be compared between prompts."""
    return rewards_of(scores)[0], ranks_of(scores) is None


def _finished(folder: Path, name: str) -> Iterator[tuple[int, Artifact]]:
    """An artifact of every iteration that has finished it."""
    for place, path, _ in _files(folder, name):
        yield place, Artifact.finished(path)


def _files(folder: Path, name: str) -> Iterator[tuple[int, Path, tuple[int, ...]]]:
    """The finished files of a name: the number of the iteration, the path, and what changes when the file does.

    Those of a branch that another reward or generator made are left out. A run of job: label has the responses of a
    first iteration, in its own folder.
    """
    run, others = RunPaths(folder), incomparable(folder)[FILES[name]]
    for number, place in [(it.number, it) for it in run.iterations()] or [(1, IterationPaths(folder))]:
        path = first_round(place).scores if name == TRAINING else attrgetter(name)(place)
        if number not in others and (state := stamps.state(path)) is not None:
            yield number, path, state
