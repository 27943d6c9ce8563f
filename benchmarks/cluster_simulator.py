"""One iteration of `launch: {kind: ray}` on 1 to 512 GPUs, as a discrete-event simulation: which part saturates first.

    python benchmarks/cluster_simulator.py                      the tables of docs/scaling.md, and docs/scaling.png
    python benchmarks/cluster_simulator.py batch_size=256       another iteration: any field of Work
    python benchmarks/cluster_simulator.py --sensitivity        each constant halved and doubled
    python benchmarks/cluster_simulator.py --measure            what the driver and Ray take on this machine

It follows raft/launch/ray.py as it is: prompts go out four at a time, and no worker has more than its share under way;
scoring in blocks of 64 groups, two at a time; training passes dealt out to ranks, gradients added up; weights through
files; likelihoods, selection and figures in one place. It is an iteration in the middle of a run, when engines are up
and asleep. CONSTANTS has every number that is not computed, with its source: `public` is the maker's data sheet, `here`
was measured on the machine of docs/measured.md, `assumed` is what nobody has measured for raft. Nothing ran on a GPU.
"""

import heapq
import itertools
import math
import random
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hardware import GPUS, REWARDS, fits, gb, memory, model, turns

from raft.cli.memory_plan import KEPT, UTILIZATION
from raft.core import ranks, records
from raft.core.protocols import BATCH_SIZE
from raft.launch.ray import TOGETHER
from raft.models import packing

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
    "hop": (10e-6, "assumed: seconds of a hop of a collective"),
    "node": (8, "assumed: GPUs of a node"),
    "files": (20e9, "assumed: bytes/s of the shared file system, all nodes together"),
    "files_node": (10e9, "assumed: bytes/s of one node from it; workers of a node share what it has read"),
    "files_write": (2e9, "assumed: bytes/s of one process that writes"),
    "load": (3e9, "assumed: bytes/s of weights from the page cache into a model, casting included"),
    "layer": (1e-3, "assumed: seconds of Python and launches of a layer in a pass, forward (three times in training)"),
    "step": (5e-3, "assumed: seconds of a decoding step beside its arithmetic"),
    "sequence": (20e-6, "assumed: ... for each sequence (seeds and log-probabilities of its own)"),
    "tensor": (0.8, "assumed: of the speed of so many GPUs, that of an engine spread over them (not built)"),
    "most": (1024, "vLLM's own max_num_seqs on a GPU of 70 GB or more, in offline use"),
    "ray_group": (1.0e-3, MEASURE),
    "ray_rank": (55e-3, MEASURE),
    "ray_call": (1.2e-3, MEASURE),
    "append_token": (1.8e-6, MEASURE),
    "read_token": (0.33e-6, MEASURE),
    "select_response": (134e-6, SPEED),
    "select_token": (0.76e-6, SPEED),
    "figures_response": (107e-6, SPEED),
    "figures_token": (1.48e-6, SPEED),
    "curve": (0.7, SPEED),
}
MEDIAN, SIGMA = 250.0, 0.8  # of the lengths of responses; assumed: of chat answers, most are short and a few very long
GPU = 141
DEVICES = (1, 8, 64, 512)
POLICIES = ("Qwen2.5-7B", "Qwen2.5-14B", "Qwen2.5-32B", "Llama-3.1-70B")
VARIANTS = {"full": "full", "lora": "LoRA", "sharded": "sharded, not built"}
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
    likely: float = 0.0  # of a pass
    likely_token: float = 0.0
    train_text: float = 0.0
    train_pass: float = 0.0
    train_token: float = 0.0
    update: float = 0.0  # of an optimiser step
    gradients: float = 0.0  # bytes that are added up in each
    gathered: float = 0.0  # seconds of fetching sharded weights for a pass
    load: float = 0.0  # bytes of a policy's file
    wake: float = 0.0
    together: int = 1  # devices that hold one copy of an engine

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
    """Seconds until the driver has every group, until each engine was idle, and of the driver's own work."""

    seconds: float
    idle: list[float]
    driver: float


