"""What an optimiser step reads: texts as tokens on the disk, and the keyed order of the examples."""

import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from raft.core.seeds import derive


class Texts:
    """Sequences, of tokens or other numbers, in a nameless mapped file; memory holds eight bytes for each.

    First write all, then read.
    """

    def __init__(self, folder: Path, dtype: type = np.int32):
        self._dtype = dtype
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (gone when this object is)
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, ids: Sequence[float] | np.ndarray) -> None:
        """Adds one text."""
        self._file.write(np.asarray(ids, dtype=self._dtype).tobytes())
        self._ends.append(self._ends[-1] + len(ids))

    def __getitem__(self, index: int) -> np.ndarray:
        return self._tokens[self._ends[index] : self._ends[index + 1]]

    def lengths(self, indices: Sequence[int] | np.ndarray) -> list[int]:
        """Tokens of each of these texts."""
        return [self._ends[index + 1] - self._ends[index] for index in indices]

    @cached_property
    def _tokens(self) -> np.ndarray:
        self._file.flush()
        return np.memmap(self._file, dtype=self._dtype, mode="r")


@dataclass(frozen=True)
class Order:
    """The examples of each optimiser step: a keyed shuffle for each epoch, cut into steps; the last may be smaller."""

    count: int
    batch_size: int
    num_train_epochs: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Steps in one epoch."""
        return -(-self.count // self.batch_size)

    def __len__(self) -> int:
        return self.per_epoch * self.num_train_epochs

    def step(self, number: int) -> np.ndarray:
        """Indices of the examples that step `number` (from 0) learns."""
        epoch, place = divmod(number, self.per_epoch)
        return _shuffled(self.count, derive(self.seed, "order", epoch))[place * self.batch_size :][: self.batch_size]


@lru_cache(maxsize=1)
def _shuffled(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def unlearnable(prompt: Sequence[int], response: Sequence[int], limit: tuple[int, str]) -> str | None:
    """Why a response to a prompt, both as tokens, cannot be learned; None if it can.

    `limit` is the most tokens that both together may have, and what says so.
    """
    length, (longest, of) = len(prompt) + len(response), limit
    if not response:
        return "the response has no tokens"
    if not prompt:
        return "the prompt has no tokens, so nothing predicts the first of the response"
    return f"{length} tokens, more than {of} ({longest})" if length > longest else None
