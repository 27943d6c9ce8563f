"""The built-in rules: plain functions `f(prompt, response, **args) -> float` that a recipe names by their short name.

    reward: {kind: rule, function: exact_answer, args: {field: answer}}

Patterns are Python's `re`, which may take exponential time on a pattern such as `(a+)+$`: nothing here stops it.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal

from raft.plugins import suggest
from raft.records import Prompt

BUILT_IN = ["exact_answer", "length", "regex", "repetition"]
UNITS = ["characters", "words"]
NUMBER = re.compile(r"(?:(?<![\w)])[-+−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


def exact_answer(
    prompt: Prompt, response: str, field: str = "answer", pattern: str | None = None, ignore_case: bool = True
) -> float:
    """1.0 if the answer in the response is `prompt.meta[field]`, else 0.0.

    The answer is the first group of the last match of `pattern`; without a pattern it is the last number where the
    reference is a number, and the last line otherwise. Numbers are equal by value: 1,000 is 1000.0.
    """
    if field not in prompt.meta:
        raise ValueError(f"prompt {prompt.id} has no meta field {field!r}; {suggest(field, list(prompt.meta))}")
    reference = _normal(str(prompt.meta[field]), ignore_case)
    answer = _answer(response, pattern, isinstance(reference, Decimal))
    return float(answer is not None and _normal(answer, ignore_case) == reference)


def regex(prompt: Prompt, response: str, pattern: str) -> float:
    """1.0 if the pattern matches anywhere in the response, else 0.0. One that backtracks without end is not stopped."""
    return float(re.search(pattern, response) is not None)


def length(
    prompt: Prompt, response: str, target: int | None = None, unit: Literal["words", "characters"] = "words"
) -> float:
    """The length of the response, or with a `target` minus the distance to it, in words or characters."""
    count = len(response.split()) if unit == "words" else len(response)
    return float(count if target is None else -abs(count - target))


def repetition(prompt: Prompt, response: str, n: int = 3) -> float:
    """Minus the share of n-grams (n words in a row) that stood in the response before: 0 is none, towards -1 is all."""
    words = response.split()
    grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) - 1 if grams else 0.0


def faults(args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the values of the arguments of a built-in rule: pairs of argument and message."""
    if args.get("unit", "words") not in UNITS:
        yield "unit", f"{args['unit']!r} is not allowed; {suggest(str(args['unit']), UNITS)}"
    for name, low in (("n", 1), ("target", 0)):
        value = args.get(name)
        if value is not None and not (type(value) is int and value >= low):
            yield name, f"{value!r} is not allowed; it must be a whole number of at least {low}"
    if args.get("pattern") is not None:
        try:
            re.compile(args["pattern"])
        except (re.error, TypeError) as fault:
            yield "pattern", f"{args['pattern']!r} is not a regular expression ({fault})"


def _answer(response: str, pattern: str | None, number: bool) -> str | None:
    if pattern is None and not number:
        return response.strip().rpartition("\n")[2]
    found = list(re.finditer(pattern or NUMBER, response))
    if not found:
        return None
    return found[-1][1 if found[-1].re.groups else 0]


def _normal(text: str, ignore_case: bool) -> Decimal | str:
    """A number by its value, any other text without white space around it."""
    text = text.strip()
    if NUMBER.fullmatch(text):
        return Decimal(text.replace(",", "").replace("−", "-"))
    return text.casefold() if ignore_case else text
