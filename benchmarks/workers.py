"""What `launch: {kind: ray}` costs and brings on one machine: whole iterations, in turns with `kind: local`.

    python benchmarks/workers.py recipes/tiny-2048x8.yaml iterations=3

Three ways, each in a process of its own, ROUNDS times in turns: `kind: local` on all cores; Ray with one worker,
which has them too, so that the difference is Ray's overhead; and Ray with a worker on each core. The first iteration is
left out, as engines and models start in it. Prints medians of whole iterations and of their stages in seconds, with
their ratios to `local`, and whether the artifacts that have to be equal are. `CPU` is the CPU time that a run and all
processes below it, Ray's own too, took in an iteration: on a shared machine it varies less than seconds do.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

from raft.config import recipe
from raft.core.run_paths import RunPaths
from raft.store.stamps import stamped

ROUNDS = int(os.environ.get("ROUNDS", "3"))
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
            command = [sys.executable, "-m", "raft", "run", file, *overrides, *options, name]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            spent = by_iteration(process, loaded.folder)
            if process.wait():
                sys.exit(f"{' '.join(command)} ended with {process.returncode}")
            found[way] += [{**row, "CPU": spent[number] - spent[number - 1]} for number, row in measured(loaded.folder)]
            print(way, json.dumps(found[way][-1]), flush=True)
    print(f"\n{'':28s}" + "".join(f"{stage:>16s}" for stage in ("iteration", *STAGES, "CPU")))
    whole = {way: {key: median(row[key] for row in rows) for key in rows[0]} for way, rows in found.items()}
    for way, row in whole.items():
        print(f"{way:28s}" + "".join(f"{value:9.2f} ({value / whole['local'][key]:.2f})" for key, value in row.items()))
    first = [loaded.folder.with_name(f"workers-{place}") / "iterations/001" for place in range(len(WAYS))]
    for artifact in ("prompts.jsonl", "responses.jsonl", "scores.jsonl", "selected.jsonl"):
        contents = {(folder / artifact).read_bytes() for folder in first}
        print(f"{artifact} of iteration 1: {'equal' if len(contents) == 1 else 'NOT EQUAL'}")


def by_iteration(process: subprocess.Popen[bytes], folder: Path) -> dict[int, float]:
    """The CPU seconds that a run had taken at the end of each iteration, by a look every tenth of a second."""
    spent: dict[int, float] = {}
    while process.poll() is None:
        if (folder / f"iterations/{len(spent):03d}/metrics.json.stamp.json").exists():
            spent[len(spent)] = cpu_seconds(process.pid)
        time.sleep(0.1)
    return spent


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process and of all below it, those that have ended included."""
    table: dict[int, tuple[int, float]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            _, parent, *rest = file.read_text().rpartition(")")[2].split()
            table[int(file.parent.name)] = int(parent), sum(map(int, rest[9:13])) / os.sysconf("SC_CLK_TCK")
    family = {pid}
    while more := {one for one, (parent, _) in table.items() if parent in family} - family:
        family |= more
    return sum(table[one][1] for one in family if one in table)


def measured(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """The number of each iteration but the first, with its seconds and those of its stages."""
    return ((it.number, dict(_of(it.folder))) for it in RunPaths(folder).iterations() if it.number > 1)


def _of(iteration: Path) -> Iterator[tuple[str, float]]:
    stamps = {path.relative_to(iteration).as_posix(): stamp for path, stamp in stamped(iteration)}
    begins = [stamp["began"] for stamp in stamps.values()]
    ends = [stamp["began"] + stamp["seconds"] for stamp in stamps.values()]
    yield "iteration", max(ends) - min(begins)
    yield from ((stage, stamps[stage]["seconds"]) for stage in STAGES)


if __name__ == "__main__":
    main()