def generate(work: Work, lengths: np.ndarray, engines: int, rates: Rates, of: Constants) -> Generated:
    """Prompts handed out as raft.launch.ray.Cluster does; a group comes back when its last response ends."""
    each = [Engine(rates, work, lengths) for _ in range(engines)]
    left = [lengths.shape[1]] * len(lengths)
    waiting, done, free, driven = deque(range(len(lengths))), 0, 0.0, 0.0
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
            cost = of["ray_group"] + of["append_token"] * int(lengths[about].sum())
            free, done, driven = max(free, moment) + cost, done + 1, driven + cost
            engine.under_way -= 1
            supply(free)
            continue
        if what == "taken":
            engine.feeding = False
            supply(max(free, moment))
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
    return Generated(free, [engine.now for engine in each], driven)


def rates(policy: str, variant: str, devices: int, work: Work, of: Constants) -> Rates | str:
    """What a GPU takes for a policy, or why the policy does not fit, by the memory plan of `raft check`.

    `full` and `lora` are what raft does. `sharded` is not built: state spread over all devices, engines and likelihoods
    over as many as they need.
    """
    size, gpu = model(policy), turns(policy, REWARDS[0], variant == "lora", GPU)
    count, kept = size.parameters(), size.cached(2) or 0
    layers = size.config["num_hidden_layers"]
    together = 1
    if variant == "sharded":
        spread = [gpu["train"].total / devices, gpu["likelihoods"].total / devices]
        while 2 * count / together > 0.8 * UTILIZATION * GPUS[GPU] * 1e9:
            together *= 2
        if together > devices or max(spread) + KEPT > GPUS[GPU] * 1e9:
            return f"does not fit {devices} x {GPU} GB"
    else:
        asked = ("generate", "likelihoods", "train") if work.kl else ("generate", "train")
        wrong = [name for name in asked if not fits(name, policy, lora=variant == "lora")]
        if wrong:
            limit = {"generate": int(UTILIZATION * memory(GPU).memory)}
            told = (
                f"{name} {gb(gpu[name].total)} of {gb(limit.get(name, memory(GPU).memory - KEPT))}" for name in wrong
            )
            return f"does not fit: {', '.join(told)} GB"
    room = together * UTILIZATION * GPUS[GPU] * 1e9 - 2 * count
    reading, computing = (
        together * of["memory"] * of["memory_share"],
        together * of["matrices"] * of["matrices_forward"],
    )
    if together > 1:
        reading, computing = reading * of["tensor"], computing * of["tensor"]
    judge = model(REWARDS[0])
    learning = {"full": 8, "lora": 6, "sharded": 8}[variant] * count / (of["matrices"] * of["matrices_train"])
    trained = count if variant != "lora" else size.adapters({"r": 32, "target_modules": "all-linear"}) or 0
    wire = of["nvlink"] if devices <= of["node"] else of["network"] * of["node"]
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
        score_load=2 * judge.parameters(output=False) / of["pcie"],
        likely=layers * of["layer"],
        likely_token=2 * count / (of["tf32"] * of["matrices_forward"]),
        train_pass=3 * layers * of["layer"],
        train_token=learning,
        update=36 * trained / (devices if variant == "sharded" else 1) / (of["memory"] * of["memory_share"]),
        gradients=0.0 if variant == "sharded" else 4 * trained,
        gathered=(2 * 2 + 4) * count / wire if variant == "sharded" else 0.0,
        load=4 * count,
        wake=2 * count / together / of["pcie"],
        together=together,
    )


