"""launch: {kind: local}: one device, which goes from one component to the next, and never to one that uses none."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raft.core import device
from raft.core.records import Group, Policy, Prompt, Response, Score
from raft.generators.remote import Remote
from raft.launch.local import Local
from raft.rewards.ensemble import Ensemble
from raft.rewards.judge.judge import Judge
from raft.rewards.rule import Rule

GROUP = Group(Prompt("p", text="why"), [Response("so", [1], None, "stop")])


@dataclass
class Holder:
    """A component that notes when it has to give the device up."""

    released: int = 0
    k: int = 1

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        for _ in prompts:
            yield GROUP

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        for _ in groups:
            yield [Score(1.0)]

    def release(self) -> None:
        self.released += 1


@dataclass
class Elsewhere(Holder):
    """A reward of one's own that says no more than that it is remote."""

    batch_size: int = 1
    remote: bool = True


@pytest.fixture
def holder() -> Iterator[Holder]:
    """What has the device."""
    held = Holder()
    device.take(held)
    yield held
    device.take(None)


def test_a_component_that_uses_no_device_takes_it_from_nobody(holder: Holder):
    local, ours = Local(), Elsewhere()
    assert [scores for _, scores in local.scored(ours, [[GROUP]])] == [[Score(1.0)]]
    assert [*local.scored(Rule(function="regex", args={"pattern": "so"}), [[GROUP]])]
    local.call(ours, lambda component: None)
    for remote in (Remote(url="http://127.0.0.1:9", model="m", k=1), Judge(url="http://127.0.0.1:9", model="m")):
        local.call(remote, lambda component: None)
    assert holder.released == 0


def test_a_component_that_computes_takes_the_device(holder: Holder):
    local, other = Local(), Holder()
    assert [*local.answers(other, Policy(Path(), Path()), [[GROUP.prompt]], 0)] == [GROUP]
    assert holder.released == 1
    mixed: Any = Ensemble(members={"a": holder, "b": Elsewhere()}, combine="mean")
    local.call(mixed, lambda component: None)
    assert other.released == 1
    local.call(None, lambda component: None)
    assert holder.released == 2
