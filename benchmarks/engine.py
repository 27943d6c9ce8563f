"""Which settings of vLLM generate fastest: each in a process of its own, in turn, again and again.

    python benchmarks/engine.py outputs/RUN                  all settings below, two processes each
    python benchmarks/engine.py outputs/RUN NAME ...         these alone, and raft's own

The first policy of a finished run answers the prompts of its first iteration as its recipe says (`generator`), some
times in each process after one that is not counted. Printed are, for each setting, the seconds until the engine
answered its first prompt, tokens a second (median and range), their share of what raft's own settings reach in the same
run, and whether tokens and log-probabilities are the same, bit for bit. Of one that does not work, its last words.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raft.config import recipe
from raft.core.records import Policy, Prompt, read
from raft.generators.vllm import VLLM

TIMES, PROCESSES = 2, 2
OWN = "as raft has it"
CPU: dict[str, dict[str, Any]] = {
    OWN: {},
    "compiled": {"engine_args": {"enforce_eager": False}},
    "OpenMP bound to one core": {"environment": {"VLLM_CPU_OMP_THREADS_BIND": "0"}},
    "256 at once": {"engine_args": {"max_num_seqs": 256}},
    "512 at once": {"engine_args": {"max_num_seqs": 512}},
    "2048 at once": {"engine_args": {"max_num_seqs": 2048}},
    "16384 tokens a step": {"engine_args": {"max_num_batched_tokens": 16384}},
    "prompts in parts": {"engine_args": {"enable_chunked_prefill": True}},
    "no prefix cache": {"engine_args": {"enable_prefix_caching": False}},
    "blocks of 32": {"engine_args": {"block_size": 32}},
    "bfloat16": {"dtype": "bfloat16"},
}
GPU: dict[str, dict[str, Any]] = {
    OWN: {},
    "eager": {"engine_args": {"enforce_eager": True}},
    "256 at once": {"engine_args": {"max_num_seqs": 256}},
    "2048 at once": {"engine_args": {"max_num_seqs": 2048}},
    "4096 tokens a step": {"engine_args": {"max_num_batched_tokens": 4096}},
    "32768 tokens a step": {"engine_args": {"max_num_batched_tokens": 32768}},
    "prompts whole": {"engine_args": {"enable_chunked_prefill": False}},
    "no prefix cache": {"engine_args": {"enable_prefix_caching": False}},
    "float32": {"dtype": "float32"},
    "batch invariant": {"batch_invariant": True},
}
SETTINGS = GPU if torch.cuda.is_available() else CPU


def main() -> None:
    """Prints the table."""
    if sys.argv[1] == "--one":
        print(json.dumps(measure(Path(sys.argv[2]), SETTINGS[sys.argv[3]])), flush=True)
        os._exit(0)  # an engine is slow to end
    names = [OWN, *sys.argv[2:]] if sys.argv[2:] else list(SETTINGS)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(PROCESSES):
        for name in names:
            found[name].append(one(sys.argv[1], name))
            print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
    print("| | start, s | tokens a second | of raft's own | same responses |\n|---|---|---|---|---|")
    own = median(rates(found[OWN]))
    for name, made in found.items():
        if reasons := [each["failed"] for each in made if "failed" in each]:
            print(f"| {name} | | {reasons[0]} | | |")
            continue
        speeds, start = rates(made), median(each["start"] for each in made)
        same = {each["content"] for each in made} == {found[OWN][0]["content"]}
        print(
            f"| {name} | {start:.1f} | {median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}) "
            f"| {median(speeds) / own:.0%} | {'yes' if same else 'no'} |"
        )


def rates(made: list[dict[str, Any]]) -> list[float]:
    """Tokens a second of every time in every process."""
    return [rate for each in made for rate in each["rates"]]


def one(run: str, name: str) -> dict[str, Any]:
    """What a setting reaches in a process of its own, or the last line of what it died of."""
    environment = os.environ | SETTINGS[name].get("environment", {})
    done = subprocess.run(
        [sys.executable, __file__, "--one", run, name], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        return {"failed": said[-1].strip()[:120]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(run: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the start, tokens a second each time, and what the responses are."""
    generator = recipe.load_run(run).recipe.generator
    assert isinstance(generator, VLLM)
    changes = {name: value for name, value in setting.items() if name != "environment"}
    options = replace(
        generator, **{**changes, "engine_args": {**generator.engine_args, **changes.get("engine_args", {})}}
    )
    folder = run / "iterations" / "000" / "policy"
    policy = Policy(folder, folder / "probe.json")
    prompts = [Prompt.of(row) for row in read(run / "iterations" / "001" / "prompts.jsonl")]
    began = time.perf_counter()
    list(replace(options, max_tokens=1).generate(policy, prompts[:1], 0))
    found: dict[str, Any] = {"start": time.perf_counter() - began, "rates": []}
    for counted in (False, *[True] * TIMES):
        began = time.perf_counter()
        groups = sorted(options.generate(policy, prompts, 0), key=lambda group: group.prompt.id)
        seconds = time.perf_counter() - began
        responses = [response for group in groups for response in group.responses]
        if counted:
            found["rates"].append(round(sum(len(each.token_ids) for each in responses) / seconds))
    content = json.dumps([[each.token_ids, each.logprobs] for each in responses])
    return {**found, "content": hashlib.sha256(content.encode()).hexdigest()}


if __name__ == "__main__":
    main()
