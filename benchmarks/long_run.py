"""What grows over a long run: 200 iterations of a tiny policy, its process watched from outside.

    python benchmarks/long_run.py
    python benchmarks/long_run.py --iterations 20 --out FOLDER

A policy with random weights, 12 prompts an iteration, a rule as reward, `generator.kind: transformers`. After each
iteration: resident memory, open files and threads of the process, the bytes that its run has, and the seconds that the
iteration took. Leaves long-run.json, long-run.png and the run in the folder --out, and prints the means of iterations
11 to 30 beside those of the last 20.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from raft.models import from_scratch
from raft.report import palette
from raft.report.figures import style

MODEL = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "num_hidden_layers": 2,
    "intermediate_size": 128, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
COLOURS = "red green blue big small old new".split()  # noqa: SIM905
ANIMALS = "fox owl hen cat dog".split()  # noqa: SIM905
LABELS = {"seconds": "s an iteration", "memory": "MB resident", "disk": "MB of the run", "files": "open files"}
BETWEEN = 0.05  # seconds between two looks

Row = dict[str, float]


def main() -> None:
    """Makes the recipe, runs it, and draws what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("outputs/long-run"))
    asked = parser.parse_args()
    prepare(asked.out, asked.iterations)
    rows = watched(asked.out)
    (asked.out / "long-run.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, asked.out / "long-run.png")
    early, late = rows[10:30] or rows, rows[-20:]
    for name in rows[-1]:
        print(f"{name:10s} {mean(row[name] for row in early):10.3f} {mean(row[name] for row in late):10.3f}")


def prepare(folder: Path, iterations: int) -> None:
    """A policy, prompts, a rule and a recipe."""
    prompts = [
        {"id": f"p{n:03d}", "prompt": f"the {COLOURS[n % 7]} {ANIMALS[n % 5]} {n} ", "letter": COLOURS[n % 7][0]}
        for n in range(60)
    ]
    from_scratch.make(folder / "base", (str(row["prompt"]) for row in prompts), MODEL, 300, 0)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    rule = "def share(prompt, response):\n    return response.count(prompt.meta['letter']) / max(1, len(response))\n"
    (folder / "letters.py").write_text(rule)
    recipe: dict[str, Any] = {
        "name": "long",
        "policy": {"model": "base"},
        "iterations": iterations,
        "prompts": {"kind": "file", "path": "prompts.jsonl", "per_iteration": 12, "max_prompt_length": 64},
        "generator": {"kind": "transformers", "k": 4, "max_tokens": 12, "batch_size": 12},
        "reward": {"kind": "rule", "function": "letters:share"},
        "trainer": {"kind": "sft", "learning_rate": 1e-4, "num_train_epochs": 1, "batch_size": 8},
        "evaluation": {"count": 8, "k": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def watched(folder: Path) -> list[Row]:
    """Runs the recipe in a process of its own; a row for each iteration that it finished."""
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "raft", "run", "recipe.yaml"], cwd=folder, stdout=log, stderr=log
        )
    run, rows, before = folder / "outputs" / "long", [], time.monotonic()
    while process.poll() is None:
        if (run / "iterations" / f"{len(rows):03d}" / "metrics.json.stamp.json").exists():
            now = time.monotonic()
            rows.append({"seconds": now - before, **looked_at(process.pid), "disk": size(run) / 1e6})
            before = now
        time.sleep(BETWEEN)
    if process.returncode:
        raise SystemExit(f"the run ended with status {process.returncode}; see {folder / 'log'}")
    return rows[1:]  # the first is policy 0


def looked_at(pid: int) -> Row:
    """Resident memory in MB, open files and threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    value = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if len(line.split()) > 1}
    files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    return {"memory": int(value["VmRSS"]) / 1e3, "files": files, "threads": int(value["Threads"])}


def size(folder: Path) -> int:
    """Bytes of all files below a folder; some may go meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118
            except FileNotFoundError:
                continue
    return total


def draw(rows: list[Row], out: Path) -> None:
    """A panel for each quantity, by iteration."""
    import matplotlib.pyplot as plt

    with plt.rc_context(style.STYLE):
        figure, axes = plt.subplots(1, len(LABELS), figsize=(12, 2.6), layout="constrained")
        for axis, (name, label) in zip(axes, LABELS.items(), strict=True):
            axis.plot(range(1, len(rows) + 1), [row[name] for row in rows], color=palette.SERIES[0], linewidth=1)
            axis.set_ylim(bottom=0)
            axis.set_title(label)
            axis.set_xlabel("iteration")
        figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
