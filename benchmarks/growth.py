"""How the time and the memory of an iteration grow with the number of prompts, with K, and over the iterations.

    python benchmarks/growth.py recipes/tinystories.yaml variables.data=FOLDER
    python benchmarks/growth.py --prompts 8,16 --k 1,2 --iterations 3 recipes/tinystories.yaml variables.data=FOLDER

Each point is one iteration in a process of its own, one after the other, the smallest first; an iteration with eight
prompts goes before it, so that it is warm. What is told is its seconds, and its process's largest resident size. The
recipe needs kind: vllm, kind: model and kind: file; its prompts are repeated, each with a number before it, until there
are enough. K is varied at the second number of prompts. Over the iterations it is one run with the first number of
prompts, whose resident size is taken at the end of each. Eight new tokens and one epoch, so that what is done for each
prompt and response is the larger part of the work.

Prints a row after each iteration, and leaves growth.json, growth.png and growth.log in the folder --out.
"""

import argparse
import itertools
import json
import math
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gpu import resident
from iteration import stamps, whole

from raft.cli.console import Console
from raft.config import recipe
from raft.core import timing
from raft.pipeline import loop
from raft.report.figures import style
from raft.report.figures.table import Curve
from raft.store.runs import Folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

K = 8  # of a point, where it is not what is varied
HELD_OUT = 16
SMALL = (
    "generator.max_tokens=8", "trainer.num_train_epochs=1", f"evaluation.count={HELD_OUT}", "evaluation.k=1",
    "keep_policies=last",
)  # fmt: skip
STAGES = ("generate", "score", "train")
QUANTITIES = ("whole", *STAGES, "rest")
MEGABYTE = 2**20

Point = dict[str, Any]  # prompts, k, start (seconds), peak (MB), and of each iteration seconds by stage and MB


def main() -> None:
    """All points, or with --one the run of one of them."""
    if sys.argv[1] == "--one":
        one(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
        return
    asked = arguments()
    out = Path(asked.out)
    out.mkdir(parents=True, exist_ok=True)
    loaded = recipe.load(Path(asked.recipe), asked.overrides)
    variables = [override for override in asked.overrides if override.startswith("variables.")]
    with open(out / "growth.log", "w", encoding="utf-8") as log:
        for need in loaded.needs:
            command = [sys.executable, "-m", "raft", "run", str(need.path), *variables]
            subprocess.run(command, check=True, stdout=log, stderr=log)
        write_prompts(loaded, out / "prompts.jsonl", max(asked.prompts) + HELD_OUT)
        points: list[Point] = []
        print(head(), flush=True)
        for prompts, k, iterations in wanted(asked):
            points.append({"prompts": prompts, "k": k, **measure(asked, out, log, prompts, k, iterations)})
            print("\n".join(rows(points[-1])), flush=True)
            (out / "growth.json").write_text(json.dumps(points, indent=1) + "\n")
    print("\n".join(exponents(points, asked.prompts[1])))
    style.save(lambda: figure(points, asked.prompts[1]), out / "growth.png")


def arguments() -> argparse.Namespace:
    """What is measured, and of which recipe."""

    def numbers(text: str) -> list[int]:
        return sorted(map(int, text.split(",")))

    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="outputs/growth-benchmark")
    parser.add_argument("--prompts", type=numbers, default=[128, 512, 2048, 8192, 16384])
    parser.add_argument("--k", type=numbers, default=[1, 4, 16, 64])
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    return parser.parse_args()


