"""One iteration of `launch: {kind: ray}` on 1 to 512 GPUs, as a discrete-event simulation: which part saturates first.

    python benchmarks/cluster_simulator.py                      the tables of docs/scaling.md, and docs/scaling.png
    python benchmarks/cluster_simulator.py batch_size=256       another iteration: any field of Work
    python benchmarks/cluster_simulator.py --sensitivity        each constant halved and doubled
    python benchmarks/cluster_simulator.py --measure            what the driver and Ray take on this machine

It follows raft/launch/ray.py as it is: prompts go out four at a time, and no worker has more than its share under way;
scoring in blocks of 64 groups and likelihoods in blocks of 16, one to each worker and then a second; training passes
dealt out to ranks, gradients added up, or weights sharded; weights through files; selection and figures in one place.
With `reward_workers` one block at a time is scored during generation, and training, generation and likelihoods have the
other workers. It is an iteration in the middle of a run, when engines are up and asleep. CONSTANTS has every number
that is not computed, with its source: `public` is the maker's data sheet, `here` was measured on the machine of
docs/measured.md, `assumed` is what nobody has measured for raft. Nothing ran on a GPU.
"""

import atexit
import heapq
import itertools
import math
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hardware import REWARDS, fits, gb, model, sharded, turns

from raft.cli.memory_plan import CARDS, KEPT, UTILIZATION, card
from raft.core import ranks, records
from raft.core.protocols import BATCH_SIZE
from raft.launch.ray import TOGETHER
from raft.models import logprobs, packing, weight_check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPEED = "docs/speed.md, the two blocks of 2,048 x 8: `python benchmarks/iteration.py recipes/tinystories.yaml`"
MEASURE = "here: `python benchmarks/cluster_simulator.py --measure`"
CONSTANTS: dict[str, tuple[float, str]] = {
    "memory": (4.8e12, "public: bytes/s of an H200's memory"),
    "memory_share": (0.8, "assumed: of that, what decoding reaches"),
    "matrices": (989e12, "public: FLOP/s of an H100 or H200, bfloat16, dense"),
    "matrices_forward": (0.45, "assumed: of that, in forward passes"),
    "matrices_train": (0.35, "assumed: of that, in training (autocast, packed rows, no fused kernels)"),
    "tf32": (495e12, "public: FLOP/s of an H100 or H200, TF32, dense; likelihoods are computed in it"),
    "pcie": (50e9, "public: 64e9 bytes/s, PCIe 5 x16; assumed: 50e9 of it"),
    "nvlink": (360e9, "public: 450e9 bytes/s each way; assumed: 0.8 of it"),
    "network": (40e9, "assumed: bytes/s of a GPU's own 400 Gbit/s adapter, 0.8 of it"),
    "hop": (10e-6, "assumed: seconds of a hop of a collective; a ring has as many as ranks, a tree their logarithm"),
    "node": (8, "assumed: GPUs of a node"),
    "files": (20e9, "assumed: bytes/s of the shared file system, all nodes together"),
    "files_node": (10e9, "assumed: bytes/s of one node from it; workers of a node share what it has read"),
    "files_write": (2e9, "assumed: bytes/s of one process that writes"),
    "load": (3e9, "assumed: bytes/s of weights from the page cache into a model, casting included"),
    "layer": (1e-3, "assumed: seconds of Python and launches of a layer in a pass, forward (three times in training)"),
    "step": (5e-3, "assumed: seconds of a decoding step beside its arithmetic"),
    "sequence": (20e-6, "assumed: ... for each sequence (seeds and log-probabilities of its own)"),
    "tensor": (0.8, "assumed: of the speed of so many GPUs, that of an engine split over them"),
    "spawn": (15.0, "assumed: seconds until the other ranks of a worker with several GPUs have torch and are there"),
    "most": (1024, "vLLM's own max_num_seqs on a GPU of 70 GB or more, in offline use"),
    "ray_group": (0.5e-3, MEASURE),
    "ray_give": (40e-6, MEASURE),
    "ray_put": (40e-3, MEASURE),
    "ray_rank": (0.1e-3, MEASURE),
    "ray_call": (1.3e-3, MEASURE),
    "ray_wait": (0.9e-6, MEASURE),
    "append_token": (0.6e-6, MEASURE),
    "read_token": (0.35e-6, MEASURE),
    "select_response": (4e-6, MEASURE),
    "select_token": (0.48e-6, MEASURE),
    "figures_response": (107e-6, SPEED),
    "figures_token": (1.48e-6, SPEED),
    "curve": (0.7, SPEED),
}
MEDIAN, SIGMA = 250.0, 0.8  # of the lengths of responses; assumed: of chat answers, most are short and a few very long
GPU = 141
DEVICES = (1, 8, 64, 512)
POLICIES = ("Qwen2.5-7B", "Qwen2.5-14B", "Qwen2.5-32B", "Llama-3.1-70B")
VARIANTS = {"full": "full", "lora": "LoRA", "split": "split"}
SPLIT = 2  # launch.gpus_per_worker and tensor_parallel_size of `split`, which leaves out likelihoods
PROBES = 4 * weight_check.COUNT  # forward passes of the probe: before and after, with and without rounding
SELECTED = 4096  # responses that --measure selects from
WAITING = 200  # streams that --measure waits for
STAGES = ("generate", "score", "driver", "train", "handover", "evaluate", "likelihoods")

