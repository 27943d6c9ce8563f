"""The rewards of a run by policy, from the artifacts that are finished; so it works while the run is live."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from raft import metrics
from raft.curves import Number
from raft.keys import Artifact
from raft.measuring import ranks_of, rewards_of
from raft.stamps import iterations, read_stamp


def training(folder: Path) -> dict[int, np.ndarray]:
    """The rewards of each policy's training responses, [N, K] by iteration; folder i + 1 holds those of policy i.

    Without those that only compare the responses of one prompt: they say nothing between prompts.
    """
    found = {number - 1: _rewards(scores) for number, scores in _finished(folder, "scores.jsonl")}
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


def k_of(folder: Path) -> int | None:
    """How many responses a training prompt has; None if there are none yet, or not equally many in all iterations."""
    firsts = (next(scores.read(), None) for _, scores in _finished(folder, "scores.jsonl"))
    widths = {len(first["scores"]) for first in firsts if first is not None}
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
    lows, highs = _bands(per_prompt.astype(float).tobytes(), len(quantities))
    known = ~np.isnan(per_prompt)
    return [
        Number(iteration, quantity, float(column[there].mean()), float(low), float(high), int(there.sum()), missing)
        for quantity, column, there, low, high in zip(quantities, per_prompt.T, known.T, lows, highs, strict=True)
        if there.any()
    ]


@lru_cache(maxsize=512)  # the curve is drawn again after each iteration, and what was measured once stays as it is
def _bands(per_prompt: bytes, quantities: int) -> tuple[np.ndarray, np.ndarray]:
    return metrics.bootstrap_bands(np.frombuffer(per_prompt).reshape(-1, quantities), np.random.default_rng(0))


def _rewards(scores: Artifact) -> tuple[np.ndarray, bool]:
    """The rewards [N, K], and whether they can be compared between prompts."""
    return _read(scores.path, scores.path.stat().st_mtime_ns)


@lru_cache(maxsize=128)
def _read(path: Path, written: int) -> tuple[np.ndarray, bool]:
    scores = Artifact(path, {})
    return rewards_of(scores)[0], ranks_of(scores) is None


def _finished(folder: Path, name: str) -> Iterator[tuple[int, Artifact]]:
    """An artifact of every iteration that has finished it."""
    for iteration in iterations(folder):
        if (stamp := read_stamp(iteration / name)) is not None:
            yield int(iteration.name), Artifact(iteration / name, stamp)
