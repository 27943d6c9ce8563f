"""The contracts of a generator, a reward and a trainer. A recipe can name any class that fulfils its contract.

`batch_size`, `continuous`, `can_continue`, `remote`, `uses_device`, `comparable`, `release`, `proof`, `takes_pairs`,
`takes_signed`, `needs_logprobs`, `makes`, `resumes` and `can_shard` may be left out. What a user's own kind returns is
validated before it is kept: `answers`, `scored` and `trained` are how a launch calls a generator, a reward and a
trainer.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from raft.core.errors import UserError
from raft.core.records import Example, Group, Pair, Policy, Prompt, Response, Score
from raft.core.user_code import guarded, is_own, name_of

Advance = Callable[[int, int], None]  # (steps done, steps in all), for the progress bar
Dropped = Callable[[str, int | None, str], None]  # (prompt id, index in the group, reason)
LARGEST = 1e100  # of a reward: means and variances of such numbers are still numbers
REQUESTS = "requests"  # of a stamp: how many each judge was sent, by its place in the section
BATCH_SIZE = 64  # groups scored together: floats can depend on the batch, so a resumed run scores the same blocks


class Generator(Protocol):
    """Answers prompts with a policy."""

    @property
    def k(self) -> int:
        """Responses to each prompt."""

    @property
    def batch_size(self) -> int:
        """Prompts that share a batch, and so numerics. A resumed run repeats whole batches; 1 = batch-invariant."""

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        """One group of k responses for each prompt, as soon as it is finished, in any order.

        Response k of a prompt is drawn with the seed `prompt.seed(seed, k)` and nothing else. A generator that says
        `can_continue = True` does so for prompts with `prompt.drawn` too, which have that many responses already.
        `prompts` is read lazily, in whole blocks. A generator that says `continuous = True` may be given None in the
        place of a prompt: there is none yet, and it goes on with what is under way.
        """

    def proof(self) -> dict[str, Any]:
        """How it proved that it held the policy, for the stamp of the responses; JSON-able."""

    def release(self) -> None:
        """Gives the accelerator's memory back; the next call takes it again."""


class Reward(Protocol):
    """Says how good responses are.

    A reward that says `comparable = False` compares the responses of one prompt with each other, by `Score.rank`; its
    numbers say nothing about those of another prompt (`comparable` below). A reward whose scores of a
    group do not depend on the other groups says `batch_size = 1`: a resumed run then scores only the missing groups. A
    reward that also says `remote = True` computes elsewhere, and scores in a thread while this machine generates. One
    that says `uses_device = False` needs no accelerator, so a cluster's devices are not asked.
    """

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """One list for each group, in order, with one score for each response, in order.

        A response that cannot be scored has reward None and an error that says why.
        """

    def release(self) -> None:
        """Gives the accelerator's memory back; the next call takes it again."""


def uses_device(component: Any) -> bool:
    """Whether a generator or a reward computes on a device of this run, as most do that are not remote."""
    return getattr(component, "uses_device", not getattr(component, "remote", False))


def gpus(component: Any) -> int:
    """Over how many GPUs a component is split."""
    return getattr(component, "gpus", 1)


def can_continue(generator: Any) -> bool:
    """Whether a generator can add responses to those that a prompt has already."""
    return getattr(generator, "can_continue", False)


def comparable(reward: Any) -> bool:
    """Whether the numbers of a reward say which of two responses to different prompts is better, as most do."""
    return getattr(reward, "comparable", True)


def batch_size(component: Any) -> int:
    """Groups that share a batch, and so numerics; 1 = batch-invariant."""
    return getattr(component, "batch_size", BATCH_SIZE)


def parts_of(rewards: Mapping[str, Any], has: str) -> Iterator[tuple[str, Any]]:
    """The rewards, and the members of ensembles, that have an attribute, by their keys."""
    for key, reward in rewards.items():
        yield from parts_of({f"{key}.members.{at}": one for at, one in getattr(reward, "members", {}).items()}, has)
        if hasattr(reward, has):
            yield key, reward


