"""Does memory grow with the number of prompts? One iteration of a tiny policy with real vLLM at several sizes.

    python benchmarks/memory.py 1000 10000 100000

Each size is a run of its own in a process of its own; what is printed is that process's largest resident size, and the
time of each stage from the stamps. K = 2, four new tokens, so that the prompts are the larger part of the work.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import worlds

STAGES = (
    "pool.jsonl",
    *(
        f"iterations/001/{name}"
        for name in ("prompts.jsonl", "responses.jsonl", "scores.jsonl", "selected.jsonl", "policy")
    ),
)


def measure(folder: Path, count: int) -> dict[str, float]:
    """Megabytes and seconds of one run with `count` prompts."""
    with open(folder / "prompts.jsonl", "w") as file:
        for number in range(count + 8):
            file.write(
                json.dumps({"id": f"p{number}", "prompt": f"the {worlds.WORDS[number % 7]} fox sees {number} "}) + "\n"
            )
    recipe = {
        "name": f"memory-{count}",
        "policy": {"model": "base"},
        "iterations": 1,
        "prompts": {"kind": "file", "path": "prompts.jsonl", "per_iteration": count, "max_prompt_length": 64},
        "generator": {"kind": "vllm", "k": 2, "max_tokens": 4},
        "reward": {"kind": "rule", "function": "length"},
        "trainer": {"kind": "sft", "num_train_epochs": 1, "batch_size": 256, "packing": False},
        "evaluation": {"count": 8, "k": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    subprocess.run(
        [sys.executable, "-m", "raft", "run", "recipe.yaml"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    run = folder / "outputs" / recipe["name"]
    seconds = {name.split("/")[-1]: json.loads((run / f"{name}.stamp.json").read_text())["seconds"] for name in STAGES}
    return {"peak MB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, **seconds}


def main() -> None:
    """One line for each size. Sizes ascend, because the largest of all children is what the system remembers."""
    for count in sorted(map(int, sys.argv[1:])):
        with tempfile.TemporaryDirectory() as folder:
            worlds.make_policy(Path(folder) / "base")
            found = measure(Path(folder), count)
        print(f"{count:7d} prompts  " + "  ".join(f"{name} {value:.1f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
