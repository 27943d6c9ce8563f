"""Where every token of an optimiser step lies: the keyed order of the examples, and texts laid side by side.

Pure numpy, so each law has a small test. A packed row holds many texts without padding; their positions start
again at 0, and from that transformers (5 and later) builds a mask in which no text sees another. `fitting.prove`
checks on the model at hand that it does.
"""

import heapq
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raft.seeds import derive


class Texts:
    """Token sequences in a nameless mapped file; memory holds eight bytes for each. First write all, then read."""

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (gone when this object is)
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, ids: Sequence[int] | np.ndarray) -> None:
        """Adds one text."""
        self._file.write(np.asarray(ids, dtype=np.int32).tobytes())
        self._ends.append(self._ends[-1] + len(ids))

    def __getitem__(self, index: int) -> np.ndarray:
        return self._tokens[self._ends[index] : self._ends[index + 1]]

    def lengths(self, indices: Sequence[int] | np.ndarray) -> list[int]:
        """Tokens of each of these texts."""
        return [self._ends[index + 1] - self._ends[index] for index in indices]

    @cached_property
    def _tokens(self) -> np.ndarray:
        self._file.flush()
        return np.memmap(self._file, dtype=np.int32, mode="r")


@dataclass(frozen=True)
class Order:
    """The examples of each optimiser step: a keyed shuffle for each epoch, cut into steps; the last may be smaller."""

    count: int
    batch_size: int
    epochs: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Steps in one epoch."""
        return -(-self.count // self.batch_size)

    def __len__(self) -> int:
        return self.per_epoch * self.epochs

    def step(self, number: int) -> np.ndarray:
        """Indices of the examples that step `number` (from 0) learns."""
        epoch, place = divmod(number, self.per_epoch)
        return _shuffled(self.count, derive(self.seed, "order", epoch))[place * self.batch_size :][: self.batch_size]


@lru_cache(maxsize=1)
def _shuffled(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of the texts in few, evenly filled bins of at most `capacity` tokens; a longer text has a bin of its own.

    Longest first, each into the emptiest bin (Graham's LPT rule), with the fewest bins for which that holds.
    """
    count = min(len(lengths), -(-sum(lengths) // capacity))
    while True:
        spread = _spread(lengths, count)
        if all(len(places) == 1 or sum(lengths[place] for place in places) <= capacity for places in spread):
            return spread
        count += 1


def _spread(lengths: Sequence[int], count: int) -> list[list[int]]:
    spread: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for place in longest_first(lengths):
        load, number = emptiest[0]
        spread[number].append(place)
        heapq.heapreplace(emptiest, (load + lengths[place], number))
    return spread


def rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of the texts in batches of like length: rows times the longest is at most `capacity`, but for one row."""
    batches: list[list[int]] = []
    for place in longest_first(lengths):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > capacity:
            batches.append([])
        batches[-1].append(place)
    return batches


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Places by falling length; equals stay in order."""
    return sorted(range(len(lengths)), key=lambda place: -lengths[place])


class Layout(NamedTuple):
    """Texts as one model input: token t of text i is at row `row[i]`, column `start[i] + t`."""

    inputs: dict[str, np.ndarray]
    row: np.ndarray
    start: np.ndarray


def pack(texts: Sequence[np.ndarray]) -> Layout:
    """One row [1, tokens] without padding; the positions of each text start at 0, and there is no attention mask."""
    lengths = [len(text) for text in texts]
    positions = np.concatenate([np.arange(length) for length in lengths])
    tokens = np.concatenate(texts).astype(np.int64)
    start = np.cumsum([0, *lengths[:-1]])
    return Layout({"input_ids": tokens[None], "position_ids": positions[None]}, np.zeros_like(start), start)


def pad(texts: Sequence[np.ndarray]) -> Layout:
    """One row for each text [texts, longest], padded on the right with token 0, which the attention mask hides."""
    longest = max(len(text) for text in texts)
    tokens = np.zeros((len(texts), longest), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for place, text in enumerate(texts):
        tokens[place, : len(text)] = text
        mask[place, : len(text)] = 1
    row = np.arange(len(texts))
    return Layout({"input_ids": tokens, "attention_mask": mask}, row, np.zeros_like(row))
