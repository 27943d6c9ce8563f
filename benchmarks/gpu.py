"""The whole thing on one GPU, with random weights of a real size: where the time goes, how near it is to the ceilings.

    python benchmarks/gpu.py OUT                    a policy of 1.5e9 parameters, a reward model of 1.3e9; 80 GB
    python benchmarks/gpu.py --tiny OUT             the same path in a minute on a CPU

Makes both models, their tokenizer, prompts and a recipe in OUT, runs the recipe in this process, and writes OUT/gpu.md
and OUT/gpu.json after each iteration, so that a run that is cut off leaves something. Nothing is downloaded. What is
said in OUT/gpu.md:

    ceilings   a copy of a large array, bytes read and written; a product of matrices, bfloat16 on a GPU, else float32
    generate   bytes that the steps have to read, the weights in each and the cache of each response, beside the copy
    score      2 x parameters x tokens, beside the matrices; a prompt counts once for its K responses
    train      6 x parameters x tokens, beside the matrices

Parameters of embeddings are left out of the last two, and a tied output layer with them. Seconds are those of a stage
without its parts (loading, saving, syncing). The second iteration is warm.
"""

import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_world import DEVICE, REAL, TINY, make_models, make_recipe
from iteration import line, parts, stamps, whole

from raft import __version__
from raft.cli.console import Console
from raft.config import recipe
from raft.core import atomic, records
from raft.core.versions import versions
from raft.generators import vllm
from raft.models import chat_templates
from raft.pipeline import loop
from raft.store import runs
from raft.trainers.hf_trainer import free

ON_GPU = torch.cuda.is_available()
NARROW = torch.bfloat16 if ON_GPU else torch.float32  # in which raft generates, scores and multiplies by itself
MEGABYTE = 2**20
EVERY = 0.05  # seconds between two looks at the memory
STAGES = ("generate", "score", "train", "reference")  # those that use the device


def main() -> None:
    """Makes everything, runs it, and writes what was found, whole or not."""
    arguments = [one for one in sys.argv[1:] if one != "--tiny"]
    size = TINY if "--tiny" in sys.argv else REAL
    out = Path(arguments[0]).absolute()
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(), "ceilings": ceilings(size)}
    print(json.dumps(found), flush=True)
    began = time.perf_counter()
    found["models"] = make_models(out, size)
    print(f"models, tokenizer and prompts: {time.perf_counter() - began:.1f} s", flush=True)
    path = make_recipe(out, size)
    loaded = replace(recipe.load(path, arguments[1:]), outputs=out / "outputs")
    shutil.rmtree(loaded.folder, ignore_errors=True)
    memory = Memory()
    results = Results(loaded, out, found, memory)
    with memory.watched():
        try:
            loop.run(loaded, results)
        finally:
            results.write()
    print((out / "gpu.md").read_text())


