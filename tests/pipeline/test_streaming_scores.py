"""Laws of scores that follow responses: the same scores, made earlier, each asked for once."""

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import worlds

from raft.core import records
from raft.core.atomic import write_json
from raft.core.errors import Stopped, UserError
from raft.core.options import speed
from raft.core.records import Group, Policy, Prompt, Response, Score
from raft.pipeline import stages, streaming_scores
from raft.pipeline.streaming_scores import PAUSE, TOGETHER, StreamingScorer, streamed
from raft.rewards.ensemble import Ensemble
from raft.rewards.judge.judge import Judge
from raft.rewards.rule import Rule
from raft.store.keys import Artifact
from raft.store.runs import Folder, Run, stamp_path

COUNT = 40


@dataclass
class World:
    """What happens while two sections work; it is in no key."""

    scored: Counter = field(default_factory=Counter)
    made: Counter = field(default_factory=Counter)
    released: list[int] = field(default_factory=list)  # how much was made when the generator was asked for its memory
    now: threading.Condition = field(default_factory=threading.Condition)

    def tell(self, group: Group) -> None:
        self.scored[group.prompt.id] += 1
        self.now.notify_all()

    def wait_until_scored(self, count: int) -> None:
        with self.now:
            assert self.now.wait_for(lambda: len(self.scored) >= count, timeout=20)


WORLD = World()


@dataclass(frozen=True, kw_only=True)
class Makes:
    """A generator that ends with `fault` at group `until`, and before that waits for scores `lag` groups behind."""

    k: int = 2
    batch_size: int = 1
    lag: int | None = speed(None)

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        for prompt in prompts:
            if WORLD.made.total() == UNTIL[0]:
                raise Stopped
            if self.lag is not None:
                WORLD.wait_until_scored(WORLD.made.total() - self.lag)
            WORLD.made[prompt.id] += 1
            yield Group(prompt, [Response(f"{prompt.text} {k}", [k], None, "stop") for k in range(self.k)])

    def release(self) -> None:
        WORLD.released.append(WORLD.made.total())


UNTIL = [10**9]


@dataclass(frozen=True, kw_only=True)
class Says:
    """A reward that can be asked to fail once, at a group."""

    remote: bool = speed(True)
    batch_size: int = 1
    fails: str = speed("")

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        for group in groups:
            with WORLD.now:
                if group.prompt.id == self.fails and not WORLD.scored[group.prompt.id]:
                    WORLD.tell(group)
                    raise UserError("out of order")
                WORLD.tell(group)
            yield [Score(float(len(one.text)) + k / 7) for k, one in enumerate(group.responses)]

    def release(self) -> None:
        """It holds nothing."""


@pytest.fixture(autouse=True)
def world(monkeypatch) -> Iterator[None]:
    WORLD.__init__()
    UNTIL[0] = 10**9
    lost: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lost.append)
    yield
    assert not lost, "a follower's fault is for its stage to tell"
    assert not [one for one in threading.enumerate() if one.name.startswith("scores of")]


def made(folder: Path, name: str) -> Artifact:
    stamp = {"hash": name, "rows": COUNT, "key": {}}
    write_json(stamp_path(folder / name), stamp)
    return Artifact(folder / name, stamp)


def answer_and_score(folder: Path, generator: Makes, reward: object) -> Artifact:
    """As an iteration of the loop does it."""
    it = Folder(folder, 1, Run(folder, 3))
    if not (folder / "prompts.jsonl").exists():
        folder.mkdir(exist_ok=True)
        records.write(folder / "prompts.jsonl", (Prompt(f"p{n}", text="x" * n).row() for n in range(COUNT)))
        (folder / "policy").mkdir()
    prompts, policy = made(folder, "prompts.jsonl"), made(folder, "policy")
    with streamed(it, "responses.jsonl", {"scores.jsonl": reward}, prompts):
        responses = it.once("responses.jsonl", stages.generate, generator, policy=policy, prompts=prompts)
    return it.once("scores.jsonl", stages.score, reward, prompts=prompts, responses=responses)


