"""What a judge's words come to: pure functions from texts to verdicts, and from verdicts to the scores of a group.

Every pair is shown in both orders, and only a judge that says the same both times has a preference: this detects a
judge that prefers a position rather than a response (as in RLHFlow's collection of preferences of language models).
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from raft.core.records import Score
from raft.metrics import ranking
from raft.metrics.ranking import VERDICTS, Kind

SAID = {
    "A": {"a", "a>b", "a>>b", "b<a", "b<<a", "1", "responsea", "assistanta", "model_a", "modela"},
    "B": {"b", "b>a", "b>>a", "a<b", "a<<b", "2", "responseb", "assistantb", "model_b", "modelb"},
    "C": {"c", "tie", "a=b", "b=a", "a~b", "a≈b", "a==b", "equal", "neither", "draw"},
}
OPENS, CLOSES = r"(?:\[\[|［［)\s*", r"\s*(?:\]\]|］］)"
PREFERENCE = rf"(?i){OPENS}([ABC]|tie|[AB]\s*(?:>{{1,2}}|<{{1,2}}|[=~≈])\s*[AB]){CLOSES}"
PREFERENCE += (
    r"|\"(?:verdict|winner|preferred|preference|better|choice)\"\s*:\s*\"([ABC]|tie|[AB]\s*[<>=~]{1,2}\s*[AB])\""
)
NUMBER = r"(-?\d+(?:\.\d+)?)"
GRADE = rf"(?i){OPENS}{NUMBER}{CLOSES}|\"(?:verdict|grade|score|rating)\"\s*:\s*\"?{NUMBER}\"?\s*[,}}\n]"
VALUE = {"wins": 1.0, "losses": 0.0}  # of a response against another; without a preference 0.5


class Verdict(NamedTuple):
    """What a judge decided: "A", "B", "C" (neither), or a grade; None with a reason where it did not."""

    value: str | float | None
    reason: str = ""


class Outcome(NamedTuple):
    """How one response fared against another, in both orders."""

    kind: Kind
    reason: str = ""

    @property
    def turned(self) -> "Outcome":
        """The same, seen from the other."""
        turned: dict[Kind, Kind] = {"wins": "losses", "losses": "wins"}
        return Outcome(turned.get(self.kind, self.kind), self.reason)


def preference(text: str, pattern: str | None = None) -> str | None:
    """The last verdict on a pair in a text, "A", "B" or "C": whoever reasons may name them all before.

    [[A]], [[a]], [[A>B]], [[A>>B]], [[A=B]], [[tie]] and the JSON of {"verdict": "A"} are read, or with a `pattern` the
    group of its last match, if it says one of these.
    """
    word = _last(pattern or PREFERENCE, text)
    if word is None:
        return None
    word = re.sub(r"[\s\"'*]", "", unicodedata.normalize("NFKC", word)).casefold()
    return next((value for value, words in SAID.items() if word in words), None)


def grade(text: str, pattern: str | None, lowest: float, highest: float) -> float | None:
    """The last grade in a text, [[7]] or {"grade": 7} or the group of a pattern, if a number from lowest to highest."""
    word = _last(pattern or GRADE, text)
    try:
        number = float((word or "").replace("_", " "))
    except ValueError:
        return None
    return number if lowest <= number <= highest else None


def _last(pattern: str, text: str) -> str | None:
    """The group of the last match of a pattern; of several groups the group that took part."""
    last = None
    for match in re.finditer(pattern, text):
        last = match
    return None if last is None else next((part for part in last.groups() if part is not None), None)


def outcome(first: Verdict, second: Verdict) -> Outcome:
    """How a response fared that was A the first time, and B the second."""
    for verdict in (first, second):
        if verdict.value is None:
            return Outcome("no_verdict", verdict.reason)
    if first.value == second.value != "C":
        return Outcome("biased")
    kinds: dict[tuple[str | float | None, str | float | None], Kind] = {("A", "B"): "wins", ("B", "A"): "losses"}
    return Outcome(kinds.get((first.value, second.value), "no_preference"))


Met = Mapping[tuple[int, int], Outcome]  # by the numbers of two different texts, in either order


def scores(places: Sequence[int], met: Met, champion: int | None = None) -> list[Score]:
    """The scores of a group in which response i has the text `places[i]`; a `champion` is the text that comes first.

    Responses with the same text have no preference between them. A response that was compared with others and got
    no verdict at all is not scored; the others are ranked among themselves.
    """
    count = len(places)
    table = [[_between(places[i], places[j], met) if i != j else None for j in range(count)] for i in range(count)]
    parts: list[dict[str, float]] = [
        {kind: float(sum(result is not None and result.kind == kind for result in row)) for kind in VERDICTS}
        for row in table
    ]
    faults = [_fault(row, places, index) for index, row in enumerate(table)]
    kept = [index for index, fault in enumerate(faults) if fault is None]
    wins = np.array([[_value(table[i][j]) for j in kept] for i in kept])
    scored = [Score(None, parts[index], error=fault) for index, fault in enumerate(faults)]
    if kept:
        first = None if champion is None else [places[index] for index in kept].index(champion)
        order = ranking.ranked(wins) if first is None else _behind(first, wins)
        ranked = ranking.scores(wins, order, [parts[index] for index in kept])
        for index, score in zip(kept, ranked, strict=True):
            scored[index] = score
    return scored


def _between(first: int, other: int, met: Met) -> Outcome | None:
    """How a text fared against another; None where they never met."""
    if first == other:
        return Outcome("no_preference")
    if (first, other) in met:
        return met[first, other]
    return met[other, first].turned if (other, first) in met else None


def _fault(row: Sequence[Outcome | None], places: Sequence[int], index: int) -> str | None:
    """Why a response has no reward, None where it has one."""
    if len(row) == 1:
        return "one response alone has nothing to be compared with"
    asked = [result for result, place in zip(row, places, strict=True) if result is not None and place != places[index]]
    if not asked or any(result.kind != "no_verdict" for result in asked):
        return None
    return f"no verdict in any of its {len(asked)} comparisons; the first: {asked[0].reason}"


def _value(met: Outcome | None) -> float:
    return math.nan if met is None else VALUE.get(met.kind, 0.5)


def _behind(first: int, wins: np.ndarray) -> list[int]:
    """The champion, then the others by their strength: who met whom is a tree, which orders more than it shows."""
    strengths = ranking.strengths(wins).round(6)
    others = [index for index in range(len(wins)) if index != first]
    return [first, *sorted(others, key=lambda index: (-strengths[index], index))]
