"""A worker of a cluster: a process with one device, which does there what `kind: local` does in its own process.

It knows nothing of Ray and of the other workers. Components come pickled, and stay: an engine or a reward model is
loaded once for all calls. Blocks come through `feed` while `run` is at work, so an engine always has prompts to go on
with, and is given no more than it has room for.
"""

import io
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from raft.core import device, logs, protocols, ranks, user_code
from raft.core.errors import UserError
from raft.core.protocols import Advance
from raft.core.versions import versions
from raft.models import model_sizes

LOG = logging.getLogger(__name__)
T = TypeVar("T")
SAID = 10_000  # records of libraries that a worker keeps until the driver asks for them
PAUSE = 0.2  # seconds between two looks whether a run has ended
AT_ONCE = 0.01  # seconds within which results come together: handing one over takes a millisecond
STATE = 16  # bytes of a parameter in training: itself, its gradient and the two moments of AdamW, in float32
FILLED = 0.75  # of a GPU's memory that this may take; activations and logits need the rest


def shards(option: str, trainer: Any, parameters: int, memory: int | None) -> bool:
    """Whether weights are to be sharded over several ranks, whose devices have so many bytes (None: host memory).

    `option` is that of a recipe: none, fsdp, or auto, which shards what does not fit one GPU.
    """
    if option == "none" or not protocols.can_shard(trainer):
        return False
    return option == "fsdp" or (memory is not None and STATE * parameters > FILLED * memory)


def _at_once(results: Iterable[T]) -> Iterator[list[T]]:
    """Results in lists: each that was waited for, with those before it that were not."""
    waiting, began = list[T](), time.monotonic()
    for result in results:
        waiting.append(result)
        if time.monotonic() - began > AT_ONCE:
            yield waiting
            waiting = []
        began = time.monotonic()
    if waiting:
        yield waiting


class Reader(pickle.Unpickler):
    """Reads a component, from the driver of the same run; its class may be a recipe's own."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name."""
        user_code.module(module)
        return super().find_class(module, name)