def test_a_remote_reward_scores_while_responses_are_made_and_no_group_twice(tmp_path):
    scores = answer_and_score(tmp_path, Makes(lag=2), Says())
    assert WORLD.scored == Counter({f"p{n}": 1 for n in range(COUNT)}) == WORLD.made
    assert scores.rows == COUNT and not list(tmp_path.glob("*.partial"))


def test_a_remote_reward_takes_no_memory_from_the_generator_that_is_at_work(tmp_path):
    answer_and_score(tmp_path / "far", Makes(lag=2), Says())
    assert not any(WORLD.released)  # at 0 another test's generator may have been asked
    answer_and_score(tmp_path / "near", Makes(), Says(remote=False))
    assert WORLD.released[-1] == 2 * COUNT  # a reward of this machine takes it, when all is made


def test_scores_are_those_of_a_reward_that_did_not_follow_byte_by_byte(tmp_path):
    followers, others = (
        answer_and_score(tmp_path / name, Makes(), Says(remote=remote))
        for name, remote in (("one", True), ("other", False))
    )
    assert followers.path.read_bytes() == others.path.read_bytes()


def test_a_reward_of_this_machine_waits_for_the_last_response(tmp_path):
    UNTIL[0] = 30
    with pytest.raises(Stopped):
        answer_and_score(tmp_path, Makes(), Says(remote=False))
    assert not WORLD.scored and not (tmp_path / "scores.jsonl.partial").exists()


def test_a_reward_whose_groups_depend_on_each_other_does_not_follow(tmp_path):
    UNTIL[0] = 30
    with pytest.raises(Stopped):
        answer_and_score(tmp_path, Makes(), Says(batch_size=8))
    assert not WORLD.scored


def test_a_stop_while_both_work_loses_no_response_and_no_score(tmp_path):
    UNTIL[0] = 25
    with pytest.raises(Stopped):
        answer_and_score(tmp_path, Makes(lag=3), Says())
    kept = len((tmp_path / "scores.jsonl.partial").read_bytes().splitlines()) - 1
    assert kept >= 21
    UNTIL[0] = 10**9
    assert answer_and_score(tmp_path, Makes(), Says()).rows == COUNT
    assert WORLD.made.total() == WORLD.scored.total() == COUNT


def test_responses_are_on_the_disk_before_their_scores_are_asked_for(tmp_path, monkeypatch):
    answer_and_score(tmp_path, Makes(), Says(remote=False))
    WORLD.scored.clear()
    (tmp_path / "grows.partial").write_bytes(records.dump({"hash": "h"}) + (tmp_path / "responses.jsonl").read_bytes())
    flushed = []
    monkeypatch.setattr(streaming_scores, "fsync", lambda path: flushed.append((path.name, len(WORLD.scored))))
    follower = StreamingScorer(
        Folder(tmp_path, 1, Run(tmp_path, 3)), "grows", "scored", Says(), made(tmp_path, "prompts.jsonl")
    )
    follower.start()
    WORLD.wait_until_scored(COUNT)
    follower.finish()
    assert flushed == [("grows.partial", number) for number in (0, *range(0, COUNT, TOGETHER))]  # the first: its head