def wanted(asked: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Prompts, K and iterations of each point, the least work first."""
    fixed = asked.prompts[1]
    made = [
        *((prompts, K, 1) for prompts in asked.prompts),
        *((fixed, k, 1) for k in asked.k if k != K),
        (asked.prompts[0], K, asked.iterations),
    ]
    return sorted(made, key=math.prod)


def write_prompts(loaded: recipe.Loaded, path: Path, count: int) -> None:
    """So many different prompts out of those of the recipe."""
    source = loaded.recipe.prompts
    texts = itertools.cycle([row[source.prompt_column] for _, row in source.rows()])
    with open(path, "w", encoding="utf-8") as file:
        for number, text in zip(range(count), texts, strict=False):
            file.write(json.dumps({"id": f"p{number:06d}", "prompt": f"{number} {text}"}) + "\n")


def measure(asked: argparse.Namespace, out: Path, log: Any, prompts: int, k: int, iterations: int) -> Point:
    """A point, by a process of its own."""
    changes = [
        f"prompts.path={out / 'prompts.jsonl'}", "prompts.prompt_column=prompt", f"prompts.per_iteration={prompts}",
        f"generator.k={k}", f"iterations={iterations}", "name=growth-benchmark-point", *SMALL,
    ]  # fmt: skip
    found = out / "point.json"
    command = [sys.executable, __file__, "--one", str(found), asked.recipe, *asked.overrides, *changes]
    subprocess.run(command, check=True, stdout=log, stderr=log)
    return json.loads(found.read_text())


def one(found: Path, path: Path, overrides: list[str]) -> None:
    """Runs a recipe of eight prompts and then the one that is asked for, and writes what that took."""
    before, _ = run(path, [*overrides, "name=growth-benchmark-start", "prompts.per_iteration=8", "iterations=1"])
    start = time.time() - timing.BEGAN
    loaded, told = run(path, overrides)
    iterations = [
        {**seconds(loaded, number), "resident": told.megabytes[number]}
        for number in range(1, loaded.recipe.iterations + 1)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found.write_text(json.dumps({"start": start, "peak": peak, "iterations": iterations}))
    for made in (before, loaded):
        shutil.rmtree(made.folder)


def run(path: Path, overrides: list[str]) -> tuple[recipe.Loaded, "Resident"]:
    """Runs a recipe anew, whose needs are made."""
    loaded, told = replace(recipe.load(path, overrides), needs=[]), Resident()
    shutil.rmtree(loaded.folder, ignore_errors=True)
    loop.run(loaded, told)
    return loaded, told


class Resident(Console):
    """Looks at the memory at the end of each iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.megabytes: list[float] = []

    def on_iteration_end(self, it: Folder, findings: Any) -> None:
        """As told."""
        super().on_iteration_end(it, findings)
        self.megabytes.append(resident() / MEGABYTE)


def seconds(loaded: recipe.Loaded, number: int) -> dict[str, float]:
    """Of an iteration: in all, by stage with what belongs to it, and the rest."""
    found = dict.fromkeys(STAGES, 0.0)
    for stamp in stamps(loaded, number):
        if (stage := stamp["key"]["stage"]) in found:
            found[stage] += stamp["seconds"]
    took = whole(loaded, number)
    return {"whole": took, **found, "rest": took - sum(found.values())}


def head() -> str:
    """What stands in the columns."""
    names = ("prompts", "K", "iteration", *QUANTITIES, "resident MB", "peak MB", "start-up s")
    return "".join(f"{name:>12}" for name in names)


def rows(point: Point) -> list[str]:
    """The iterations of a point."""
    return [
        f"{point['prompts']:12d}{point['k']:12d}{number:12d}"
        + "".join(f"{took[name]:12.2f}" for name in QUANTITIES)
        + f"{took['resident']:12.0f}{point['peak']:12.0f}{point['start']:12.1f}"
        for number, took in enumerate(point["iterations"], start=1)
    ]


def series(points: list[Point], along: str, fixed: int) -> list[Point]:
    """The points that differ in this alone, ascending; `fixed` is the number of prompts where it is not varied."""
    alone = {"prompts": lambda point: point["k"] == K, "k": lambda point: point["prompts"] == fixed}[along]
    return sorted((point for point in points if alone(point) and point is not longest(points)), key=itemgetter(along))


def longest(points: list[Point]) -> Point:
    """The run over many iterations."""
    return max(points, key=lambda point: len(point["iterations"]))


def exponents(points: list[Point], fixed: int) -> list[str]:
    """How time grows between the two largest points of a series, x to the power of what; and over the iterations."""
    found = []
    for along in ("prompts", "k"):
        one, other = series(points, along, fixed)[-2:]
        by = math.log(other[along] / one[along])
        powers = {name: math.log(other["iterations"][0][name] / one["iterations"][0][name]) / by for name in QUANTITIES}
        told = "  ".join(f"{name} {power:.2f}" for name, power in powers.items())
        more = 1024 * (other["peak"] - one["peak"]) / (other[along] - one[along])
        found.append(f"{along} {one[along]} to {other[along]}: exponent {told}; {more:.2f} KB for each more")
    taken = longest(points)["iterations"]
    slopes = {
        name: np.polyfit(range(len(taken)), [took[name] for took in taken], 1)[0] for name in ("whole", "resident")
    }
    mean = np.mean([took["whole"] for took in taken])
    told = f"{mean:.2f} s each, {slopes['whole']:+.3f} s and {slopes['resident']:+.2f} MB from one to the next"
    return [*found, f"iterations 1 to {len(taken)}: {told}"]


def figure(points: list[Point], fixed: int) -> "Figure":
    """Seconds by stage above, memory below; a column for what is varied."""
    from matplotlib.ticker import LogLocator

    made, grid = style.panels(6, 3, 11.5, [3.0, 2.0], sharex="col")
    titles = {"prompts": f"prompts, K = {K}", "k": f"K, {fixed:,} prompts"}
    for column, along in enumerate(titles):
        found = series(points, along, fixed)
        x = [point[along] for point in found]
        fill(grid, column, x, [point["iterations"][0] for point in found], [point["peak"] for point in found])
        grid[column].set_xscale("log", base=2)
        grid[column].set_yscale("log")
        grid[column].yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        grid[column].yaxis.set_major_formatter("{x:g}")
        grid[column].yaxis.set_minor_formatter("")
        grid[column + 3].set_xticks(x, map(str, x))
        grid[column + 3].minorticks_off()
        grid[column + 3].tick_params(axis="x", labelsize=9)
        grid[column + 3].set_xlabel("prompts of an iteration" if along == "prompts" else "K, responses to a prompt")
        grid[column].set_title(titles[along])
    taken = longest(points)["iterations"]
    fill(grid, 2, list(range(1, len(taken) + 1)), taken, [took["resident"] for took in taken])
    style.label_numbers([grid[2], grid[5]], 1, "iteration")
    grid[2].set_title(f"iterations, {longest(points)['prompts']:,} prompts, K = {K}")
    grid[2].set_ylim(bottom=0)
    grid[0].set_ylabel("seconds of an iteration")
    grid[3].set_ylabel("resident memory (GB)")
    top = 1.15 * max(panel.get_ylim()[1] for panel in grid[3:])
    for panel in grid[3:]:
        panel.set_ylim(0, top)
    style.legend(made, grid)
    return made


def fill(grid: list["Axes"], column: int, x: list[int], took: list[dict[str, float]], memory: list[float]) -> None:
    """Both panels of a column."""

    def draw(panel: "Axes", line: list[float], place: int, label: str) -> None:
        values = np.array(line)
        style.draw(panel, Curve(np.array(x), values, values, values, np.zeros(len(x), bool), None), place, label)

    for place, name in enumerate(QUANTITIES):
        draw(grid[column], [one[name] for one in took], place, name)
    label = "largest of the process" if column < 2 else "at the end of the iteration"
    draw(grid[column + 3], [value / 1024 for value in memory], len(QUANTITIES) + (column == 2), label)


if __name__ == "__main__":
    main()
