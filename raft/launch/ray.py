"""kind: ray. Generation, scoring and training on the devices of a Ray cluster; stages and artifacts stay the same.

This process drives: it alone reads and writes artifacts. Each device of the cluster has a worker, an actor that
generates, scores and trains in turns, as `kind: local` does on its one device (`raft.launch.worker`). Prompts go out as
engines have room for them, and come back as groups in any order; a response depends on its seed alone, so it does not
matter which worker makes it. What a dead worker had under way is given to others; a block that was under way whenever
workers died is tried alone, and named if it kills a worker again.
"""

import logging
import os
import pickle
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from raft.core import device, logs, progress, protocols, signals
from raft.core.errors import UserError, install_extra
from raft.core.options import faults_of_range
from raft.core.protocols import Advance, Dropped
from raft.core.records import Group, Policy, Prompt, Score
from raft.core.user_code import folders, is_own
from raft.core.versions import versions
from raft.launch import vllm_options
from raft.launch.local import Local

if TYPE_CHECKING:
    from raft.models.logprobs import Likelihood  # which imports numpy

LOG = logging.getLogger(__name__)
T = TypeVar("T")

TOGETHER = 32  # prompts that a worker is handed at once: with 4, an engine took 12 % more steps until it was full
LOOK = 2.0  # seconds between two looks at the cluster
GOODBYE = 1.0  # seconds that the last words of all workers may take
TICK = 0.5  # seconds after which the driver looks for signals
NO_RAY = f"ray is not installed here; {install_extra('ray')}"


