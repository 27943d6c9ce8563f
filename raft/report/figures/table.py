"""The numbers behind a picture: those of each run, those of the seeds of one recipe together, and all as a CSV file.

Runs that differ only in their seed are one recipe: its number is their mean, with a band from the smallest to the
largest. The band of a single run is the 95 % interval over its prompts.
"""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from raft.core.atomic import write_text
from raft.core.errors import UserError
from raft.core.terminal import safe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("recipe", "run", "policy", "quantity", "value", "low", "high", "prompts", "missing")
OF_PROMPTS = "95 % interval over prompts"
OF_SEEDS = "min to max of the seeds"


@dataclass(frozen=True, slots=True)
class Number:
    """One quantity of a policy, by the policy's number, and the ends of its band, None where it has none.

    A mean over prompts says over how many (`prompts`), and which share of their responses lacks a reward (`missing`).
    """

    policy: int
    quantity: str
    value: float
    low: float | None = None
    high: float | None = None
    prompts: int | None = None
    missing: float | None = None


@dataclass(frozen=True)
class Curve:
    """A line with a band around it, and what the band means; line, low and high are [T] like x.

    `partial` [T] of bool says at which points some rewards are missing.
    """

    x: np.ndarray
    line: np.ndarray
    low: np.ndarray
    high: np.ndarray
    partial: np.ndarray
    band: str | None


@dataclass(frozen=True)
class Measured:
    """What a picture needs of one run: its numbers, its K where that matters, and, for shapes, whole sets of rewards.

    `rewards` are arrays [M] by policy and name of the set.
    """

    run: str
    numbers: list[Number]
    k: int | None = None
    rewards: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """The name of the run without a last -seed<digits> or -s<digits>."""
        return re.sub(r"-s(eed)?\d+$", "", self.run)


@dataclass(frozen=True)
class Recipe:
    """The runs of one recipe, and their numbers as one: those of the only run, or the means over several seeds."""

    runs: list[Measured]
    numbers: list[Number]

    @property
    def k(self) -> int | None:
        """The K of all its runs, None if it is not known or not the same."""
        found = {run.k for run in self.runs}
        return found.pop() if len(found) == 1 else None

    @property
    def seeds(self) -> str:
        """Whose numbers they are: the name of the run, or of how many seeds they are the mean."""
        return self.runs[0].run if len(self.runs) == 1 else f"mean of {len(self.runs)} seeds"

    def title(self, seeds: str = "mean of") -> str:
        """Its name with what a reader has to know; `seeds` says what was made of several."""
        facts = [f"K = {self.k}"] * (self.k is not None)
        if len(self.runs) == 1:
            return safe(self.runs[0].run) + "".join(f" ({fact})" for fact in facts)
        return f"{safe(self.runs[0].recipe)} ({', '.join([*facts, f'{seeds} {len(self.runs)} seeds'])})"

    @property
    def band(self) -> str:
        """What the bands of its numbers mean."""
        return OF_PROMPTS if len(self.runs) == 1 else OF_SEEDS

    @property
    def policies(self) -> list[int]:
        """The policies that it has a number of."""
        return sorted({one.policy for one in self.numbers})

    def find(self, quantity: str) -> dict[int, Number]:
        """One quantity by policy."""
        return {one.policy: one for one in self.numbers if one.quantity == quantity}

    def over_policies(self, quantity: str) -> Curve | None:
        """One quantity as a line over the policies' numbers; None if there is none of it."""
        return self.curve(self.find(quantity))

    def over_n(self, quantity: str, policy: int) -> Curve | None:
        """The quantities `<quantity>@<n>` of one policy as a line over n; None if there is none of them."""
        start = f"{quantity}@"
        there = [one for one in self.numbers if one.policy == policy and one.quantity.startswith(start)]
        return self.curve({int(one.quantity.removeprefix(start)): one for one in there})

    def curve(self, numbers: dict[int, Number]) -> Curve | None:
        """Numbers by where they stand on the x axis as a line."""
        if not numbers:
            return None
        x = sorted(numbers)
        ends = [(numbers[at].value, numbers[at].low, numbers[at].high) for at in x]
        line, low, high = np.array(ends, dtype=float).T  # None becomes NaN
        partial = np.array([bool(numbers[at].missing) for at in x])
        return Curve(np.array(x), line, low, high, partial, None if np.isnan(low).all() else self.band)


@dataclass(frozen=True)
class Plot:
    """A figure of `raft plot`, which the report of a run has, too.

    `shows` says in a sentence what it shows; `missing` why a run may have nothing to draw, and what to do.
    """

    name: str
    title: str
    shows: str
    missing: str
    measure: Callable[[Path], Measured]
    draw: Callable[[list[Recipe]], "Figure"]


def recipes(runs: Sequence[Measured], missing: str) -> list[Recipe]:
    """Runs by recipe, in the order in which they are named.

    UserError if a run has no number (`missing` says why that can be and what to do), or if the seeds of a
    recipe have none in common.
    """
    if not runs:
        raise UserError("nothing to draw; name at least one run")
    found: dict[str, list[Measured]] = {}
    for run in runs:
        if not run.numbers:
            without = ", or leave this run out" if len(runs) > 1 else ""
            raise UserError(f"{run.run}: nothing to draw, {missing}{without}")
        found.setdefault(run.recipe, []).append(run)
    made = [Recipe(seeds, seeds[0].numbers if len(seeds) == 1 else _means(seeds)) for seeds in found.values()]
    for one in made:
        if not one.numbers:
            raise UserError(
                f"{one.title()}: nothing to draw, its seeds have no policy in common; name one of them alone"
            )
    return made


def _means(seeds: list[Measured]) -> list[Number]:
    """The mean, smallest and largest of every quantity, at the policies for which all seeds that know it have it."""
    tables: dict[str, list[dict[int, Number]]] = {}
    for run in seeds:
        for quantity in dict.fromkeys(one.quantity for one in run.numbers):
            table = {one.policy: one for one in run.numbers if one.quantity == quantity}
            tables.setdefault(quantity, []).append(table)
    return [
        _mean(policy, quantity, [table[policy] for table in known])
        for quantity, known in tables.items()
        for policy in sorted(set(known[0]).intersection(*known))
    ]


def _mean(policy: int, quantity: str, of_seeds: list[Number]) -> Number:
    """The mean over seeds, which all count alike; of the shares of missing rewards it has the largest."""
    values = [one.value for one in of_seeds]
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    missing = [one.missing for one in of_seeds if one.missing is not None]
    return Number(policy, quantity, fmean(values), low, high, missing=max(missing, default=None))


def is_table(path: Path) -> bool:
    """Whether a file begins as `tabulate` begins it, by its first columns: another version may have other ones."""
    start = ",".join(COLUMNS[:2]).encode() + b","
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(start)) == start


def tabulate(found: Sequence[Recipe], path: Path) -> None:
    """Writes numbers as CSV, a row for each (COLUMNS): those of every run, then the means over the seeds."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for recipe in found:
        means = [Measured(recipe.seeds, recipe.numbers)] if len(recipe.runs) > 1 else []
        for run in [*recipe.runs, *means]:
            table.writerows((recipe.runs[0].recipe, run.run, *astuple(one)) for one in run.numbers)
    write_text(path, text.getvalue())
