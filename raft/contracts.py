"""What a generator, a reward and a trainer owe the loop. Whatever keeps its contract can be named in a recipe."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from raft.records import Example, Group, Pair, Policy, Prompt, Score

Advance = Callable[[int, int], None]  # (steps done, steps in all), for the progress bar
Dropped = Callable[[str, int | None, str], None]  # (prompt id, index in the group, reason)
LARGEST = 1e100  # of a reward: means and variances of such numbers are still numbers
BLOCK = 64  # groups scored together: floats can depend on the batch, so a resumed run scores the same blocks


class Generator(Protocol):
    """Answers prompts with a policy."""

    @property
    def k(self) -> int:
        """Responses to each prompt."""

    @property
    def block(self) -> int:
        """How many prompts, in order, influence each other's floats; 1 where each response stands for itself."""

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        """One group of k responses for each prompt, as soon as it is finished, in any order.

        Response k of a prompt is drawn with the seed `derive(seed, prompt.id, k)` and nothing else.
        `prompts` is read lazily, in whole blocks.
        """

    def release(self) -> None:
        """Gives the accelerator's memory back; the next call takes it again."""


class Reward(Protocol):
    """Says how good responses are.

    A reward that says `comparable = False` compares the responses of one prompt with each other, by `Score.rank`; its
    numbers say nothing about those of another prompt (`comparable` below). One whose scores of a group do not depend
    on the other groups says `block = 1`: then a run that goes on scores only the missing groups. One that also says
    `remote = True` computes elsewhere, and scores in a thread while this machine still generates.
    """

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """One list for each group, in order, with one score for each response, in order.

        A response that cannot be scored has reward None and an error that says why.
        """

    def release(self) -> None:
        """Gives the accelerator's memory back; the next call takes it again."""


def comparable(reward: Any) -> bool:
    """Whether the numbers of a reward say which of two responses to different prompts is better, as most do."""
    return getattr(reward, "comparable", True)


def block(reward: Any) -> int:
    """How many groups, in order, influence each other's scores; 1 where each group stands for itself."""
    return getattr(reward, "block", BLOCK)


def remote(reward: Any) -> bool:
    """Whether a reward needs nothing of this machine, as few do, and scores groups in whatever order they come."""
    return getattr(reward, "remote", False) and block(reward) == 1


class Trainer(Protocol):
    """Makes a policy (or a reward model) out of examples."""

    def train(
        self, start: Path, examples: Iterable[Example | Pair], out: Path, seed: int, advance: Advance, dropped: Dropped
    ) -> dict[str, float]:
        """Writes the folder `out`, which `from_pretrained` and vLLM load, and returns what it measured.

        Deterministic in (start, examples, seed) on one machine. Examples that cannot be trained on are
        named through `dropped`.
        """
