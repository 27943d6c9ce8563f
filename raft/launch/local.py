"""kind: local. One process on one device, whose memory generator, reward and trainer take in turns.

The stages call a launch for all that a device computes; `raft.launch.ray.Ray` has the same methods.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raft.core import device, protocols
from raft.core.protocols import Advance, Dropped
from raft.core.records import Group, Policy, Prompt, Score

if TYPE_CHECKING:
    from raft.models.logprobs import Likelihood  # which imports numpy

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Local:
    """kind: local. One process on one device, which generates, scores and trains in turns."""

    def answers(self, generator: Any, policy: Policy, blocks: Iterable[list[Prompt]], seed: int) -> Iterator[Group]:
        """The groups of a generator as they finish; a block holds the prompts that share its numerics."""
        device.take(generator)
        return protocols.answers(generator, policy, (prompt for block in blocks for prompt in block), seed)

    def proof(self, generator: Any) -> dict[str, Any]:
        """How the generator that answered last proved that it held the policy."""
        return protocols.proof(generator)

    def scored(self, reward: Any, blocks: Iterable[list[Group]]) -> Iterator[tuple[Group, list[Score]]]:
        """Groups with their scores, in any order; a block holds the groups that are scored together."""
        device.take(reward)
        return (pair for block in blocks for pair in protocols.scored(reward, block))

    def likelihoods(self, model: "Likelihood", blocks: Iterable[list[Group]]) -> Iterator[tuple[Group, list[Score]]]:
        """Groups with the log-probabilities of their responses under a policy, in any order."""
        return self.scored(model, blocks)

    def train(
        self, trainer: Any, start: Path, examples: Iterable[Any], out: Path, seed: int, advance: Advance,
        dropped: Dropped, checkpoints: Path,
    ) -> dict[str, float]:  # fmt: skip
        """What the trainer measured; it has written its model into `out`, and went on from its own checkpoints."""
        device.take(None)
        measured = protocols.trained(trainer, start, examples, out, seed, advance, dropped, checkpoints)
        device.take(None)
        return measured

    def call(self, component: Any, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function that computes on the device; its first argument is a component, or None."""
        device.take(component)
        return function(component, *arguments)

    def scores_apart(self, reward: Any) -> bool:
        """Whether a reward has devices of its own, on which it can score while others generate."""
        return False

    def lanes(self) -> list[dict[str, Any]]:
        """What each worker of a cluster has done of the stage that is being made."""
        return []

    def taken(self) -> list[dict[str, Any]]:
        """The same, of a stage that has just been made; the next one starts without any."""
        return []

    def ranks(self) -> int:
        """How many ranks a training has."""
        return 1

    def assume(self, gpus: int) -> None:
        """Plans for so many GPUs, which need not be here; it uses one of them."""

    def lines(self) -> list[str]:
        """What `raft check` says of it."""
        return []

    def close(self) -> None:
        """Gives everything back."""
