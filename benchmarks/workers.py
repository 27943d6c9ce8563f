"""What `launch: {kind: ray}` costs and brings on one machine: whole iterations, in turns with `kind: local`.

    python benchmarks/workers.py recipes/tiny-2048x8.yaml iterations=3

Three ways, each in a process of its own, ROUNDS times in turns: `kind: local` on all cores; Ray with one worker,
which has them too, so that the difference is Ray's overhead; and Ray with a worker on each core. The first iteration is
left out, as engines and models start in it. Prints medians of whole iterations and of their stages in seconds, with
their ratios to `local`, and whether the artifacts that have to be equal are.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from raft.config import recipe
from raft.core.run_paths import RunPaths
from raft.store.stamps import stamped

ROUNDS = 3
CORES = len(os.sched_getaffinity(0))
WAYS = {"local": [], "ray, 1 worker": ["launch.kind=ray", "launch.workers=1"]}
WAYS["ray, a worker on each core"] = ["launch.kind=ray", f"launch.workers={CORES}"]
STAGES = ("responses.jsonl", "scores.jsonl", "selected.jsonl", "policy", "metrics.json")


def main() -> None:
    """Prints the table."""
    file, *overrides = sys.argv[1:]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, options in WAYS.items():
            name = f"name=workers-{list(WAYS).index(way)}"
            loaded = recipe.load(Path(file), [*overrides, *options, name])
            shutil.rmtree(loaded.folder, ignore_errors=True)
            subprocess.run(
                [sys.executable, "-m", "raft", "run", file, *overrides, *options, name],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            found[way] += measured(loaded.folder)
            print(way, json.dumps(found[way][-1]), flush=True)
    print(f"\n{'':28s}" + "".join(f"{stage:>16s}" for stage in ("iteration", *STAGES)))
    whole = {way: {key: median(row[key] for row in rows) for key in rows[0]} for way, rows in found.items()}
    for way, row in whole.items():
        print(f"{way:28s}" + "".join(f"{value:9.2f} ({value / whole['local'][key]:.2f})" for key, value in row.items()))
    first = [loaded.folder.with_name(f"workers-{place}") / "iterations/001" for place in range(len(WAYS))]
    for artifact in ("prompts.jsonl", "responses.jsonl", "scores.jsonl", "selected.jsonl"):
        contents = {(folder / artifact).read_bytes() for folder in first}
        print(f"{artifact} of iteration 1: {'equal' if len(contents) == 1 else 'NOT EQUAL'}")


def measured(folder: Path) -> list[dict[str, float]]:
    """Seconds of each iteration but the first, and of its stages."""
    return [dict(_of(it.folder)) for it in RunPaths(folder).iterations() if it.number > 1]


def _of(iteration: Path) -> Iterator[tuple[str, float]]:
    stamps = {path.relative_to(iteration).as_posix(): stamp for path, stamp in stamped(iteration)}
    begins = [stamp["began"] for stamp in stamps.values()]
    ends = [stamp["began"] + stamp["seconds"] for stamp in stamps.values()]
    yield "iteration", max(ends) - min(begins)
    yield from ((stage, stamps[stage]["seconds"]) for stage in STAGES)


if __name__ == "__main__":
    main()