def test_a_row_is_read_when_it_is_whole(tmp_path):
    """Of a row that a kill cut off, the rest never comes: the generator cuts it away, and writes it anew."""
    answer_and_score(tmp_path, Makes(), Says(remote=False))
    WORLD.scored.clear()
    lines = (tmp_path / "responses.jsonl").read_bytes().splitlines(keepends=True)
    place = Folder(tmp_path, 1, Run(tmp_path, 3))
    follower = StreamingScorer(place, "grows", "scored", Says(), made(tmp_path, "prompts.jsonl"))
    grows = tmp_path / "grows.partial"
    grows.write_bytes(records.dump({"hash": "h"}) + lines[0] + lines[1][:-20])
    follower.start()
    WORLD.wait_until_scored(1)
    time.sleep(3 * PAUSE)
    with open(grows, "ab") as more:
        os.truncate(grows, grows.stat().st_size - len(lines[1]) + 20)
        for count, line in enumerate(lines[1:], start=2):
            more.write(line)
            more.flush()
            WORLD.wait_until_scored(count)
    follower.finish()
    assert [row["scores"][0]["reward"] for row in records.read(tmp_path / "scored.partial") if "scores" in row] == [
        n + 2.0 for n in range(COUNT)
    ]


def test_a_reward_that_fails_meanwhile_is_asked_again_in_its_own_stage(tmp_path):
    assert answer_and_score(tmp_path, Makes(lag=COUNT - 2), Says(fails="p0")).rows == COUNT
    assert WORLD.scored["p0"] == 2 and WORLD.scored.total() == COUNT + 1


def test_a_fault_that_stays_is_told_when_all_responses_are_there(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    judge = Judge(url=f"http://127.0.0.1:{port}/v1", model="m", mode="grade", max_retries=0)
    with pytest.raises(UserError, match="no answer from"):
        answer_and_score(tmp_path, Makes(), judge)
    assert (tmp_path / "responses.jsonl.stamp.json").exists()


def test_a_stop_does_not_wait_for_a_judge_that_is_silent(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        judge = Judge(url=f"http://127.0.0.1:{silent.getsockname()[1]}/v1", model="m", mode="grade", timeout=60)
        UNTIL[0] = 5
        began = time.monotonic()
        reached = threading.Thread(target=silent.accept, daemon=True)
        reached.start()

        class Waits(Makes):
            def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
                for group in super().generate(policy, prompts, seed):
                    yield group
                    reached.join(timeout=20)  # the judge is being asked now

        with pytest.raises(Stopped):
            answer_and_score(tmp_path, Waits(), judge)
        assert not reached.is_alive() and time.monotonic() - began < 30


def test_an_ensemble_is_remote_and_forgets_its_neighbours_only_if_all_its_members_do():
    far, near = Judge(url="http://127.0.0.1:1/v1", model="m"), Rule(function="length")
    ensembles = [Ensemble(members=dict(enumerate(members))) for members in ([far, far], [far, near], [near, Blocks()])]
    assert [(one.remote, one.batch_size) for one in ensembles] == [(True, 1), (False, 1), (False, 64)]


class Blocks:
    """A reward that says nothing of blocks."""


@pytest.mark.nightly
def test_a_run_with_a_remote_reward_and_a_remote_gold_equals_one_without(tmp_path):
    (tmp_path / "elsewhere.py").write_text(
        "from dataclasses import dataclass\n"
        "from raft.core.options import speed\n"
        "from raft.core.records import Score\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Words:\n"
        "    remote: bool = speed(False)\n"
        "    batch_size = 1\n\n"
        "    def score(self, groups):\n"
        "        for group in groups:\n"
        "            yield [Score(float(len(one.text.split()))) for one in group.responses]\n\n"
        "    def release(self):\n"
        "        pass\n"
    )
    found = []
    for remote in (True, False):
        reward = {"kind": "elsewhere:Words", "remote": remote}
        worlds.make_recipe(tmp_path, name=f"{remote}", reward=reward, iterations=1, evaluation={"gold": reward})
        done = worlds.raft(tmp_path, "run", "recipe.yaml")
        assert done.returncode == 0, done.stderr
        found.append(worlds.fingerprint(tmp_path / "outputs" / f"{remote}"))
    assert found[0] == found[1]
    assert json.loads((tmp_path / "outputs/True/iterations/001/scores.jsonl.stamp.json").read_text())["rows"] == 16