Constants = Mapping[str, float]


@dataclass(frozen=True)
class Work:
    """What an iteration has to do; the defaults are those of a recipe, and of RECIPE in hardware.py."""

    prompts: int = 2048
    k: int = 8
    prompt_tokens: int = 200
    max_tokens: int = 512
    median: float = MEDIAN
    sigma: float = SIGMA
    batch_size: int = 32
    num_train_epochs: int = 2
    max_tokens_per_microbatch: int = 2048
    held_out: int = 256
    held_out_k: int = 4
    kl: int = 1  # evaluation.kl
    saved: int = 4  # bytes of a parameter in a policy's file, by trainer.save_dtype
    reward_workers: int = 0
    streamed: int = 1  # blocks that they score at once while the others generate
    seed: int = 0

    def lengths(self, prompts: int, k: int) -> np.ndarray:
        """Tokens of each response [prompts, k]: log-normal, cut at max_tokens, at least one."""
        drawn = np.random.default_rng(self.seed).lognormal(math.log(self.median), self.sigma, (prompts, k))
        return np.clip(np.rint(drawn), 1, self.max_tokens).astype(int)


@dataclass(frozen=True)
class Rates:
    """What a device takes for a model, in seconds. A step of decoding is the longer of reading and computing."""

    step: float = 0.0  # of each step beside that
    sequence: float = 0.0  # of a sequence in it
    weights: float = 0.0  # reading the weights
    cached: float = 0.0  # reading a token of the cache
    compute: float = 0.0  # arithmetic of a sequence
    request: float = 0.0  # of a response, once
    prefill: float = 0.0  # of a token of a prompt
    slots: int = 1024  # sequences that may be under way
    score_text: float = 0.0
    score_token: float = 0.0
    score_load: float = 0.0
    likely: float = 0.0  # of a forward pass of the policy in transformers, beside its arithmetic
    likely_token: float = 0.0
    train_text: float = 0.0
    train_pass: float = 0.0
    train_token: float = 0.0
    update: float = 0.0  # of an optimiser step
    gradients: float = 0.0  # bytes that are added up in each
    gathered: float = 0.0  # seconds in which ranks put sharded weights together, or add up their gradients
    load: float = 0.0  # bytes of a policy's file
    pcie: float = 0.0  # seconds of those between a host and its GPU
    wake: float = 0.0
    together: int = 1  # GPUs of a worker, over which its engine is split

    def decode(self, sequences: int, context: int, steps: int) -> float:
        """Seconds of so many steps with the same sequences, whose contexts have so many tokens at first."""
        computing, growth = sequences * self.compute, sequences * self.cached
        reading = self.weights + context * self.cached
        short = (
            max(0, min(steps, math.ceil((computing - reading) / growth))) if growth else steps * (reading < computing)
        )
        rest = steps - short
        read = rest * reading + growth * (steps * (steps - 1) - short * (short - 1)) / 2
        return steps * (self.step + sequences * self.sequence) + short * computing + read


class Engine:
    """One engine, by events: it goes from one finished response to the next."""

    def __init__(self, rates: Rates, work: Work, lengths: np.ndarray):
        self.rates, self.work, self.lengths = rates, work, lengths
        self.now, self.steps, self.context, self.version = 0.0, 0, 0, 0
        self.live: list[tuple[int, int, int]] = []  # steps at which a response ends and began, and its prompt
        self.queue: deque[tuple[int, int]] = deque()  # prompts, and the next of their responses
        self.under_way, self.feeding = 0, False

    def admit(self) -> None:
        """Takes in what there is room for."""
        while self.queue and len(self.live) < self.rates.slots:
            prompt, place = self.queue.popleft()
            if place == 0:
                self.now += self.rates.prefill * self.work.prompt_tokens
            self.now += self.rates.request
            heapq.heappush(self.live, (self.steps + int(self.lengths[prompt, place]), self.steps, prompt))
            self.context += self.work.prompt_tokens
            if place + 1 < self.lengths.shape[1]:
                self.queue.appendleft((prompt, place + 1))

    def until(self, moment: float) -> None:
        """Goes on to the first end of a step at or after a moment."""
        if not self.live:
            self.now = max(self.now, moment)
            return
        low, high = 0, self.live[0][0] - self.steps
        while low < high:
            middle = (low + high) // 2
            late = self.now + self.rates.decode(len(self.live), self.context, middle) >= moment
            low, high = (low, middle) if late else (middle + 1, high)
        self.go(low)

    def go(self, steps: int) -> None:
        """Some steps, none of which but the last ends a response."""
        self.now += self.rates.decode(len(self.live), self.context, steps)
        self.context += steps * len(self.live)
        self.steps += steps

    def finish(self) -> list[int]:
        """Goes on to the next end of a response; the prompts of those that end with that step."""
        self.go(self.live[0][0] - self.steps)
        ended = []
        while self.live and self.live[0][0] == self.steps:
            end, began, prompt = heapq.heappop(self.live)
            self.context -= self.work.prompt_tokens + end - began
            ended.append(prompt)
        return ended

    def ahead(self) -> float:
        """Seconds to the next end of a response."""
        return self.rates.decode(len(self.live), self.context, self.live[0][0] - self.steps)


