"""The gold reward of recipes/tinystories.yaml: how positive a story is, by a word list that selection never sees."""

import re
from functools import cache
from pathlib import Path

from raft.core.records import Prompt

WORD = re.compile(r"[a-z']+")


@cache
def read_lexicon(path: str) -> dict[str, float]:
    """Words and their mean valence, from a tab-separated file in VADER's format (Hutto and Gilbert 2014)."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return {fields[0]: float(fields[1]) for fields in (line.split("\t") for line in lines) if len(fields) > 1}


def valence(prompt: Prompt, response: str, lexicon: str) -> float:
    """The summed valence of the response's words, squashed to -1..1 as VADER does: s / sqrt(s^2 + 15)."""
    words = read_lexicon(lexicon)
    total = sum(words.get(word, 0.0) for word in WORD.findall(response.lower()))
    return total / (total * total + 15) ** 0.5
