"""The rewards of a run by policy, from the artifacts that are finished; so it works while the run is live."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from raft.metrics import reward_metrics
from raft.report.figures.table import Number
from raft.store import stamps
from raft.store.keys import Artifact
from raft.store.measuring import ranks_of, rewards_of
from raft.store.stamps import iterations

TRAINING = "scores.jsonl"  # of the training responses: folder i + 1 holds those of policy i

OfPrompts = Callable[[np.ndarray], np.ndarray]


def training(folder: Path) -> dict[int, np.ndarray]:
    """The rewards of each policy's training responses, [N, K] by iteration; folder i + 1 holds those of policy i.

    Without those that only compare the responses of one prompt: they say nothing between prompts.
    """
    found = {number - 1: _rewards(scores) for number, scores in _finished(folder, TRAINING)}
    return {iteration: rewards for iteration, (rewards, comparable) in found.items() if comparable}


def winners(folder: Path) -> dict[int, np.ndarray]:
    """The rewards of what was selected out of each policy's responses, [M] by iteration; none for pairs."""
    found = {
        number - 1: np.array([row["reward"] for row in selected.read() if row.get("reward") is not None], dtype=float)
        for number, selected in _finished(folder, "selected.jsonl")
    }
    return {iteration: rewards for iteration, rewards in found.items() if len(rewards)}


def held_out(folder: Path, name: str) -> dict[int, np.ndarray]:
    """The rewards of each policy's held-out responses, [N, K] by iteration; `name` is "scores" or "gold"."""
    return {iteration: _rewards(scores)[0] for iteration, scores in _finished(folder, f"evaluation/{name}.jsonl")}


def means(folder: Path, name: str, quantities: tuple[tuple[str, OfPrompts], ...]) -> list[Number]:
    """The means over prompts of what is asked of each policy's rewards, with intervals, out of all files of a name.

    `quantities` are names, and functions of rewards [N, K] that return [N]. A file is read again only if it changes:
    the curve is drawn after each iteration.
    """
    found = (_means(*file, name == TRAINING, quantities) for file in _files(folder, name))
    return [one for numbers_of in found for one in numbers_of]


def k_of(folder: Path) -> int | None:
    """How many responses a training prompt has; None if there are none yet, or not equally many in all iterations."""
    widths = {width for _, path, state in _files(folder, TRAINING) if (width := _width(path, state)) is not None}
    return widths.pop() if len(widths) == 1 else None


def number(iteration: int, quantity: str, per_prompt: np.ndarray, rewards: np.ndarray) -> list[Number]:
    """The mean over prompts of values [N] with its bootstrap interval; none if no value is known.

    `rewards` [N, K] are what the values were taken from: they tell which share of them is missing.
    """
    return numbers(iteration, [quantity], per_prompt[:, None], rewards)


def numbers(iteration: int, quantities: list[str], per_prompt: np.ndarray, rewards: np.ndarray) -> list[Number]:
    """The means over prompts of several quantities, [N, Q], with their bootstrap intervals; the unknown are left out.

    The same prompts are drawn for all of them, and at every call. `rewards` is as for `number`.
    """
    missing = float(np.isnan(rewards).mean()) if rewards.size else 0.0
    lows, highs = reward_metrics.bootstrap_bands(per_prompt.astype(float), np.random.default_rng(0))
    known = ~np.isnan(per_prompt)
    return [
        Number(iteration, quantity, float(column[there].mean()), float(low), float(high), int(there.sum()), missing)
        for quantity, column, there, low, high in zip(quantities, per_prompt.T, known.T, lows, highs, strict=True)
        if there.any()
    ]


@lru_cache(maxsize=4096)
def _means(
    place: int, path: Path, state: tuple[int, ...], training: bool, quantities: tuple[tuple[str, OfPrompts], ...]
) -> list[Number]:
    rewards, comparable = _rewards(Artifact.finished(path))
    if training and not comparable:
        return []
    found = (number(place - training, quantity, of_prompts(rewards), rewards) for quantity, of_prompts in quantities)
    return [one for numbers_of in found for one in numbers_of]


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
    """The finished files of a name: the number of the iteration, the path, and what changes when the file does."""
    for iteration in iterations(folder):
        if (state := stamps.state(iteration / name)) is not None:
            yield int(iteration.name), iteration / name, state
