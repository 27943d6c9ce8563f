"""Every objective and both ways of sampling on the same prompts, by several seeds: docs/objectives.md has the table.

    python benchmarks/study.py quickstart outputs/study --seeds 0,1,2      # about a minute a run on two cores
    python benchmarks/study.py sums outputs/study --seeds 0,1,2            # seconds a run, 0/1 reward
    python benchmarks/study.py quickstart outputs/study --table            # of what is there, runs nothing

Runs that are there are not run again. In iteration 1 all methods with one seed see the same prompts and, but for
adaptive sampling, the same responses. `sums` is made here: a tiny Llama learns sums of two numbers below 30 from
examples of which two in five are wrong, and the reward is 1 for the right sum.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from raft.core import records

PG = ["trainer.kind=policy-gradient"]
METHODS = {
    "best-of-k": [],
    "best-of-k, 8 epochs": ["trainer.num_train_epochs=8"],  # as many steps as for all eight responses
    "raft++, 8 epochs": ["trainer.num_train_epochs=8", *PG],
    "softmax": ["selection.kind=softmax", "selection.temperature=0.5"],
    "reward-weighted": ["selection.kind=reward-weighted", "selection.temperature=0.5"],
    "expected-best": ["selection.kind=expected-best", "selection.n=4"],
    "random": ["selection.kind=random"],
    "raft++": PG,
    "reinforce": ["selection.kind=advantage", *PG],
    "log-quantile": ["selection.kind=advantage", "selection.reward=log-quantile", *PG],
}
SOLVED = ["selection.minimum=1.0"]
REWARDED = {
    "best-of-k": SOLVED,
    "until-success": [*SOLVED, "sampling={kind: until-success, rounds: [1, 1, 2, 4]}"],
    "threshold": ["selection.kind=threshold", "selection.minimum=1.0"],
    "random": ["selection.kind=random"],
    "raft++": [*SOLVED, *PG],
    "reinforce": ["selection.kind=advantage", *PG],
}
SIZES = ["iterations=3", "prompts.per_iteration=128", "evaluation.count=64"]
SUMS = {
    "policy": """
job: sft
name: sums-policy
policy:
  config: {model_type: llama, hidden_size: 128, intermediate_size: 256, num_hidden_layers: 3, num_attention_heads: 4,
    num_key_value_heads: 4, max_position_embeddings: 96, tie_word_embeddings: false, initializer_range: 0.08}
  vocab_size: 280
examples: {kind: file, path: taught.jsonl, response: answer}
trainer: {kind: sft, learning_rate: 3.0e-3, num_train_epochs: 3, batch_size: 64, warmup_ratio: 0.05}
""",
    "loop": """
name: sums
policy: {recipe: sums-policy.yaml}
iterations: 5
prompts: {kind: file, path: asked.jsonl, per_iteration: 256}
generator: {kind: vllm, k: 8, max_tokens: 8}
reward: {kind: rule, function: "sums:right"}
selection: {kind: best-of-k}
trainer: {kind: sft, learning_rate: 1.0e-3, num_train_epochs: 1, batch_size: 32}
evaluation: {prompts: {kind: file, path: held.jsonl}, count: 128, k: 4}
""",
    "rule": '''
def right(prompt, response):
    """1 for the right sum."""
    one, other = prompt.text.removesuffix("=").split("+")
    return float(response.strip() == str(int(one) + int(other)))
''',
}
COLUMNS = {
    "train/steps": "steps an iteration", "reward/eval": "reward", "gold/eval": "gold", "kl/first": "KL",
    "entropy/token": "entropy", "diversity/distinct_2": "distinct-2", "tokens": "tokens",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["quickstart", "sums"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    methods = METHODS if asked.task == "quickstart" else REWARDED
    wanted = asked.methods.split(",") if asked.methods else list(methods)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    asked.out.mkdir(parents=True, exist_ok=True)
    recipe = "quickstart" if asked.task == "quickstart" else made(asked.out)
    if not asked.table:
        for seed in seeds:
            for method in wanted:
                sizes = SIZES if asked.task == "quickstart" else []
                run(
                    asked.out,
                    recipe,
                    [*sizes, *methods[method], *asked.overrides],
                    name(asked.task, method, seed),
                    seed,
                )
    for line in table(asked.out, asked.task, wanted, seeds):
        print(line, flush=True)


def name(task: str, method: str, seed: int) -> str:
    """The name of a run."""
    return f"{task}-{method.replace(', ', '-').replace(' ', '-')}-{seed}"


def made(out: Path) -> str:
    """Writes the recipes and data of the sums."""
    random = Random(0)
    pairs = [(one, other) for one in range(30) for other in range(30)]
    random.shuffle(pairs)
    held, asked = pairs[:150], pairs[150:]
    rows = []
    for _ in range(16):
        for one, other in asked:
            wrong = random.random() < 0.4
            rows.append(
                {"prompt": f"{one}+{other}=", "answer": str(one + other + wrong * random.choice([-10, -1, 1, 10]))}
            )
    files = {
        "taught.jsonl": rows,
        "asked.jsonl": [{"prompt": f"{one}+{other}="} for one, other in asked],
        "held.jsonl": [{"prompt": f"{one}+{other}="} for one, other in held],
    }
    for file, content in files.items():
        (out / file).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    for file, text in {"sums-policy.yaml": "policy", "sums.yaml": "loop", "sums.py": "rule"}.items():
        (out / file).write_text(SUMS[text].lstrip(), encoding="utf-8")
    return "sums.yaml"


def run(out: Path, recipe: str, overrides: list[str], name: str, seed: int) -> None:
    """One run, or nothing if it is finished."""
    command = [sys.executable, "-m", "raft", "run", recipe, *overrides, f"name={name}", f"seed={seed}"]
    with open(out / f"{name}.log", "w", encoding="utf-8") as log:
        status = subprocess.run(command, cwd=out, stdout=log, stderr=subprocess.STDOUT, env=os.environ).returncode
    print(name, "failed; see its log" if status else "done", file=sys.stderr, flush=True)


def table(out: Path, task: str, methods: list[str], seeds: list[int]) -> Iterator[str]:
    """A row for each method: the means over its seeds of the last policy's figures, with their standard deviations."""
    yield f"| method | seeds | {' | '.join(COLUMNS.values())} |"
    yield f"|---|---|{'---|' * len(COLUMNS)}"
    for method in ["policy 0", *methods]:
        run, at = (methods[0], 0) if method == "policy 0" else (method, -1)
        found = [figures(out / "outputs" / name(task, run, seed), at) for seed in seeds]
        known = [one for one in found if one is not None]
        cells = [cell([one[key] for one in known if one.get(key) is not None]) for key in COLUMNS]
        yield f"| {method} | {len(known)} | {' | '.join(cells)} |"


def cell(values: list[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    places = 0 if max(values) >= 1000 else 3
    spread = f" ± {np.std(values, ddof=1):.{places}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{places}f}{spread}"


def figures(folder: Path, at: int) -> dict[str, float] | None:
    """The figures of policy `at`, of the last one with all tokens that were generated; None if it is not finished."""
    if not (folder / "reward_curve.png").exists():
        return None
    rows = list(records.read(folder / "metrics.jsonl"))
    responses = folder.glob("iterations/*/responses.jsonl")  # those of rounds are in it
    tokens = sum(
        len(response["token_ids"]) for path in responses
        for row in records.read(path) for response in row["responses"]
    )  # fmt: skip
    return {**rows[at], "tokens": tokens} if at else rows[at]


if __name__ == "__main__":
    main()