class Generated(NamedTuple):
    """Seconds until the driver has every group, until each engine was idle, of the driver's work, and to each group."""

    seconds: float
    idle: list[float]
    driver: float
    written: list[float]


def generate(work: Work, lengths: np.ndarray, engines: int, rates: Rates, of: Constants) -> Generated:
    """Prompts handed out as raft.launch.ray.Cluster does; a group comes back when its last response ends."""
    each = [Engine(rates, work, lengths) for _ in range(engines)]
    left = [lengths.shape[1]] * len(lengths)
    waiting, done, free, driven = deque(range(len(lengths))), 0, 0.0, 0.0
    written = [0.0] * len(lengths)
    look = of["ray_wait"] * engines  # at all that may have come, for each event
    token = of["append_token"] + (of["read_token"] if work.reward_workers else 0.0)  # read again to be scored
    events: list[tuple[float, int, str, int, Any]] = []
    order = itertools.count()

    def say(moment: float, what: str, engine: int, about: Any = None) -> None:
        heapq.heappush(events, (moment, next(order), what, engine, about))

    def supply(moment: float) -> None:
        for number, engine in enumerate(each):
            if not waiting:
                return
            share = -(-(len(lengths) - done) // engines)
            count = min(TOGETHER, share - engine.under_way, len(waiting))
            if not engine.feeding and count > 0:
                engine.feeding = True
                engine.under_way += count
                say(moment + of["ray_call"], "prompts", number, [waiting.popleft() for _ in range(count)])

    def next_end(number: int) -> None:
        engine = each[number]
        engine.version += 1
        if engine.live:
            say(engine.now + engine.ahead(), "end", number, engine.version)

    supply(0.0)
    while events:
        moment, _, what, number, about = heapq.heappop(events)
        engine = each[number]
        if what == "group":
            cost = look + of["ray_group"] + token * int(lengths[about].sum())
            free, done, driven = max(free, moment) + cost, done + 1, driven + cost
            written[about] = free
            engine.under_way -= 1
            supply(free)
            continue
        if what == "taken":
            engine.feeding = False
            free, driven = max(free, moment) + look, driven + look
            supply(free)
            continue
        if what == "end":
            if about != engine.version:
                continue
            for prompt in engine.finish():
                left[prompt] -= 1
                if left[prompt] == 0:
                    say(engine.now, "group", number, prompt)
        else:
            engine.until(moment)
            engine.queue.extend((prompt, 0) for prompt in about)
        engine.admit()
        if engine.feeding and len(engine.queue) <= 1 and what in ("prompts", "end"):
            say(engine.now + of["ray_call"], "taken", number)
        next_end(number)
    return Generated(free, [engine.now for engine in each], driven, written)


def rates(policy: str, variant: str, devices: int, work: Work, of: Constants) -> Rates | str:
    """What a GPU takes for a policy, or why the policy does not fit, by the memory plan of `raft check`.

    Training is sharded where `launch.shard: auto` says so. By `split` an engine has SPLIT GPUs.
    """
    together = SPLIT if variant == "split" else 1
    if (ranks := devices - together * work.reward_workers) < together:
        return f"a worker has {together} GPUs"
    size, gpu = model(policy), turns(policy, REWARDS[0], variant == "lora", GPU, ranks, split=together)
    count, kept = size.parameters(), size.cached(2) or 0
    layers = size.config["num_hidden_layers"]
    apart = sharded(gpu["train"])
    asked = ("generate", "likelihoods", "train") if work.kl else ("generate", "train")
    if wrong := [
        name for name in asked if not fits(name, policy, lora=variant == "lora", devices=ranks, split=together)
    ]:
        limit = {"generate": int(UTILIZATION * card(1, GPU).memory)}
        told = (f"{name} {gb(gpu[name].total)} of {gb(limit.get(name, card(1, GPU).memory - KEPT))}" for name in wrong)
        return f"does not fit: {', '.join(told)} GB"
    room = together * UTILIZATION * CARDS[GPU] - 2 * count
    copy = together * of["tensor"] if together > 1 else 1.0  # the speed of its devices, against that of one
    reading = copy * of["memory"] * of["memory_share"]
    computing = copy * of["matrices"] * of["matrices_forward"]
    judge = model(REWARDS[0])
    learning = (6 if variant == "lora" else 8) * count / (of["matrices"] * of["matrices_train"])
    trained = count if variant != "lora" else size.adapters({"r": 32, "target_modules": "all-linear"}) or 0
    gathered = 4 * count * (ranks - 1) / ranks / wire(ranks, of) + (layers + 1) * (ranks - 1) * of["hop"]
    return Rates(
        step=of["step"],
        sequence=of["sequence"],
        weights=2 * count / reading,
        cached=kept / reading,
        compute=2 * count / computing,
        request=0.0,
        prefill=2 * count / computing,
        slots=min(int(of["most"]), int(room // (kept * (work.prompt_tokens + work.max_tokens + 1)))),
        score_token=2 * judge.parameters(output=False) / (of["matrices"] * of["matrices_forward"]),
        score_load=0.0 if work.reward_workers else 2 * judge.parameters(output=False) / of["pcie"],
        likely=layers * of["layer"],
        likely_token=2 * count / (of["tf32"] * of["matrices_forward"]),
        train_pass=3 * layers * of["layer"],
        train_token=learning,
        update=36 * trained / (ranks if apart else 1) / (of["memory"] * of["memory_share"]),
        gradients=0.0 if apart else 4 * trained,
        gathered=gathered if apart else 0.0,
        load=work.saved * count,
        pcie=4 * count / of["pcie"],
        wake=2 * count / together / of["pcie"],
        together=together,
    )


def blocks(
    work: Work, handed: Sequence[np.ndarray], workers: int, load: float, seconds: Callable[[int, int], float],
    of: Constants,
) -> float:  # fmt: skip
    """Seconds until the driver has what workers say of blocks of groups: one block to each worker, then a second.

    `load` is that of a model before a worker's first block; `seconds` are those of a block, by tokens and responses.
    """
    free, ends, given = 0.0, [0.0] * workers, 0.0
    look = of["ray_wait"] * workers
    held = [(0.0, place, number) for place in range(2) for number in range(workers)]  # when a place for a block is free
    for block in handed:
        moment, place, number = heapq.heappop(held)
        cost = look + of["read_token"] * int(block.sum()) + of["ray_call"] + of["ray_give"] * len(block)
        free, given = max(free, moment) + cost, given + cost
        ends[number] = max(ends[number] or free + load, free) + seconds(read_tokens(work, block), block.size)
        heapq.heappush(held, (ends[number], place, number))
    back = [(look + of["ray_group"]) * len(block) for block in handed]
    return max(max(ends) + back[-1], given + sum(back)) if back else 0.0


def read_tokens(work: Work, block: np.ndarray) -> int:
    """Tokens of a block of groups in packed rows, where a prompt is read once for its responses."""
    return int(block.sum()) + work.prompt_tokens * len(block)


def parted(texts: np.ndarray, size: int) -> list[np.ndarray]:
    """Groups in blocks, in their order."""
    return [texts[begin : begin + size] for begin in range(0, len(texts), size)]


def score(work: Work, handed: Sequence[np.ndarray], workers: int, rates: Rates, of: Constants) -> float:
    """Seconds of scoring blocks of groups."""
    return blocks(work, handed, workers, rates.score_load, lambda *sizes: scoring(rates, *sizes), of)


def scoring(rates: Rates, tokens: int, responses: int) -> float:
    """Seconds of a reward model for a block."""
    return responses * rates.score_text + tokens * rates.score_token


def followed(work: Work, texts: np.ndarray, made: Generated, rates: Rates, of: Constants) -> float:
    """Seconds of scoring after a generation that `reward_workers` followed.

    A block is asked for when all of its groups are written, `streamed` at once; what is not begun by the end is handed
    out to all of them.
    """
    handed, written = parted(texts, BATCH_SIZE), parted(np.array(made.written), BATCH_SIZE)
    lanes, left = [0.0] * min(work.streamed, work.reward_workers), []
    for number in sorted(range(len(handed)), key=lambda number: float(written[number].max())):
        begin, block = max(min(lanes), float(written[number].max())), handed[number]
        if begin >= made.seconds:
            left.append(block)
            continue
        overhead = 2 * of["ray_call"] + (of["ray_give"] + of["ray_group"]) * len(block)
        lanes[lanes.index(min(lanes))] = begin + overhead + scoring(rates, read_tokens(work, block), block.size)
    return max(0.0, max(lanes) - made.seconds) + score(work, left, work.reward_workers, rates, of)


def train(work: Work, lengths: np.ndarray, ranks: int, rates: Rates, of: Constants) -> float:
    """Seconds of the steps: the passes of each are dealt out to the ranks, and gradients are added up.

    Ranks of sharded weights compute together, each pass with weights gathered twice and gradients added up once.
    """
    rng = np.random.default_rng(work.seed)
    picked = work.prompt_tokens + lengths[np.arange(len(lengths)), rng.integers(lengths.shape[1], size=len(lengths))]
    total = 0.0
    for _ in range(work.num_train_epochs):
        mixed = rng.permutation(picked)
        for begin in range(0, len(mixed), work.batch_size):
            sizes = mixed[begin : begin + work.batch_size].tolist()
            passes = packing.bins(sizes, work.max_tokens_per_microbatch)
            computing = [
                rates.train_pass + sum(rates.train_text + sizes[place] * rates.train_token for place in some)
                for some in passes
            ]
            if rates.gathered:
                taken = sum(max(*computing[at : at + ranks], 3 * rates.gathered) for at in range(0, len(passes), ranks))
            else:
                taken = max(sum(computing[rank::ranks]) for rank in range(min(ranks, len(passes))))
            total += taken + rates.update
    steps = work.num_train_epochs * -(-len(picked) // work.batch_size)
    return total + steps * added_up(rates.gradients, ranks, of) + PROBES * max(rates.likely, rates.gathered)


def wire(ranks: int, of: Constants) -> float:
    """Bytes/s of a ring over so many GPUs."""
    return of["nvlink"] if ranks <= of["node"] else of["network"] * of["node"]


def added_up(size: float, devices: int, of: Constants) -> float:
    """Seconds of adding up so many bytes of gradients over devices: rings for the bytes, a tree for each bucket."""
    if devices == 1:
        return 0.0
    buckets = math.ceil(size / (4 * ranks.BUCKET))
    return 2 * (devices - 1) / devices * size / wire(devices, of) + buckets * 2 * math.log2(devices) * of["hop"]


def loading(rates: Rates, processes: int, parts: int, of: Constants) -> float:
    """Seconds in which a process for each GPU loads a policy's file, all of it or one of so many parts."""
    nodes = -(-processes // int(of["node"]))
    return max(rates.load * nodes / of["files"], rates.load / of["files_node"], rates.load / parts / of["load"])


def handover(rates: Rates, ranks: int, of: Constants) -> float:
    """Seconds of weights: the ranks load a policy, rank 0 writes the next one, and the engines load that.

    Sharded weights are loaded by rank 0, which sends them, and has them back at the end.
    """
    engines, written = loading(rates, ranks, rates.together, of), rates.load / of["files_write"]
    if rates.gathered:
        return loading(rates, 1, 1, of) + written + engines + 2 * (rates.pcie + rates.gathered)
    return loading(rates, ranks, 1, of) + written + engines


def likelihoods(work: Work, answers: np.ndarray, workers: int, rates: Rates, of: Constants) -> float:
    """Seconds of evaluation.kl: held-out answers under two policies, one after the other, each loaded from disk."""
    handed = parted(answers, logprobs.BLOCK)
    load = loading(rates, min(workers, len(handed)), 1, of)

    def seconds(tokens: int, responses: int) -> float:
        return math.ceil(tokens / packing.FORWARD["cuda"]) * rates.likely + tokens * rates.likely_token

    return 2 * blocks(work, handed, workers, load, seconds, of)


def iteration(work: Work, devices: int, rates: Rates, of: Constants) -> dict[str, float]:
    """Seconds by stage."""
    lengths, answers = work.lengths(work.prompts, work.k), work.lengths(work.held_out, work.held_out_k)
    workers = devices // rates.together - work.reward_workers
    ranks = workers * rates.together

    def scored(texts: np.ndarray, made: Generated) -> float:
        if work.reward_workers:
            return followed(work, texts, made, rates, of)
        return score(work, parted(texts, BATCH_SIZE), workers, rates, of)

    made, examined = (generate(work, texts, workers, rates, of) for texts in (lengths, answers))
    return {
        "generate": rates.wake + made.seconds,
        "score": scored(lengths, made),
        "driver": of["curve"] + sum(
            of[f"{what}_response"] * lengths.size + of[f"{what}_token"] * int(lengths.sum())
            for what in ("select", "figures")
        ),
        "train": of["ray_put"] + workers * of["ray_rank"] + of["spawn"] * (ranks > workers)
        + train(work, lengths, ranks, rates, of),
        "handover": handover(rates, ranks, of),
        "evaluate": rates.wake + examined.seconds + scored(answers, examined),
        "likelihoods": likelihoods(work, answers, workers, rates, of) if work.kl else 0.0,
    }  # fmt: skip


HERE = Rates(  # the machine of docs/measured.md with TinyStories-656K, from its two blocks of 2,048 x 8 (SPEED)
    step=5.4e-3,  # of "Settings of the engine" on that page: 256, 512 and 1,024 at once
    sequence=71.1e-6,
    request=2.41e-3,
    score_text=0.63e-3,
    score_token=18.9e-6,
    train_text=5.15e-3,
    train_token=51.1e-6,
)
BEFORE = {"select_response": 134e-6, "select_token": 0.76e-6}  # the same: selection as it was then
STORIES = Work(prompt_tokens=0, median=1e9, sigma=0.0, held_out=64, held_out_k=2, kl=0)  # all responses are cut
QUICKSTART = replace(
    STORIES, prompts=256, median=20.0, sigma=0.4, max_tokens=56, held_out=96, held_out_k=4, num_train_epochs=1
)
MEASURED = {  # seconds of docs/speed.md and docs/measured.md: generate, score, train, and the driver's
    "256 x 8 x 64": (replace(STORIES, prompts=256, max_tokens=64), (15.8, 3.9, 4.1, 1.3)),
    "256 x 8 x 192": (replace(STORIES, prompts=256, max_tokens=192), (36.3, 7.4, 9.5, 2.3)),
    "2,048 x 8 x 64, calibrated on it": (replace(STORIES, max_tokens=64), (120.8, 30.4, 34.5, 7.0)),
    "2,048 x 8 x 192, calibrated on it": (replace(STORIES, max_tokens=192), (282.7, 70.4, 61.3, 11.8)),
    "the quickstart, another model": (QUICKSTART, (6.0, 2.0, 1.0, 3.0)),
}


def predicted(work: Work) -> tuple[float, ...]:
    """Seconds of one iteration on the machine of docs/measured.md without Ray, by the stages of MEASURED.

    docs/speed.md counts held-out responses among `generate` and `score`; for the quickstart, docs/measured.md has all
    of them in the last number.
    """
    of = {name: 0.0 if name.startswith(("ray", "append")) else value for name, (value, _) in CONSTANTS.items()} | BEFORE
    found = iteration(work, 1, HERE, of)
    answers = work.lengths(work.held_out, work.held_out_k)
    examined = found["evaluate"], score(work, parted(answers, BATCH_SIZE), 1, HERE, of)
    if work == QUICKSTART:
        return found["generate"], found["score"], found["train"], found["driver"] + examined[0]
    generated = found["generate"] + examined[0] - examined[1]
    return generated, found["score"] + examined[1], found["train"], found["driver"]


def validation() -> Iterator[str]:
    """What was measured on one CPU, and what the simulation says of it."""
    yield "| run | generate | score | train | driver | sum | error |"
    yield "|---|---|---|---|---|---|---|"
    for name, (work, measured) in MEASURED.items():
        said = predicted(work)
        pairs = [*zip(measured, said, strict=True), (sum(measured), sum(said))]
        told = " | ".join(f"{one:.1f}, {other:.1f}" for one, other in pairs)
        yield f"| {name} | {told} | {round(sum(said) / sum(measured) - 1, 2) + 0.0:+.0%} |"


def tables(work: Work, of: Constants) -> tuple[dict[str, list[str]], dict[str, dict[int, dict[str, float]]]]:
    """The tables of docs/scaling.md by name, and seconds by policy, devices and stage."""
    times: dict[str, dict[int, dict[str, float]]] = {}
    refused = [
        f"| policy | full fine-tuning | LoRA | full, {SPLIT} GPUs for each worker, no likelihoods |",
        "|---|---|---|---|",
    ]
    shown = [
        f"| policy | GPUs | {' | '.join(STAGES)} | iteration | efficiency | most over linear |",
        "|---|---|" + "---|" * (len(STAGES) + 3),
    ]
    for policy in POLICIES:
        verdicts = {}
        for variant in VARIANTS:
            asked = replace(work, kl=0) if variant == "split" else work
            tried = {devices: rates(policy, variant, devices, asked, of) for devices in DEVICES}
            can = {devices: one for devices, one in tried.items() if isinstance(one, Rates)}
            why = next((one for one in reversed(tried.values()) if isinstance(one, str)), "")
            verdicts[variant] = why if not can else "fits" if len(can) == len(tried) else f"from {min(can)} GPUs"
            if can and not any(name.startswith(policy) for name in times):  # the first way that is possible
                name = f"{policy}, {VARIANTS[variant]}"
                times[name] = {devices: iteration(asked, devices, one, of) for devices, one in can.items()}
                shown += rows(name, times[name])
        refused.append(f"| {policy} | {' | '.join(verdicts.values())} |")
    return {
        "fits": refused,
        "times": shown,
        "changes": list(changes(work, of)),
        "validation": list(validation()),
    }, times


def changes(work: Work, of: Constants) -> Iterator[str]:
    """What keys of a recipe change, for the first policy by full fine-tuning."""
    asked: dict[str, Callable[[int], dict[str, int]]] = {
        "as it is": lambda devices: {},
        "evaluation.kl: false": lambda devices: {"kl": 0},
        "trainer.batch_size: 256": lambda devices: {"batch_size": 256},
        "trainer.save_dtype: bfloat16": lambda devices: {"saved": 2},
        "all three": lambda devices: {"kl": 0, "batch_size": 256, "saved": 2},
        "launch.reward_workers: an eighth": lambda devices: {"reward_workers": devices // 8},
        "launch.reward_workers: a quarter": lambda devices: {"reward_workers": devices // 4},
        "launch.reward_workers: half": lambda devices: {"reward_workers": devices // 2},
        "the same, all scoring during generation (not built)": lambda devices: {
            "reward_workers": devices // 2,
            "streamed": devices,
        },
    }
    yield f"| seconds of an iteration of {POLICIES[0]} on GPUs | {' | '.join(map(str, DEVICES))} |"
    yield "|---|" + "---|" * len(DEVICES)
    for name, change in asked.items():
        seconds = []
        for devices in DEVICES:
            changed = replace(work, **change(devices))
            one = rates(POLICIES[0], "full", devices, changed, of)
            assert isinstance(one, Rates)
            idle = changed.reward_workers == 0 and "reward_workers" in change(devices)
            seconds.append("" if idle else f"{sum(iteration(changed, devices, one, of).values()):,.0f}")
        yield f"| {name} | {' | '.join(seconds)} |"


def rows(name: str, times: Mapping[int, Mapping[str, float]]) -> Iterator[str]:
    """Seconds and shares by number of devices; efficiency is against the fewest devices."""
    fewest = min(times)
    base = times[fewest]
    for devices, stages in times.items():
        whole, linear = sum(stages.values()), fewest / devices
        over = {stage: seconds - base[stage] * linear for stage, seconds in stages.items()}
        worst = max(over, key=lambda stage: over[stage]) if devices > fewest else ""
        told = " | ".join(f"{seconds:,.0f} ({seconds / whole:.0%})" for seconds in stages.values())
        yield (
            f"| {name} | {devices} | {told} | {whole:,.0f} | {sum(base.values()) * linear / whole:.1%} | "
            f"{worst}{f', +{over[worst]:,.0f} s' if worst else ''} |"
        )


def sensitivity(work: Work, of: Constants) -> Iterator[str]:
    """Where half or twice a constant changes the worst stage, or the time on 64 GPUs by more than a seventh."""

    def verdict(of: Constants) -> tuple[list[float], list[str]]:
        times = {}
        for devices in DEVICES:
            one = rates(POLICIES[0], "full", devices, work, of)
            assert isinstance(one, Rates)
            times[devices] = iteration(work, devices, one, of)
        over = {
            devices: {stage: seconds - times[1][stage] / devices for stage, seconds in stages.items()}
            for devices, stages in times.items()
        }
        worst = [max(one, key=lambda stage: one[stage]) for one in list(over.values())[1:]]
        return [sum(stages.values()) for stages in times.values()], worst

    expected = verdict(of)
    for name, factor in [("as it is", 1.0), *itertools.product(CONSTANTS, (0.5, 2.0))]:
        seconds, worst = verdict({**of, name: of.get(name, 0.0) * factor})
        if name == "as it is" or worst != expected[1] or abs(math.log(seconds[2] / expected[0][2])) > math.log(8 / 7):
            yield f"{name} x {factor:g}: {', '.join(f'{one:,.0f}' for one in seconds)} s; {', '.join(worst)}"


def figure(times: Mapping[str, Mapping[int, Mapping[str, float]]]) -> "Figure":
    """A panel for each policy: seconds by stage, and the line of linear speed-up."""
    from raft.report.figures import style
    from raft.report.palette import FIRST_POLICY, SERIES

    made, grid = style.panels(len(times), len(times), 12.5, [3.4], sharey=True)
    top = 1.5 * max(sum(stages.values()) for by_devices in times.values() for stages in by_devices.values())
    for panel, (name, by_devices) in zip(grid, times.items(), strict=True):
        devices, fewest = list(by_devices), min(by_devices)
        for place, stage in enumerate(STAGES):
            seconds = [by_devices[number][stage] for number in devices]
            panel.plot(devices, seconds, color=SERIES[place], marker=style.MARKERS[place], label=stage)
        whole = [sum(by_devices[number].values()) for number in devices]
        panel.plot(devices, whole, color=FIRST_POLICY.light, linewidth=3, label="iteration")
        linear = [whole[0] * fewest / number for number in devices]
        panel.plot(devices, linear, color=FIRST_POLICY.light, linestyle=":", label="if it were linear")
        panel.set(xscale="log", yscale="log", title=name, xlabel="GPUs", ylim=(1, top))
        panel.set_xticks(DEVICES, map(str, DEVICES))
        panel.yaxis.set_major_formatter("{x:,.0f}")
        panel.minorticks_off()
    grid[0].set_ylabel("seconds of an iteration")
    style.legend(made, grid)
    return made


def measure() -> Iterator[str]:
    """The constants of the driver and of Ray, on this machine: the least of nine, as others may be at work on it."""
    import os

    import ray

    from raft.core.records import Example, Group, Prompt, Response

    rng, tokens = random.Random(0), 256
    drawn = [
        ([rng.randrange(150_000) for _ in range(tokens)], [-rng.random() for _ in range(tokens)]) for _ in range(8)
    ]
    responses = [Response("word " * tokens, ids, logprobs, "stop") for ids, logprobs in drawn]
    groups = [Group(Prompt(f"p{number:06d}", text="word " * 150), responses) for number in range(200)]
    lines = [records.dump(group.row()) for group in groups]

    def timed(work: Any) -> float:
        seconds = []
        for _ in range(9):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    each = len(groups) * len(responses) * tokens
    yield f"append_token {timed(lambda: [records.dump(group.row()) for group in groups]) / each:.2e}"
    yield f"read_token {timed(lambda: [records.answers(records.parse(line)) for line in lines]) / each:.2e}"
    short, long = (timed(selecting(rng, tokens)) / SELECTED for tokens in (64, 192))
    yield f"select_token {(long - short) / 128:.2e}"
    yield f"select_response {short - (long - short) / 2:.2e}"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)

    @ray.remote(max_concurrency=WAITING + 2)
    class Worker:
        def __init__(self) -> None:
            self.ended = threading.Event()

        def run(self) -> Iterator[Any]:
            for group in groups:  # noqa: UP028 (a stream of Ray has to be a generator itself)
                yield group

        def still(self) -> Iterator[Any]:
            self.ended.wait()
            yield None

        def end(self) -> None:
            self.ended.set()

        def take(self, given: Any) -> None:
            pass

    actor: Any = Worker
    worker = actor.remote()
    ray.get(worker.take.remote(None))

    def stream() -> None:
        for ref in worker.run.options(num_returns="streaming").remote():
            ray.get(ref)

    each_its_own = [(list(ids), list(logprobs)) for ids, logprobs in drawn * 256]
    examples = [
        Example(f"p{number:06d}", Response("word " * tokens, *lists, "stop"), 0, 1.0, 1.0, text="word " * 150)
        for number, lists in enumerate(each_its_own)
    ]
    yield f"ray_group {timed(stream) / len(groups):.2e}"
    yield f"ray_call {timed(lambda: ray.get(worker.take.remote(None))):.2e}"
    yield f"ray_give {timed(lambda: ray.get(worker.take.remote(groups[:64]))) / 64:.2e}"
    yield f"ray_put {timed(lambda: ray.put(examples)):.2e}"
    once = ray.put(examples)
    yield f"ray_rank {timed(lambda: worker.take.remote(once)):.2e}"
    streams = [worker.still.options(num_returns="streaming").remote() for _ in range(WAITING)]
    time.sleep(1)
    done = ray.put(None)
    yield f"ray_wait {timed(lambda: ray.wait([*streams, done], num_returns=1)) / WAITING:.2e}"
    ray.get(worker.end.remote())
    ray.shutdown()


def selecting(rng: random.Random, tokens: int) -> Callable[[], None]:
    """The selection of SELECTED responses of so many tokens, best of 8."""
    from raft.core.progress import Progress
    from raft.core.records import Group, Prompt, Response, Score
    from raft.pipeline import stages
    from raft.pipeline.selection import BestOfK
    from raft.store.artifact_writer import ArtifactWriter

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)

    def response() -> Response:
        drawn = [rng.randrange(150_000) for _ in range(tokens)]
        return Response("word " * tokens, drawn, [-rng.random() for _ in drawn], "stop")

    prompts = [Prompt(f"p{number:06d}", text="word " * 150) for number in range(SELECTED // 8)]
    rows = {
        "prompts": (prompt.row() for prompt in prompts),
        "responses": (Group(prompt, [response() for _ in range(8)]).row() for prompt in prompts),
        "scores": (
            {"prompt_id": prompt.id, "scores": [Score(rng.random()).row() for _ in range(8)]} for prompt in prompts
        ),
    }
    made: dict[str, Any] = {}
    for name, some in rows.items():
        records.write(folder / name, some)
        read = partial(records.read, folder / name)
        made[name] = SimpleNamespace(path=folder / name, place=folder / name, read=read, rows=len(prompts))

    def select() -> None:
        (folder / "selected").unlink(missing_ok=True)
        output = ArtifactWriter(folder / "selected", folder / "partial", "", 0, 1, Progress("select", "prompts"))
        stages.select(BestOfK(), output, **made)

    return select


def main() -> None:
    """Prints the tables, and draws the figure."""
    if "--measure" in sys.argv:
        print("\n".join(measure()))
        return
    from raft.report.figures import style

    given = dict(one.split("=") for one in sys.argv[1:] if not one.startswith("--"))
    kinds = {one.name: type(getattr(Work, one.name)) for one in fields(Work)}
    work = replace(Work(), **{name: kinds[name](value) for name, value in given.items()})
    of = {name: value for name, (value, _) in CONSTANTS.items()}
    if "--sensitivity" in sys.argv:
        print("\n".join(sensitivity(work, of)))
        return
    made, times = tables(work, of)
    print("\n\n".join("\n".join(table) for table in made.values()))
    if not given:
        style.save(lambda: figure(times), Path(__file__).parents[1] / "docs" / "scaling.png")


if __name__ == "__main__":
    main()