class Worker:
    """One device of a cluster, or several of one node, or a part (place, of) of a node's cores."""

    def __init__(self, folders: list[str], part: tuple[int, int] | None):
        if part is not None:
            os.sched_setaffinity(0, device.cores(*part))
        self._folders, self._ranks = folders, list[Rank]()
        self._stack = ExitStack()
        self._stack.enter_context(user_code.importable_in(folders))
        self._said: deque[tuple[int, str]] = deque(maxlen=SAID)
        logs.take_over(logs.Told(lambda *said: self._said.append(said)))
        LOG.info("process %d on %s", os.getpid(), socket.gethostname())
        self._components: dict[bytes, Any] = {}
        self._waiting: deque[list[Any]] = deque()
        self._changed = threading.Condition()
        self._ended = self._running = False
        self._steps = (0, 0)

    def ready(self) -> dict[str, str]:
        """What its results depend on: the versions, and the kind of its device."""
        return {**versions(), "device": device.current()}

    def said(self) -> list[tuple[int, str]]:
        """What libraries have logged here since the last call: levels and texts."""
        return [self._said.popleft() for _ in range(len(self._said))]

    def run(self, component: bytes, policy: Any, seed: int) -> Iterator[Sequence[tuple[str | None, Any]]]:
        """Ids of prompts, each with its group (of a generator, with a policy) or with its scores (of a reward).

        They come as they are finished; the scores of a block that are there at once come together. The last one has no
        id: it is the proof of a generator.
        """
        known = self._known(component)
        device.take(known)
        with self._changed:
            self._running = True
        try:
            if policy is None:
                for block in self._blocks():
                    yield from _at_once((group.prompt.id, scores) for group, scores in protocols.scored(known, block))
            else:
                for group in protocols.answers(known, policy, self._prompts(known), seed):
                    yield [(group.prompt.id, group)]
                yield [(None, protocols.proof(known))]
        finally:
            with self._changed:
                self._waiting.clear()
                self._ended = self._running = False
                self._changed.notify_all()

    def feed(self, blocks: list[list[Any]] | None) -> None:
        """Gives blocks to the run, and returns as soon as it has taken them; None: there are no more."""
        with self._changed:
            self._ended = blocks is None
            self._waiting.extend(blocks or ())
            self._changed.notify_all()
            while self._waiting and self._running:
                self._changed.wait(PAUSE)

    def call(self, component: bytes, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What a function says of a component that is on this device."""
        known = self._known(component)
        device.take(known)
        return function(known, *arguments)

    def address(self) -> str:
        """A free address of this machine, at which ranks can meet."""
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
            try:
                outward.connect(("192.0.2.1", 9))  # sends nothing; it only tells which address leads outward
                return f"{outward.getsockname()[0]}:{port}"
            except OSError:
                return f"127.0.0.1:{port}"

    def train(
        self,
        trainer: bytes,
        start: Path,
        examples: list[Any],
        out: Path,
        seed: int,
        checkpoints: Path,
        shard: str,
        place: int,
        workers: int,
        each: int,
        meet: str,
    ) -> tuple[dict[str, float], list[tuple[str, int | None, str]]]:
        """What a trainer measured as one of several ranks, and what it dropped; rank 0 writes into `out`.

        `shard` is none, auto or fsdp. This is worker `place` of so many, with `each` ranks, one on each of its GPUs.
        """
        device.take(None)
        self._steps = (0, 0)
        job = (trainer, start, examples, out, seed, checkpoints, shard)
        if workers * each == 1:
            found = as_rank(job, 0, 1, meet, self._advance)
        else:
            found = self._trained_apart(job, place * each, workers * each, each, meet)
        device.take(None)
        return found

    def _trained_apart(self, job: tuple[Any, ...], first: int, count: int, each: int, meet: str) -> Any:
        """What rank `first` of a training says; this worker's ranks are processes of their own."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        for at in range(len(self._ranks), each):
            self._ranks.append(Rank(self._folders, visible[at] if len(visible) == each else None))
        waiting: dict[Any, int] = {rank.pipe: first + at for at, rank in enumerate(self._ranks)}
        found: Any = None
        try:
            for pipe, number in waiting.items():
                pipe.send((job, number, count, meet))
            while waiting:
                ready: list[Any] = multiprocessing.connection.wait(list(waiting))
                for pipe in ready:
                    kind, said = pipe.recv()
                    if kind == "said":
                        self._said.append(said)
                        continue
                    if kind == "fault":
                        raise UserError(said)
                    if kind == "died":
                        raise RuntimeError(said)
                    if kind == "done":
                        found = said if waiting.pop(pipe) == first else found
                    elif waiting[pipe] == first:
                        self._advance(*said)
            return found
        except EOFError:
            raise RuntimeError("a training process died") from None
        finally:
            if waiting:
                for rank in self._ranks:
                    rank.end()  # they would wait for each other
                self._ranks.clear()

    def steps(self) -> tuple[int, int]:
        """How far the training is: steps done, and steps in all."""
        return self._steps

    def _advance(self, done: int, total: int) -> None:
        self._steps = (done, total)

    def _known(self, component: bytes) -> Any:
        if component not in self._components:
            self._components[component] = Reader(io.BytesIO(component)).load()
        return self._components[component]

    def _prompts(self, generator: Any) -> Iterator[Any]:
        """The prompts of the blocks; a continuous generator gets None while there is nothing new."""
        for block in self._blocks(continuous=getattr(generator, "continuous", False)):
            yield from block

    def _blocks(self, continuous: bool = False) -> Iterator[list[Any]]:
        while True:
            with self._changed:
                while not (self._waiting or self._ended or continuous):
                    self._changed.wait()
                if not self._waiting and self._ended:
                    return
                block = self._waiting.popleft() if self._waiting else [None]
                self._changed.notify_all()
            yield block


class Rank:
    """A process that trains on a device of a worker, and stays for the next training.

    vLLM's engine has the one process group that torch allows in the worker itself.
    """

    def __init__(self, folders: list[str], visible: str | None):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, folders))
        with _environment(CUDA_VISIBLE_DEVICES=visible):
            self.process.start()
        theirs.close()  # so that its end is seen here

    def end(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.join()


def _serve(pipe: Any, folders: list[str]) -> None:
    """Trains as it is told, until the worker ends."""
    lock = threading.Lock()  # libraries may log in threads of their own

    def tell(kind: str, said: Any) -> None:
        with lock:
            pipe.send((kind, said))

    logs.take_over(logs.Told(lambda *said: tell("said", said)))
    with user_code.importable_in(folders), suppress(EOFError, BrokenPipeError):
        while True:
            job, rank, count, meet = pipe.recv()
            try:
                tell("done", as_rank(job, rank, count, meet, lambda *at: tell("step", at)))
            except UserError as fault:
                tell("fault", str(fault))
            except Exception as fault:
                tell("died", f"{type(fault).__name__}: {fault}")


def as_rank(
    job: tuple[Any, ...], rank: int, count: int, meet: str, advance: Advance
) -> tuple[dict[str, float], list[tuple[str, int | None, str]]]:
    """What a trainer measured as one rank of so many, and what it dropped; rank 0 writes."""
    known, start, examples, out, seed, checkpoints, shard = job
    trainer = Reader(io.BytesIO(known)).load()
    drops: list[tuple[str, int | None, str]] = []
    with ExitStack() as stack:
        stack.enter_context(ranks.joined(rank, count, meet, _shards(shard, trainer, start)))
        place = out if rank == 0 else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = protocols.trained(
            trainer, start, iter(examples), place, seed, advance, lambda *drop: drops.append(drop), checkpoints
        )
    return measured, drops


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Inside the block these variables are set; None leaves one as it is."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _shards(option: str, trainer: Any, start: Path) -> bool:
    """Whether this rank would shard."""
    if device.current() == "cpu" or option != "auto":
        return shards(option, trainer, 0, None)
    import torch

    try:
        parameters = model_sizes.read(start).parameters()
    except UserError:  # old weights, whose sizes are not known; whether they fit will show
        return False
    return shards(option, trainer, parameters, torch.cuda.mem_get_info()[1])
