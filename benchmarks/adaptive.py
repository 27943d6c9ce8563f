"""What adaptive sampling saves: tokens of the quickstart with a reward of right and wrong, and a simulation.

    python benchmarks/adaptive.py outputs           # needs vLLM; the quickstart's policy is trained first
    python benchmarks/adaptive.py --simulate

The first runs the quickstart twice, where an answer is right if its gold reward is at least 8 of 10, and a prompt
without a right answer is left out: with K responses to each prompt, and with `sampling: {kind: until-success}` up to K.
The same first policy and the same seeds: in iteration 1 both select the same responses.

The second draws normal rewards, 512 prompts whose means are normal, and tells the mean best reward of a prompt with
`sampling: {kind: expected-gain}` and with equally many responses to each; and how many responses a prompt reach the
best of eight. Each is the mean of 20 draws.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from acorn_cafe import gold

import raft
from raft.core import records
from raft.core.records import Prompt
from raft.core.run_paths import RunPaths
from raft.metrics.reward_metrics import prompt_best
from raft.pipeline.sampling import ExpectedGain
from raft.store import stamps

RIGHT = 8.0
ROUNDS = [1, 1, 2, 4, 8]
SPREADS = {"equal": 0.0, "log-normal, 0.5": 0.5, "log-normal, 1": 1.0}  # of standard deviations over prompts


def right(prompt: Prompt, response: str) -> float:
    """1 for an answer that is good in nearly everything, else 0."""
    return float(gold(prompt, response)["reward"] >= RIGHT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", nargs="?", default="outputs")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--simulate", action="store_true")
    options = parser.parse_args()
    for line in simulated() if options.simulate else run(Path(options.outputs), options.iterations):
        print(line, flush=True)


def run(outputs: Path, iterations: int) -> Iterator[str]:
    """A row for each iteration of both runs."""
    changes = {
        "reward": right, "iterations": iterations, "generator": {"k": sum(ROUNDS)},
        "selection": {"kind": "best-of-k", "minimum": 1.0},
    }  # fmt: skip
    samplings = {"fixed": {"kind": "fixed"}, "until-success": {"kind": "until-success", "rounds": ROUNDS}}
    yield "| sampling | iteration | responses | tokens | seconds of generation | prompts with a success | held out |"
    yield "|---|---|---|---|---|---|---|"
    for name, sampling in samplings.items():
        done = raft.run(
            "quickstart", name=f"cafe-{name}", sampling=sampling, outputs=str(outputs), quiet=True, **changes
        )
        for number in range(1, iterations + 1):
            it = RunPaths(Path(done.folder)).iteration(number)
            groups = [row["responses"] for row in records.read(it.responses)]
            tokens = sum(len(one["token_ids"]) for group in groups for one in group)
            made = stamps.stamped(it.folder)
            seconds = sum(stamp["seconds"] for _, stamp in made if stamp["key"]["stage"] == "generate")
            held_out = stamps.read_stamp(it.evaluation.responses)
            seconds -= held_out["seconds"] if held_out else 0.0
            kept, mean = sum(1 for _ in records.read(it.selected)), done.metrics[number]["reward/eval"]
            yield (
                f"| {name} | {number} | {sum(map(len, groups)):,} | {tokens:,} | {seconds:.1f} | {kept} of "
                f"{len(groups)} | {mean:.3f} |"
            )


def simulated() -> Iterator[str]:
    """A row for each spread of the standard deviations."""
    yield "| standard deviations | best of 8 | 8 by expected gain | responses that reach the best of 8 |"
    yield "|---|---|---|---|"
    for name, spread in SPREADS.items():
        draws = [drawn(seed, spread) for seed in range(20)]
        uniform = np.mean([rewards[:, :8].max(axis=1).mean() for rewards in draws])
        budgets = (tenths / 10 for tenths in range(40, 100))
        enough = next(one for one in budgets if np.mean([best(rewards, one) for rewards in draws]) >= uniform)
        gained = np.mean([best(rewards, 8.0) for rewards in draws])
        yield f"| {name} | {uniform:.3f} | {gained:.3f} | {enough:.1f} |"


def drawn(seed: int, spread: float) -> np.ndarray:
    """Rewards [512, 32] of prompts with mean N(0, 1) and a standard deviation whose median is 1."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(512, 1)) + rng.lognormal(0.0, spread, size=(512, 1)) * rng.normal(size=(512, 32))


def best(rewards: np.ndarray, budget: float) -> float:
    """The mean best reward of a prompt that a budget finds."""
    sampling, counts = ExpectedGain(first=4, budget=budget, most=32), np.full(len(rewards), 4)
    while True:
        seen = np.where(np.arange(rewards.shape[1]) < counts[:, None], rewards, np.nan)
        rows = sampling.asked(seen, counts)
        if not len(rows):
            return float(prompt_best(seen).mean())
        counts[rows] += 1


if __name__ == "__main__":
    main()