def score(work: Work, texts: np.ndarray, devices: int, rates: Rates, of: Constants) -> float:
    """Seconds of scoring: blocks of groups, read by the driver; a worker is handed two before the next has one."""
    blocks = [texts[begin : begin + BATCH_SIZE] for begin in range(0, len(texts), BATCH_SIZE)]
    free, ends = 0.0, [0.0] * devices
    held = [(0.0, number, place) for number in range(devices) for place in range(2)]  # when a place for a block is free
    heapq.heapify(held)
    for block in blocks:
        moment, number, place = heapq.heappop(held)
        free = max(free, moment) + of["read_token"] * int(block.sum()) + of["ray_call"]
        tokens = int(block.sum()) + work.prompt_tokens * len(block)  # a prompt is read once for its responses
        ends[number] = max(ends[number] or rates.score_load, free) + (
            block.size * rates.score_text + tokens * rates.score_token
        )
        heapq.heappush(held, (ends[number], number, place))
    results = of["ray_group"] * len(texts)
    return max(max(ends) + of["ray_group"] * len(blocks[-1]), results + of["read_token"] * int(texts.sum()))


def train(work: Work, lengths: np.ndarray, devices: int, rates: Rates, of: Constants) -> float:
    """Seconds of the steps: the passes of each are dealt out to the ranks, and gradients are added up."""
    rng = np.random.default_rng(work.seed)
    picked = work.prompt_tokens + lengths[np.arange(len(lengths)), rng.integers(lengths.shape[1], size=len(lengths))]
    total = 0.0
    for _ in range(work.num_train_epochs):
        mixed = rng.permutation(picked)
        for begin in range(0, len(mixed), work.batch_size):
            sizes = mixed[begin : begin + work.batch_size].tolist()
            passes = packing.bins(sizes, work.max_tokens_per_microbatch)
            taken = [
                sum(
                    max(
                        rates.train_pass + sum(rates.train_text + sizes[place] * rates.train_token for place in some),
                        rates.gathered,
                    )
                    for some in passes[rank::devices]
                )
                for rank in range(min(devices, len(passes)))
            ]
            total += max(taken) + rates.update
    steps = work.num_train_epochs * -(-len(picked) // work.batch_size)
    return total + steps * added_up(rates.gradients, devices, of)


def added_up(size: float, devices: int, of: Constants) -> float:
    """Seconds of adding up so many bytes of gradients over devices: rings for the bytes, a tree for each bucket."""
    if devices == 1:
        return 0.0
    speed = of["nvlink"] if devices <= of["node"] else of["network"] * of["node"]
    buckets = math.ceil(size / (4 * ranks.BUCKET))
    return 2 * (devices - 1) / devices * size / speed + buckets * 2 * math.log2(devices) * of["hop"]


def handover(rates: Rates, devices: int, of: Constants) -> float:
    """Seconds of weights: the ranks read a policy, rank 0 writes the next one, and the engines read that."""
    nodes = -(-devices // of["node"])
    whole = max(
        rates.load * nodes / of["files"], rates.load / of["files_node"], rates.load / rates.together / of["load"]
    )
    if rates.gathered:  # each rank reads and writes its part
        return whole + 2 * rates.load / min(of["files"], nodes * of["files_node"])
    return 2 * whole + rates.load / of["files_write"]


def likelihoods(work: Work, answers: np.ndarray, rates: Rates, of: Constants) -> float:
    """Seconds of evaluation.kl: the first worker reads held-out answers under two policies, each loaded anew."""
    tokens = int(answers.sum()) + work.prompt_tokens * len(answers)
    load = max(rates.load / of["files_node"], rates.load / of["load"])
    passes = math.ceil(tokens / packing.FORWARD["cuda"])
    return 2 * (load + passes * rates.likely + tokens * rates.likely_token)


def iteration(work: Work, devices: int, rates: Rates, of: Constants) -> dict[str, float]:
    """Seconds by stage."""
    lengths, answers = work.lengths(work.prompts, work.k), work.lengths(work.held_out, work.held_out_k)
    engines = devices // rates.together
    made = generate(work, lengths, engines, rates, of)
    examined = generate(work, answers, engines, rates, of)
    return {
        "generate": rates.wake + made.seconds,
        "score": score(work, lengths, devices, rates, of),
        "driver": of["curve"] + sum(
            of[f"{what}_response"] * lengths.size + of[f"{what}_token"] * int(lengths.sum())
            for what in ("select", "figures")
        ),
        "train": train(work, lengths, devices, rates, of) + devices * of["ray_rank"] * (devices > 1),
        "handover": handover(rates, devices, of),
        "evaluate": rates.wake + examined.seconds + score(work, answers, devices, rates, of),
        "likelihoods": likelihoods(work, answers, rates, of) if work.kl else 0.0,
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
    of = {name: 0.0 if name.startswith(("ray", "append")) else value for name, (value, _) in CONSTANTS.items()}
    found = iteration(work, 1, HERE, of)
    answers = work.lengths(work.held_out, work.held_out_k)
    examined = found["evaluate"], score(work, answers, 1, HERE, of)
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
    refused = ["| policy | full fine-tuning | LoRA | sharded (not built) |", "|---|---|---|---|"]
    shown = [
        f"| policy | GPUs | {' | '.join(STAGES)} | iteration | efficiency | most over linear |",
        "|---|---|" + "---|" * (len(STAGES) + 3),
    ]
    for policy in POLICIES:
        verdicts = {}
        for variant in VARIANTS:
            tried = {devices: rates(policy, variant, devices, work, of) for devices in DEVICES}
            can = {devices: one for devices, one in tried.items() if isinstance(one, Rates)}
            why = next((one for one in tried.values() if isinstance(one, str)), "")
            verdicts[variant] = why if not can else "fits" if len(can) == len(tried) else f"from {min(can)} GPUs"
            if can and not any(name.startswith(policy) for name in times):  # the first way that is possible
                name = f"{policy}, {VARIANTS[variant]}"
                times[name] = {devices: iteration(work, devices, one, of) for devices, one in can.items()}
                shown += rows(name, times[name])
        refused.append(f"| {policy} | {' | '.join(verdicts.values())} |")
    return {
        "fits": refused,
        "times": shown,
        "changes": list(changes(work, of)),
        "validation": list(validation()),
    }, times


def changes(work: Work, of: Constants) -> Iterator[str]:
    """What two keys of a recipe change, for the first policy by full fine-tuning."""
    asked: dict[str, dict[str, Any]] = {
        "as it is": {},
        "evaluation.kl: false": {"kl": 0},
        "trainer.batch_size: 256": {"batch_size": 256},
        "both": {"kl": 0, "batch_size": 256},
    }
    yield f"| seconds of an iteration of {POLICIES[0]} on GPUs | {' | '.join(map(str, DEVICES))} |"
    yield "|---|" + "---|" * len(DEVICES)
    for name, change in asked.items():
        seconds = []
        for devices in DEVICES:
            one = rates(POLICIES[0], "full", devices, work, of)
            assert isinstance(one, Rates)
            seconds.append(sum(iteration(replace(work, **change), devices, one, of).values()))
        yield f"| {name} | {' | '.join(f'{each:,.0f}' for each in seconds)} |"


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
    """The constants of the driver and of Ray, on this machine: the median of five."""
    import statistics

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
        for _ in range(5):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    each = len(groups) * len(responses) * tokens
    yield f"append_token {timed(lambda: [records.dump(group.row()) for group in groups]) / each:.2e}"
    yield f"read_token {timed(lambda: [records.answers(records.parse(line)) for line in lines]) / each:.2e}"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)

    @ray.remote
    class Worker:
        def run(self) -> Iterator[Any]:
            for group in groups:  # noqa: UP028 (a stream of Ray has to be a generator itself)
                yield group

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
    yield f"ray_rank {timed(lambda: worker.take.remote(examples)):.2e}"
    ray.shutdown()


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