def machine() -> dict[str, Any]:
    """What it runs on."""
    found: dict[str, Any] = {"raft": __version__, **versions(), "platform": platform.platform()}
    found |= {"cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    if ON_GPU:
        device = torch.cuda.get_device_properties(0)
        found |= {"gpu": device.name, "gpu memory MB": device.total_memory // MEGABYTE, "cuda": torch.version.cuda}
        if shutil.which("nvidia-smi"):
            asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            found["driver"] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return found


def ceilings(size: dict[str, Any]) -> dict[str, float]:
    """Bytes a second of a copy, read and written, and FLOPs a second of a product of square matrices."""
    found = {
        "bytes/s": 2 * size["copy"] / copy(size["copy"]),
        "FLOP/s": 2 * size["matrix"] ** 3 / product(size["matrix"]),
    }
    free()
    return found


def copy(count: int) -> float:
    """Seconds that so many bytes take."""
    source = torch.randn(count // torch.float32.itemsize, device=DEVICE)
    target = torch.empty_like(source)
    return seconds_of(lambda: target.copy_(source))


def product(side: int) -> float:
    """Seconds that two matrices take."""
    a, b = (torch.randn(side, side, device=DEVICE).to(NARROW) for _ in "ab")
    return seconds_of(lambda: a @ b)


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds that a call takes on the device: the median of ten after three."""
    seconds = []
    for _ in range(13):
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        seconds.append(time.perf_counter() - began)
    return median(seconds[3:])


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if ON_GPU:
        torch.cuda.synchronize()


class Memory:
    """The most memory that each artifact took while it was made, in bytes.

    `allocated` and `reserved` are torch's own, reset before each artifact and never within: vLLM measures by the same
    counters how much it may take. `used` is what the driver says of the whole GPU, the sleeping engine's included;
    `resident` is this process in the host's memory. Both are looked at every 0.05 s.
    """

    def __init__(self) -> None:
        self.peaks: list[dict[str, Any]] = []
        self.most: dict[str, int] = {}
        self.lock, self.done = threading.Lock(), threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Looks until the block ends, and has each artifact told apart."""
        once = runs.Folder.once

        def measured(place: runs.Folder, name: str, stage: Any, section: Any = None, **inputs: Any) -> Any:
            self.reset()
            try:
                return once(place, name, stage, section, **inputs)
            finally:
                self.look()
                self.peaks.append({"iteration": place.number, "stage": stage.__name__, "artifact": name, **self.most})

        runs.Folder.once = measured  # type: ignore[method-assign, assignment]
        looking = threading.Thread(target=self._run, daemon=True)
        looking.start()
        try:
            yield
        finally:
            self.done.set()
            looking.join()
            runs.Folder.once = once  # type: ignore[method-assign]

    def reset(self) -> None:
        """Forgets the peaks so far."""
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        with self.lock:  # a look that has begun belongs to what was before
            self.most = {}

    def look(self) -> None:
        """What torch and the driver say at a moment at which nothing is under way."""
        self._sample()
        if ON_GPU:
            left, total = torch.cuda.mem_get_info()
            self._add("used", total - left)
            self._add("allocated", torch.cuda.max_memory_allocated())
            self._add("reserved", torch.cuda.max_memory_reserved())

    def _run(self) -> None:
        while not self.done.wait(EVERY):
            self._sample()

    def _sample(self) -> None:
        """Asks the driver by NVML and not by CUDA, whose calls could disturb a graph that vLLM is capturing."""
        with self.lock:
            self._add("resident", resident())
            if ON_GPU:
                with suppress(Exception):  # without NVML for Python only the moments between two artifacts are left
                    self._add("used", torch.cuda.device_memory_used(0))

    def _add(self, name: str, value: int) -> None:
        self.most[name] = max(self.most.get(name, 0), value)


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Results(Console):
    """Tells the terminal what the run does, and writes the figures after each iteration."""

    def __init__(self, loaded: recipe.Loaded, out: Path, found: dict[str, Any], memory: Memory):
        super().__init__()
        self.loaded, self.out, self.found, self.memory = loaded, out, found, memory
        self.iterations: dict[int, dict[str, Any]] = {}

    def on_iteration_end(self, it: runs.Folder, findings: Any) -> None:
        """As told, and what the iteration took."""
        super().on_iteration_end(it, findings)
        took = parts(self.loaded, it.number)
        self.iterations[it.number] = {"seconds": took}
        if it.number:
            rates = speeds(self.loaded, it.number, self.found)
            self.iterations[it.number] |= {"whole": whole(self.loaded, it.number), "speeds": rates}
        self.write()
        print(f"iteration {it.number}: {line(took)}", flush=True)

    def write(self) -> None:
        """gpu.json and gpu.md, with what there is so far."""
        stages = [
            {"iteration": number, **{name: stamp[name] for name in ("began", "seconds", "parts")}}
            | {"stage": stamp["key"]["stage"]}
            for number in range(self.loaded.recipe.iterations + 1)
            for stamp in stamps(self.loaded, number)
        ]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {**self.found, "iterations": self.iterations, "artifacts": stages, "memory": self.memory.peaks}
        found |= {"recipe": self.loaded.config, "peak resident": peak}
        atomic.write_json(self.out / "gpu.json", found)
        (self.out / "gpu.md").write_text(page(found), encoding="utf-8")


def speeds(loaded: recipe.Loaded, number: int, found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Tokens a second of the three stages of an iteration, and their share of the ceilings; evaluation is left out."""
    made, folder = loaded.recipe, loaded.folder / "iterations" / f"{number:03d}"
    policy, reward, ceiling = found["models"]["policy"], found["models"]["reward"], found["ceilings"]
    tokenizer = chat_templates.load_tokenizer(str(loaded.folder / "iterations" / "000" / "policy"))
    spoken, heard, seen = 0, 0, 0
    for group in records.groups(folder / "prompts.jsonl", folder / "responses.jsonl"):
        prompt, counts = (
            len(chat_templates.encode_prompt(tokenizer, group.prompt)),
            [len(r.token_ids) for r in group.responses],
        )
        spoken, heard = spoken + sum(counts), heard + prompt + sum(counts)
        seen += sum(count * prompt + count * (count - 1) // 2 for count in counts)
    learned = 0
    for example in map(records.Example.of, records.read(folder / "selected.jsonl")):
        learned += len(chat_templates.encode_prompt(tokenizer, example.prompt)) + len(example.response.token_ids)
    learned *= made.trainer.num_train_epochs
    responses = made.prompts.per_iteration * made.generator.k
    steps = math.ceil(responses / at_once(made)) * made.generator.max_tokens
    moved = (steps * policy["parameters"] + seen * policy["cached numbers a token"]) * NARROW.itemsize
    rates = {}
    for stage, artifact, tokens, work, limit in (
        ("generate", "responses.jsonl", spoken, moved, "bytes/s"),
        ("score", "scores.jsonl", heard, 2 * reward["without embeddings"] * heard, "FLOP/s"),
        ("train", "policy", learned, 6 * policy["without embeddings"] * learned, "FLOP/s"),
    ):
        stamp = json.loads(runs.stamp_path(folder / artifact).read_text())
        seconds = stamp["seconds"] - sum(stamp["parts"].values())
        rates[stage] = {
            "tokens": tokens, "seconds": seconds, "tokens/s": tokens / seconds, limit: work / seconds,
            "share": work / seconds / ceiling[limit],
        }  # fmt: skip
    return {**rates, "generate": {**rates["generate"], "at once": at_once(made)}}


def at_once(made: Any) -> int:
    """Responses that are generated together, with prompts as long as they may be."""
    generator = made.generator
    if isinstance(generator, vllm.VLLM):
        (engine,) = vllm._engines.values()
        return min(engine.most, engine.room // engine.blocks(made.prompts.max_prompt_length + generator.max_tokens + 1))
    return generator.batch_size * generator.k


def page(found: dict[str, Any]) -> str:
    """The figures as tables."""
    about, ceiling, iterations = found["machine"], found["ceilings"], found["iterations"]
    sections = [
        table(["machine", ""], [[name, str(value)] for name, value in about.items()]),
        table(
            ["model", "parameters", "without embeddings"],
            [
                [name, f"{one['parameters'] / 1e6:,.1f}e6", f"{one['without embeddings'] / 1e6:,.1f}e6"]
                for name, one in found["models"].items()
            ],
        ),
        table(
            ["ceiling", "measured"],
            [
                ["copy, read and written", f"{ceiling['bytes/s'] / 1e9:,.0f} GB/s"],
                [f"matrices, {str(NARROW).removeprefix('torch.')}", f"{ceiling['FLOP/s'] / 1e12:,.2f} TFLOP/s"],
            ],
        ),
    ]
    names = {name: None for one in iterations.values() for name in one["seconds"]}
    rows = [[name, *(f"{one['seconds'].get(name, 0):.2f}" for one in iterations.values())] for name in names]
    rows.append(["whole", *(f"{one['whole']:.2f}" if "whole" in one else "" for one in iterations.values())])
    sections.append(table(["seconds", *(f"iteration {number}" for number in iterations)], rows))
    rows = []
    for number, one in iterations.items():
        for stage, rate in one.get("speeds", {}).items():
            reached = next(f"{rate[limit]:.3g} {limit}" for limit in ("bytes/s", "FLOP/s") if limit in rate)
            told = [f"{rate['tokens']:,}", f"{rate['seconds']:.2f}", f"{rate['tokens/s']:,.0f}", reached]
            rows.append([f"{number}", stage, *told, f"{rate['share']:.1%}"])
    sections.append(table(["iteration", "stage", "tokens", "seconds", "tokens/s", "reached", "of the ceiling"], rows))
    kinds = ("allocated", "reserved", "used", "resident") if ON_GPU else ("resident",)
    rows = []
    for stage in STAGES:
        own = [peak for peak in found["memory"] if peak["stage"] == stage]
        most = {kind: max((peak.get(kind, 0) for peak in own), default=0) for kind in kinds}
        rows.append([stage, *(f"{value / MEGABYTE:,.0f}" for value in most.values())])
    rows.append(["whole process", *[""] * (len(kinds) - 1), f"{found['peak resident'] / MEGABYTE:,.0f}"])
    sections.append(table(["peak MB", *kinds], rows))
    return "\n\n".join(sections) + "\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    main()