@dataclass(frozen=True, kw_only=True)
class Ray(Local):
    """kind: ray. A worker on each GPU of the cluster, or on each CPU core where it has no GPU.

    `address` is that of a running cluster (`auto`: the one on this machine). Without it and without RAY_ADDRESS a
    cluster is started on this machine, for this run. `workers` bounds the number of workers; without GPUs they share
    the cores evenly. A worker has `gpus_per_worker` GPUs (or cores) of one node, over which its engine can split a
    policy (tensor_parallel_size), and trains with a rank on each. `reward_workers` of the workers do nothing but score,
    while the others generate. `shard` says whether each rank trains with a copy of the weights (none) or holds a part
    of them (fsdp); auto shards what does not fit one GPU. `env` is set in every worker.

    A worker that dies is started again. The run fails after `failures` deaths for each worker in a row without any
    progress, after `failures` deaths with the same prompt under way, or when no worker has been ready for `wait`
    seconds.

    Rules, judges and everything behind a url are called by the driver, the process of `raft run`.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: int = 1
    reward_workers: int = 0
    shard: Literal["auto", "none", "fsdp"] = "auto"
    failures: int = 3
    wait: float = 600.0
    env: dict[str, str] = field(default_factory=dict)

    def faults(self) -> Iterator[tuple[str, str]]:
        if find_spec("ray") is None:
            yield "kind", NO_RAY
        if self.address is not None and self.address.startswith("ray://"):
            yield (
                "address",
                "raft cannot run through Ray's client; start it on a node of the cluster, with address: auto",
            )
        yield from faults_of_range(self, workers=(1, 100_000), failures=(2, 1000), wait=(0, float("inf")))
        yield from faults_of_range(self, reward_workers=(0, 100_000), gpus_per_worker=(1, 1024))
        if self.workers is not None and self.reward_workers >= self.workers:
            yield "reward_workers", f"all {self.workers} workers would score; leave at least one to generate"

    @cached_property
    def _cluster(self) -> "Cluster":
        return Cluster(self)

    @cached_property
    def _scorers(self) -> "Cluster":
        """The workers that score: those of their own, or all."""
        return Cluster(self, beside=self._cluster) if self.reward_workers else self._cluster

    def scores_apart(self, reward: Any) -> bool:
        return self.reward_workers > 0 and protocols.uses_device(reward)

    @cached_property
    def _proofs(self) -> list[dict[str, Any]]:
        return []

    def answers(self, generator: Any, policy: Policy, blocks: Iterable[list[Prompt]], seed: int) -> Iterator[Group]:
        if not protocols.uses_device(generator):
            yield from super().answers(generator, policy, blocks, seed)
            return
        self._proofs.clear()
        there = Policy(policy.path.absolute(), policy.probe.absolute())
        work = Work(pickled(generator), there, seed, [Block(block, [one.id for one in block]) for block in blocks])
        for name, group in self._cluster.done(work):
            if name is None:
                self._proofs.append(group)
            else:
                yield group

    def proof(self, generator: Any) -> dict[str, Any]:
        """The proof of the worker that was farthest from its policy's probe."""
        if not protocols.uses_device(generator):
            return super().proof(generator)
        return max(self._proofs, key=lambda proof: proof.get("probe_rms_nats", 0.0), default={})

    def scored(self, reward: Any, blocks: Iterable[list[Group]]) -> Iterator[tuple[Group, list[Score]]]:
        if not protocols.uses_device(reward):
            return super().scored(reward, blocks)
        return _scored(self._scorers, reward, blocks)

    def likelihoods(self, model: "Likelihood", blocks: Iterable[list[Group]]) -> Iterator[tuple[Group, list[Score]]]:
        return _scored(self._cluster, replace(model, folder=model.folder.absolute()), blocks)

    def train(
        self, trainer: Any, start: Path, examples: Iterable[Any], out: Path, seed: int, advance: Advance,
        dropped: Dropped, checkpoints: Path,
    ) -> dict[str, float]:  # fmt: skip
        ranks = 1 if is_own(trainer) else None
        there = (start.absolute(), list(examples), out.absolute(), seed, checkpoints.absolute(), self.shard)
        job = (pickled(trainer), *there)
        measured, drops = self._cluster.trained(job, out, ranks, advance)
        for drop in drops:
            dropped(*drop)
        return measured

    def call(self, component: Any, function: Callable[..., T], *arguments: Any) -> T:
        if not protocols.uses_device(component):
            return super().call(component, function, *arguments)
        there = [one.absolute() if isinstance(one, Path) else one for one in arguments]
        return self._cluster.called(pickled(component), function, there)

    def lanes(self) -> list[dict[str, Any]]:
        return [asdict(lane) for cluster in self._clusters() for lane in cluster.lanes]

    def taken(self) -> list[dict[str, Any]]:
        taken = self.lanes()
        for cluster in self._clusters():
            cluster.lanes.clear()
        return taken

    def _clusters(self) -> list["Cluster"]:
        """Those that have been started, the one that joined first."""
        made = [cluster for name in ("_cluster", "_scorers") if (cluster := vars(self).get(name)) is not None]
        return made[:1] if made[1:] == made[:1] else made

    @cached_property
    def _found(self) -> list["Slot"]:
        """The devices of the cluster, which is joined for the moment."""
        own = _begin(self)
        slots = _slots(self)
        if own:
            import ray

            ray.shutdown()
        return slots

    def assume(self, gpus: int) -> None:
        """Plans for one node with so many GPUs; no cluster is joined."""
        count = min(gpus // self.gpus_per_worker, self.workers or gpus)
        vars(self)["_found"] = [Slot("assumed", place, count, True, 0) for place in range(count)]

    def ranks(self) -> int:
        return max(0, len(self._found) - self.reward_workers) * self.gpus_per_worker

    def lines(self) -> list[str]:
        """The nodes of the cluster and their devices. UserError if all of them would only score."""
        slots = self._found
        _require_room(self, slots)
        nodes = {slot.node: [one for one in slots if one.node == slot.node] for slot in slots}
        return [f"launch: workers: {len(slots)}, nodes: {len(nodes)}"] + [
            f"  node {node[:8]}: workers: {len(some)}, "
            + (f"GPUs of each: {self.gpus_per_worker}" if some[0].gpu else f"which share cores: {some[0].cpus}")
            for node, some in nodes.items()
        ]

    def close(self) -> None:
        """Ends the workers, and the cluster if it was started here."""
        for cluster in reversed(self._clusters()):
            cluster.close()
        for name in ("_cluster", "_scorers"):
            vars(self).pop(name, None)


def _scored(cluster: "Cluster", component: Any, blocks: Iterable[list[Group]]) -> Iterator[tuple[Group, list[Score]]]:
    """Groups with what a component says of them, as they come."""
    asked: dict[str, Group] = {}

    def noted() -> Iterator[Block]:
        for block in blocks:
            asked.update((group.prompt.id, group) for group in block)
            yield Block(block, [group.prompt.id for group in block])

    for name, scores in cluster.done(Work(pickled(component), None, 0, noted())):
        yield asked.pop(str(name)), scores


def pickled(component: Any) -> bytes:
    """A component as workers take it."""
    return pickle.dumps(component if component is None else replace(component))  # without what it has loaded


class Slot(NamedTuple):
    """A part of the devices of a node: some of its GPUs, or one of `of` parts of its `cpus` cores."""

    node: str
    place: int
    of: int
    gpu: bool
    cpus: int

    @property
    def name(self) -> str:
        """What it is called in `raft status` and in the report."""
        return f"{self.node[:8]}/{self.place}"


@dataclass
class Block:
    """What shares its numerics, and so is asked again as a whole; `left` are the ids that have not come back."""

    items: list[Any]
    left: list[str]
    deaths: int = 0


@dataclass
class Work:
    """A component, and the blocks that it is asked for: lazily, those that came back from the dead first."""

    component: bytes
    policy: Policy | None
    seed: int
    blocks: Iterable[Block]

    def __post_init__(self) -> None:
        self.known = len(self.blocks) if isinstance(self.blocks, list) else None  # how many blocks there are in all
        self._rest, self._back = iter(self.blocks), deque[Block]()
        self._next: Block | None = None
        self._taken = 0

    def left(self) -> int:
        """How many blocks are still to be handed out, if it is known how many there are."""
        return (self.known or 0) - self._taken + len(self._back)

    def waits(self) -> bool:
        """Whether a block is left to be handed out; none is after a signal."""
        if signals.asked():
            return False
        if not self._back and self._next is None:
            self._next = next(self._rest, None)
        return bool(self._back) or self._next is not None

    def suspect(self, failures: int) -> bool:
        """Whether the next block is to be tried alone."""
        return bool(self._back) and self._back[0].deaths >= failures - 1

    def take(self) -> Block:
        """The next block; there is one."""
        if self._back:
            return self._back.popleft()
        block, self._next = self._next or next(self._rest), None
        self._taken += 1
        return block

    def put_back(self, blocks: Iterable[Block]) -> None:
        """Blocks that a worker died with: the least suspect ones first, so that the others are soon alone."""
        self._back = deque(sorted([*blocks, *self._back], key=lambda block: block.deaths))


@dataclass
class Lane:
    """What a worker did of a stage: from when to when (seconds since 1970), and how many prompts or steps."""

    worker: str
    began: float
    ended: float
    done: int = 0
    died: bool = False


class Hand:
    """What the driver holds of a worker."""

    def __init__(self, actor: Any, slot: Slot):
        self.actor, self.slot = actor, slot
        self.lane = Lane(slot.name, time.time(), time.time())
        self.ready: Any = actor.ready.remote()  # None once it is
        self.stream: Any = None  # of the run, while one is under way
        self.feeding: Any = None  # the last call of `feed`, while the worker has not taken it
        self.saying: Any = None  # the last call of `said`, while it has not been answered
        self.ended = False  # whether it knows that there is no more
        self.blocks: list[Block] = []  # under way

    def waited_for(self) -> list[Any]:
        """What can become ready."""
        return [one for one in (self.ready, self.stream, self.feeding) if one is not None]

    def begin(self, work: Work) -> None:
        """Starts a run."""
        run = self.actor.run.options(num_returns="streaming")
        self.stream, self.ended = run.remote(work.component, work.policy, work.seed), False

    def give(self, blocks: list[Block] | None) -> None:
        """Hands blocks out; None: there are no more."""
        self.ended = blocks is None
        self.blocks += blocks or []
        feed = self.actor.feed.options(concurrency_group="feed")
        self.feeding = feed.remote(None if blocks is None else [block.items for block in blocks])

    def end(self) -> None:
        """Ends the worker, and lets go of what Ray counts: in another cluster the same numbers mean other actors."""
        import ray

        ray.kill(self.actor)
        self.actor = self.ready = self.stream = self.feeding = self.saying = None

    def listen(self) -> None:
        """Writes into the log what the worker's libraries have logged, and asks for more."""
        import ray

        if self.ready is not None:
            return
        if self.saying is not None and ray.wait([self.saying], timeout=0)[0]:
            answered, self.saying = self.saying, None
            with suppress(ray.exceptions.RayError):  # it died, which others say
                for level, text in ray.get(answered):
                    LOG.log(level, "worker %s: %s", self.slot.name, text)
        if self.saying is None:
            self.saying = self.actor.said.options(concurrency_group="log").remote()


class Cluster:
    """The workers of a run, or those that score `beside` others."""

    def __init__(self, options: Ray, beside: "Cluster | None" = None):
        self.options, self.hands, self.looked = options, list[Hand](), 0.0
        self.scores = beside is not None
        self.beside = beside
        if beside is not None:
            beside.beside = self
        self.lanes: list[Lane] = []  # of the stage that is being made
        self.deaths, self.reason = 0, ""  # since the last progress, and why the last worker died
        self.alone = time.monotonic()  # since when no worker is ready
        self.size = 1  # the most workers that there have been
        self.own = _begin(options)
        if beside is None:
            _require_room(options, _slots(options))
        self.look()

    def close(self) -> None:
        """Ends the workers, and leaves the cluster, which ends if it was started here."""
        import ray

        for _ in range(2):  # a call that is under way knows nothing of the last seconds
            self.listen()
            if saying := [hand.saying for hand in self.hands if hand.saying is not None]:
                ray.wait(saying, num_returns=len(saying), timeout=GOODBYE)
        self.listen()
        for hand in self.hands:
            hand.end()
        self.hands.clear()
        if self.own:
            ray.shutdown()

    def look(self) -> None:
        """Starts a worker on each device that has none; UserError if no worker has been ready for too long."""
        if time.monotonic() - self.looked < LOOK:
            return
        self.looked = time.monotonic()
        slots = self._own(_slots(self.options))
        if not slots and _address(self.options) == "local":  # where no other node can come
            raise UserError(
                "launch: Ray's processes on this machine have died (its logs, session_latest/logs in Ray's temporary "
                "folder, say why); all finished work is saved: run the same command again"
            )
        taken = {hand.slot for hand in self.hands}
        for hand in [hand for hand in self.hands if hand.slot not in slots and not hand.waited_for()]:
            self.dismiss(hand)  # idle, and not a device of the plan any more
        for slot in [slot for slot in slots if slot not in taken][: max(0, len(slots) - len(self.hands))]:
            self.hands.append(Hand(_hire(slot, self.options), slot))
            LOG.info("worker %s starts", slot.name)
        self.size = max(self.size, len(self.hands))
        self.listen()
        if any(hand.ready is None for hand in self.hands):
            self.alone = time.monotonic()
        elif time.monotonic() - self.alone > self.options.wait:
            raise UserError(
                f"launch: no worker of the cluster has been ready for {self.options.wait:g} s (ray status shows what "
                "is free); add a node, or end other work, and run the same command again"
            )

    def listen(self) -> None:
        """Writes into the log what workers have said since."""
        for hand in self.hands:
            hand.listen()

    def _own(self, slots: list[Slot]) -> list[Slot]:
        """The devices that are for these workers: as many as are theirs, of those that others do not have."""
        others = {hand.slot for hand in self.beside.hands} if self.beside is not None else set()
        free = [slot for slot in slots if slot not in others]
        generators = max(1, len(slots) - self.options.reward_workers)
        return free[:generators] if not self.scores else free[::-1][: len(slots) - generators]

    def done(self, work: Work) -> Iterator[tuple[str | None, Any]]:
        """What comes back of the work, by the id of its prompt, as it comes; None is the id of a proof."""
        import ray

        try:
            while work.waits() or any(hand.stream for hand in self.hands):
                self.look()
                under_way = sum(len(hand.blocks) for hand in self.hands)
                share = -(-(work.left() + under_way) // max(1, len(self.hands)))
                idle = [hand for hand in self.hands if hand.ready is None and not hand.blocks]
                for hand in self.hands:
                    self._supply(hand, work, share, bool(idle) and idle != [hand])
                by_ref = {one: hand for hand in self.hands for one in hand.waited_for()}
                if not by_ref:
                    time.sleep(TICK)
                    continue
                for ref in ray.wait(list(by_ref), num_returns=1, timeout=TICK)[0]:
                    yield from self._came(by_ref[ref], ref, work)
        except BaseException:
            for hand in [hand for hand in self.hands if hand.stream is not None]:
                self.dismiss(hand)  # it would go on with what nobody waits for
            raise

    def _supply(self, hand: Hand, work: Work, share: int, others_wait: bool) -> None:
        """Gives a worker what it has room for, and no more than its share, so that every worker has some.

        Where it is not known how many blocks there are, none has two while others have none.
        """
        if hand.ready is not None or hand.feeding is not None or hand.ended:
            return
        if hand.stream is None:
            if not work.waits():
                return
            hand.begin(work)
            self._follow(hand)
        suspect, failures = work.waits() and work.suspect(self.options.failures), self.options.failures
        if any(block.deaths >= failures - 1 for block in hand.blocks) or (suspect and hand.blocks):
            return  # a suspect block has a worker of its own
        room = share - len(hand.blocks) if work.known is not None else 2 - others_wait - len(hand.blocks)
        most, blocks = 1 if suspect else room, list[Block]()
        while len(blocks) < most and sum(len(block.items) for block in blocks) < TOGETHER and work.waits():
            if work.suspect(failures) and not suspect:
                break
            blocks.append(work.take())
        if blocks:
            hand.give(blocks)
        elif not work.waits():
            hand.give(None)

    def _came(self, hand: Hand, ref: Any, work: Work) -> Iterator[tuple[str | None, Any]]:
        """Takes what a worker says: that it is ready, has taken what it was given, or one result."""
        import ray

        try:
            if ref is hand.ready:
                _require_same(ray.get(ref), hand.slot)
                hand.ready = None
                LOG.info("worker %s is ready", hand.slot.name)
            elif ref is hand.feeding:
                ray.get(ref)
                hand.feeding = None
            else:
                for name, result in ray.get(next(hand.stream)):
                    if name is None:
                        yield name, result
                    elif _check_off(hand.blocks, name):
                        self.deaths = 0
                        hand.lane.done += 1
                        hand.lane.ended = time.time()
                        yield name, result
        except StopIteration:
            assert not hand.blocks, "a worker ended its run with blocks under way"
            hand.lane.ended = time.time()
            hand.stream, hand.ended = None, False
        except ray.exceptions.RayError as fault:
            self._died(hand, fault, work)

    def _died(self, hand: Hand, fault: Any, work: Work) -> None:
        """Puts a worker that died or failed out of service, and its blocks back; UserError names a block that kills."""
        LOG.warning("worker %s died with %d blocks under way", hand.slot.name, len(hand.blocks))
        self._bury(hand)
        self._count(fault)
        for block in hand.blocks:
            block.deaths += 1
        if (poison := next((one for one in hand.blocks if one.deaths >= self.options.failures), None)) is not None:
            raise UserError(
                f"launch: {_named(poison)} has been under way each time that {poison.deaths} workers died, the last "
                f"time alone ({self.reason}); remove it from the prompts, and run the same command again"
            )
        work.put_back(hand.blocks)

    def _count(self, fault: Any) -> None:
        """Counts a death; UserError if the worker raised one, or if workers have died too often."""
        cause = getattr(fault, "cause", None)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
        self.deaths += 1
        self.reason = (str(cause or fault).strip().splitlines() or [type(fault).__name__])[0].rstrip(".")
        LOG.warning("a worker died: %s", fault)
        if self.deaths > self.options.failures * self.size:
            raise UserError(
                f"launch: workers died {self.deaths} times without any progress; the last one: {self.reason}. The "
                "logs of Ray (session_latest/logs in its temporary folder) say more; fix the cause, and run the same "
                "command again"
            )

    def _follow(self, hand: Hand) -> None:
        """Gives a worker a lane of the stage."""
        hand.lane = Lane(hand.slot.name, time.time(), time.time())
        self.lanes.append(hand.lane)

    def _bury(self, hand: Hand) -> None:
        """Ends a worker whose death its lane shows."""
        self.dismiss(hand)
        hand.lane.ended, hand.lane.died = time.time(), True
        if all(lane is not hand.lane for lane in self.lanes):  # it died before it began
            self.lanes.append(hand.lane)

    def dismiss(self, hand: Hand) -> None:
        """Ends a worker; its device gets another one."""
        hand.end()
        self.hands.remove(hand)
        self.looked = 0.0

    def idle(self) -> list[Hand]:
        """The workers once each is ready, at least one."""
        import ray

        while True:
            signals.check()
            self.look()
            starting = {hand.ready: hand for hand in self.hands if hand.ready is not None}
            if self.hands and not starting:
                return self.hands
            if not starting:
                time.sleep(TICK)
                continue
            for ref in ray.wait(list(starting), num_returns=1, timeout=TICK)[0]:
                for _ in self._came(starting[ref], ref, Work(b"", None, 0, [])):
                    raise AssertionError("a worker that starts has no result")

    def called(self, component: bytes, function: Callable[..., T], arguments: Iterable[Any]) -> T:
        """What a function says of a component, on one worker."""
        import ray

        while True:
            hand = self.idle()[0]
            self._follow(hand)
            try:
                found = _awaited(hand.actor.call.remote(component, function, tuple(arguments)))
                self.deaths, hand.lane.ended = 0, time.time()
                return found
            except ray.exceptions.RayError as fault:
                self._bury(hand)
                self._count(fault)

    def trained(self, job: tuple[Any, ...], out: Path, most: int | None, advance: Advance) -> tuple[Any, Any]:
        """What rank 0 of a training says, which has at most so many ranks; if a rank dies, all begin again."""
        import ray

        each = self.options.gpus_per_worker if most is None else 1

        while True:
            hands = list(self.idle()[:most])
            for hand in hands:
                self._follow(hand)
            try:
                meet, once = ray.get(hands[0].actor.address.remote()), [ray.put(one) for one in job]
                refs = [
                    hand.actor.train.remote(*once, place, len(hands), each, meet) for place, hand in enumerate(hands)
                ]
                waiting = refs
                while waiting:
                    ready, waiting = ray.wait(waiting, num_returns=1, timeout=TICK)
                    ray.get(ready)  # raises what a rank has raised
                    steps = hands[0].actor.steps.options(concurrency_group="feed")
                    if (at := ray.get(steps.remote()))[1]:
                        for hand in hands:
                            hand.lane.done, hand.lane.ended = at[0], time.time()
                        advance(*at)
                    self.listen()
                self.deaths = 0
                return ray.get(refs[0])
            except BaseException as fault:
                for hand in hands:
                    self._bury(hand)  # the ranks wait for each other
                if not isinstance(fault, ray.exceptions.RayError):
                    raise
                self._count(fault)
                shutil.rmtree(out, ignore_errors=True)


def _awaited(ref: Any) -> Any:
    """The value of a reference; Stopped on a signal."""
    import ray

    while not ray.wait([ref], timeout=TICK)[0]:
        signals.check()
    return ray.get(ref)


def _check_off(blocks: list[Block], name: str) -> bool:
    """Notes that an id came back, and forgets a block of which all have; returns whether it was missing.

    Of a block that is asked again, some came back before its first worker died.
    """
    block = next((one for one in blocks if name in one.left), None)
    if block is None:
        return False
    block.left.remove(name)
    if not block.left:
        blocks.remove(block)
    return True


def _named(block: Block) -> str:
    return f"prompt {block.left[0]}" if len(block.left) == 1 else f"one of the prompts {', '.join(block.left[:20])}"


def _address(options: Ray) -> str:
    """The cluster to join, or `local`: one that is started here."""
    return options.address or os.environ.get("RAY_ADDRESS") or "local"


def _begin(options: Ray) -> bool:
    """Joins the cluster, or starts one here; returns whether this process was not part of one already."""
    import ray

    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")  # an engine's own processes end with their worker
    os.environ.setdefault("RAY_worker_niceness", "0")  # by Ray's 15 a worker waits for whatever else runs on its cores
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    cores = max(options.workers or 0, len(os.sched_getaffinity(0)))
    address = _address(options)
    with logs.stderr_to_log(), progress.waiting("Ray is starting"):
        try:
            if address == "local":
                ray.init(address=address, num_cpus=cores, include_dashboard=False, **common)
            else:
                ray.init(address=address, **common)
        except Exception as fault:  # Ray raises a bare Exception if a node does not start in time
            reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0].rstrip(".")
            what = "start a cluster on this machine" if address == "local" else f"join the cluster at {address}"
            raise UserError(
                f"launch.address: Ray cannot {what} ({reason}); run the same command again, or say where"
            ) from fault
    if main:
        signal.signal(signal.SIGTERM, handler)
    return True


def _slots(options: Ray) -> list[Slot]:
    """The places for workers in the cluster as it is: its GPUs, or else parts of its cores."""
    import ray

    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    gpus = any(resources.get("GPU") for resources in nodes.values())
    counts = {
        node: int(resources.get("GPU" if gpus else "CPU", 0)) // options.gpus_per_worker
        for node, resources in sorted(nodes.items())
    }
    taken = dict.fromkeys(counts, 0)
    for _ in range(min(options.workers or sum(counts.values()), sum(counts.values()))):
        taken[max(counts, key=lambda node: counts[node] - taken[node])] += 1  # nodes fill evenly
    return [
        Slot(node, place, count, gpus, int(nodes[node].get("CPU", 0)))
        for node, count in taken.items()
        for place in range(count)
    ]


def _require_room(options: Ray, slots: list[Slot]) -> None:
    """UserError if no node has room for a worker, or if all workers would only score."""
    if not slots and options.gpus_per_worker > 1:
        raise UserError(
            f"launch.gpus_per_worker: {options.gpus_per_worker}, and no node of the cluster has as many GPUs, or cores "
            "where there is no GPU; lower it"
        )
    if options.reward_workers >= len(slots) > 0:
        raise UserError(
            f"launch.reward_workers: {options.reward_workers}, but the cluster has room for {len(slots)} workers, of "
            "which one at least has to generate; lower it, or add nodes"
        )


def _hire(slot: Slot, options: Ray) -> Any:
    """A worker on a device."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raft.launch.worker import Worker

    remote: Any = ray.remote
    actor = remote(
        num_cpus=0 if slot.gpu else slot.cpus // slot.of,
        num_gpus=options.gpus_per_worker if slot.gpu else 0,
        concurrency_groups={"feed": 1, "log": 1},
        max_restarts=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=False),
        runtime_env={"env_vars": {**({} if slot.gpu else _environment(slot)), **options.env}},
    )(Worker)
    return actor.remote(folders(), None if slot.gpu else (slot.place, slot.of))


def _environment(slot: Slot) -> dict[str, str]:
    """What keeps a worker to its part of the cores and of the memory."""
    room = int(vllm_options.environment()["VLLM_CPU_KVCACHE_SPACE"])
    return {
        "OMP_NUM_THREADS": str(max(1, slot.cpus // slot.of)),
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, room // slot.of)),
    }


def _require_same(theirs: dict[str, str], slot: Slot) -> None:
    """UserError if a worker computes with other versions than the driver, or on another kind of device.

    The driver's own device decides what `dtype: auto` means in the keys of artifacts.
    """
    ours = {**versions(), "device": device.current()}
    if unlike := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
        name = unlike[0]
        raise UserError(
            f"launch: node {slot.node[:8]} of the cluster has {name} {theirs.get(name, 'not installed')}, and here it "
            f"is {ours.get(name, 'not installed')}; results depend on it, so start raft on a node like the others"
        )