def judges(rewards: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The judges among rewards and the members of ensembles, by their keys: what is asked by requests that count."""
    return ((key, part) for key, part in parts_of(rewards, "max_requests") if callable(getattr(part, "needed", None)))


def makes_pairs(selection: Any) -> bool:
    """Whether a selection makes pairs of responses, and does not pick single ones."""
    return getattr(selection, "makes_pairs", False)


def takes_pairs(trainer: Any) -> bool:
    """Whether a trainer learns from pairs of responses, and not from single ones."""
    return getattr(trainer, "takes_pairs", False)


def takes_signed(trainer: Any) -> bool:
    """Whether a trainer can make a response less likely: what a negative weight asks for."""
    return getattr(trainer, "takes_signed", False)


def needs_logprobs(trainer: Any) -> bool:
    """Whether a trainer learns only from responses with the log-probabilities of the policy that generated them."""
    return getattr(trainer, "needs_logprobs", False)


def makes(trainer: Any) -> str:
    """What a trainer makes: a policy or a reward-model."""
    return getattr(trainer, "makes", "policy")


def proof(generator: Any) -> dict[str, Any]:
    """How a generator proved that it held the policy; empty where it does not say."""
    if not hasattr(generator, "proof"):
        return {}
    with guarded(generator):
        return generator.proof()


def release(component: Any) -> None:
    """Has a component give the accelerator's memory back, if it holds any."""
    if hasattr(component, "release"):
        with guarded(component):
            component.release()


def remote(reward: Any) -> bool:
    """Whether a reward needs nothing of this machine, as few do, and scores groups in whatever order they come."""
    return getattr(reward, "remote", False) and batch_size(reward) == 1


class Trainer(Protocol):
    """Makes a policy (or a reward model) out of examples."""

    def train(
        self, start: Path, examples: Iterable[Example | Pair], out: Path, seed: int, advance: Advance, dropped: Dropped
    ) -> dict[str, float]:
        """Writes the folder `out`, which `from_pretrained` and vLLM load, and returns what it measured.

        Deterministic in (start, examples, seed) on one machine. Examples that cannot be trained on are
        named through `dropped`. A trainer that says `resumes = True` is also given `checkpoints`, a folder that
        outlives a kill: called again with the same inputs it goes on from there.
        """


def resumes(trainer: Any) -> bool:
    """Whether a trainer can go on from a checkpoint of its own."""
    return getattr(trainer, "resumes", False)


def can_shard(trainer: Any) -> bool:
    """Whether a trainer can shard weights over the ranks of a training."""
    return getattr(trainer, "can_shard", False)


def trained(
    trainer: Any, start: Path, examples: Iterable[Any], out: Path, seed: int, advance: Advance, dropped: Dropped,
    checkpoints: Path,
) -> dict[str, float]:  # fmt: skip
    """What a trainer measured; its exceptions are reported as its own."""
    more = {"checkpoints": checkpoints} if resumes(trainer) else {}
    with guarded(trainer):
        return trainer.train(start, examples, out, seed, advance, dropped, **more)


def answers(generator: Any, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
    """The groups of a generator. UserError, which names the class, if they are not what was asked for."""
    asked: dict[str, Prompt] = {}

    def noted() -> Iterator[Prompt]:
        for prompt in prompts:
            asked[prompt.id] = prompt
            yield prompt

    if not is_own(generator):
        yield from generator.generate(policy, prompts, seed)
        return
    for group in each(generator, lambda: generator.generate(policy, noted(), seed)):
        if not isinstance(group, Group) or asked.pop(group.prompt.id, None) is None:
            raise _broken(generator, "yields one raft.core.records.Group for each prompt that it took", group)
        if len(group.responses) != generator.k or any(map(_unlike_response, group.responses)):
            raise _broken(
                generator, f"gives k = {generator.k} raft.core.records.Response to each prompt", group.responses
            )
        yield group
    if asked:
        raise _broken(generator, "answers every prompt that it took", f"no answer to {', '.join(list(asked)[:3])}")


def _unlike_response(item: Any) -> bool:
    if not isinstance(item, Response) or not isinstance(item.text, str) or not isinstance(item.token_ids, list):
        return True
    numbers = item.logprobs if item.logprobs is not None else []
    return (
        not all(isinstance(token, int) and token >= 0 for token in item.token_ids)
        or (item.logprobs is not None and len(numbers) != len(item.token_ids))
        or not all(isinstance(number, float) and math.isfinite(number) for number in numbers)
        or not isinstance(item.finish_reason, str)
    )


def scored(reward: Any, groups: list[Group]) -> Iterator[tuple[Group, list[Score]]]:
    """Groups with their scores, in order. UserError, which names the class, if there is not one for each response."""
    lists = each(reward, lambda: reward.score(groups))
    for group in groups:
        scores = next(lists, None)
        if not isinstance(scores, list | tuple) or not all(isinstance(score, Score) for score in scores):
            raise _broken(reward, "yields a list of raft.core.records.Score for each group", scores)
        if len(scores) != len(group.responses):
            counts = f"{len(scores)} for the {len(group.responses)} responses to {group.prompt.id}"
            raise _broken(reward, "gives one score to each response", counts)
        yield group, [_checked(reward, score) for score in scores]
    if (more := next(lists, None)) is not None:
        raise _broken(reward, "yields one list for each group, and then ends", more)


def _checked(reward: Any, score: Score) -> Score:
    """The score with plain floats. UserError: a value is not a number, or not finite."""
    for name, value in {"reward": score.reward, **score.parts}.items():
        none = name == "reward" and value is None and isinstance(score.error, str)
        if not none and not (isinstance(value, Real) and math.isfinite(value) and abs(float(value)) <= LARGEST):
            raise _broken(reward, "gives finite numbers, or None and an error", f"{name} {value!r}")
    known = score.reward if score.reward is None else float(score.reward)
    return Score(known, {str(name): float(part) for name, part in score.parts.items()}, score.error, score.rank)


def rows(source: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a source of prompts or examples, each with its place. UserError, which names the class, if not."""
    for item in each(source, source.rows):
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], dict)):
            raise _broken(source, "yields pairs of a place and a row (a dict)", item)
        yield item


def each(component: Any, make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """The items of what a component yields, each made with its code guarded."""
    with guarded(component):
        items = iter(make())
    while True:
        with guarded(component):
            item = next(items, None)
        if item is None:
            return
        yield item


def _broken(component: Any, owes: str, given: Any) -> UserError:
    shown = given if isinstance(given, str) else repr(given)
    return UserError(f"{name_of(component)} {owes} (raft/core/protocols.py), but here is: {shown[:200]}")
