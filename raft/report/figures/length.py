"""Length of responses in tokens, and how diverse their words are, over iterations."""

from pathlib import Path
from typing import TYPE_CHECKING

from raft.report.figures import lines
from raft.report.figures.table import Measured, Recipe
from raft.store.runs import metrics_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = (
    "its metrics.jsonl has no length yet; "
    "leave it out, or wait for its first iteration (raft status shows how far it is)"
)
SHEET = lines.Sheet(
    labels={
        "response/tokens": "training prompts, tokens",
        "eval/tokens": "held-out prompts, tokens",
        "diversity/distinct_1": "distinct-1 (different words)",
        "diversity/distinct_2": "distinct-2 (different pairs)",
        "diversity/msttr_100": "MSTTR-100 (in 100 words)",
    },
    scales={
        "response/tokens": "mean length (tokens)",
        "eval/tokens": "mean length (tokens)",
        "diversity/distinct_1": "diversity, held-out (share)",
        "diversity/distinct_2": "diversity, held-out (share)",
        "diversity/msttr_100": "diversity, held-out (share)",
    },
    missing=MISSING,
)


def measure(folder: Path) -> Measured:
    """Those of the metrics that metrics.jsonl has."""
    return Measured(folder.name, lines.numbers(metrics_rows(folder), SHEET))


def draw(found: list[Recipe]) -> "Figure":
    """One panel for length and one for diversity, or of several recipes one for each metric."""
    return lines.figure(found, SHEET)
