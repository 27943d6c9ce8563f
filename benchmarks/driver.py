"""What the driver computes by itself in an iteration, while devices wait: rows, selection, figures.

    python benchmarks/driver.py [PROMPTS [K [TOKENS]]]

Made-up responses, by default 2,048 x 8 x 192 tokens. Prints the medians of ROUNDS rounds in seconds, and the digests of
selected.jsonl and metrics.json, which a change of the code alone has to leave as they are.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from raft.core import records
from raft.core.atomic import file_digest
from raft.core.progress import Progress
from raft.core.records import Group, Prompt, Response, Score
from raft.pipeline import selection, stages
from raft.store import measuring
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact

ROUNDS = 3
WORDS = (
    "the",
    "fox",
    "likes",
    "plums",
    "an",
    "owl",
    "by",
    "night",
    "sees",
    "all",
    "two",
    "scones",
    "mint",
    "tea",
    "bun",
)


def main() -> None:
    """Prints the table."""
    prompts, k, tokens = [*map(int, sys.argv[1:]), *(2048, 8, 192)[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        groups = list(made_up(prompts, k, tokens))
        records.write(folder / "prompts.jsonl", (group.prompt.row() for group in groups))
        records.write(folder / "scores.jsonl", scores(prompts, k))
        work: dict[str, Callable[[], Any]] = {
            "rows of all groups": lambda: [group.row() for group in groups],
            "written as JSON": lambda: records.write(folder / "responses.jsonl", (group.row() for group in groups)),
            "selection": lambda: select(folder),
            "figures": lambda: measure(folder),
        }
        for what, function in work.items():
            print(f"{what:20s} {median(seconds(function) for _ in range(ROUNDS)):7.2f} s")
        for artifact in ("selected.jsonl", "metrics.json"):
            print(f"{artifact:20s} {file_digest(folder / artifact)[:16]}")


def made_up(prompts: int, k: int, tokens: int) -> Iterator[Group]:
    """Groups of random words and tokens."""
    numbers, words = np.random.default_rng(0), random.Random(0)
    for number in range(prompts):
        yield Group(
            Prompt(f"p{number}", text=f"say {number}"),
            [
                Response(
                    " ".join(words.choices(WORDS, k=3 * tokens // 4)),
                    numbers.integers(0, 50_000, tokens).tolist(),
                    (-numbers.exponential(1, tokens)).tolist(),
                    "stop",
                )
                for _ in range(k)
            ],
        )


def scores(prompts: int, k: int) -> Iterator[dict[str, Any]]:
    """Rows of normal rewards."""
    for number, rewards in enumerate(np.random.default_rng(1).normal(size=(prompts, k)).tolist()):
        yield {"prompt_id": f"p{number}", "scores": [Score(reward).row() for reward in rewards]}


def artifact(folder: Path, name: str) -> Artifact:
    """A file as a finished artifact."""
    return Artifact(folder / name, {"dropped": 0, "measured": {}})


def writer(folder: Path, name: str) -> ArtifactWriter:
    """What a stage writes through."""
    return ArtifactWriter(folder / name, folder / f"{name}.partial", "", 0, 1, Progress(name, ""))


def select(folder: Path) -> None:
    """The stage of selection: the best of each group."""
    inputs = (artifact(folder, f"{name}.jsonl") for name in ("prompts", "responses", "scores"))
    stages.select(selection.BestOfK(), writer(folder, "selected.jsonl"), *inputs)


def measure(folder: Path) -> None:
    """The figures of an iteration's responses."""
    made = {name: artifact(folder, f"{name}.jsonl") for name in ("scores", "responses", "selected")}
    measuring.measure(None, writer(folder, "metrics.json"), **made)


def seconds(function: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
