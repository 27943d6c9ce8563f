"""The built-in rules: plain functions `f(prompt, response, **args) -> float` that a recipe names by their short name.

    reward: {kind: rule, function: exact_answer, args: {field: answer}}

Patterns are Python's `re`, which may take exponential time on a pattern such as `(a+)+$`: nothing here stops it.
"""

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Literal

from raft.core.errors import install_extra
from raft.core.options import suggest
from raft.core.records import Prompt
from raft.rewards import answers, mathematics

BUILT_IN = ["exact_answer", "length", "math_verify", "regex", "repetition"]
UNITS = ["characters", "words"]


def exact_answer(
    prompt: Prompt, response: str, field: str = "answer", pattern: str | None = None, ignore_case: bool = True
) -> float:
    """1.0 if the response comes to `prompt.meta[field]`, else 0.0. ValueError: that is no reference for any answer.

    The reference is a number, a letter of a multiple choice, or words on one line; of a worked solution what stands
    behind its last #### or in \\boxed{}. With a `pattern` the answer is the first group of its last match. Without one
    it is what the response puts behind #### or into \\boxed{}, else its last number, the last letter that it names as
    its choice, or its last line. See `raft.rewards.answers` for what is equal.
    """
    reference = _reference(prompt, field)
    if pattern is None:
        return float(answers.matches(reference, response, ignore_case))
    found = list(re.finditer(pattern, response))
    answer = found[-1][1 if found[-1].re.groups else 0] if found else None
    return float(answer is not None and answers.says(reference, answer, ignore_case))


def math_verify(prompt: Prompt, response: str, field: str = "answer", seconds: float = 5.0) -> float:
    """1.0 if `exact_answer` finds the response right, or the package math-verify within `seconds`, else 0.0.

    math-verify compares formulas as mathematics: roots, intervals, sets, and what sympy finds to be equal.
    """
    reference = _reference(prompt, field)
    if answers.matches(reference, response):
        return 1.0
    if reference.letter is not None:
        return 0.0
    return float(mathematics.checker().equal(reference.words, response, seconds))


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
    if not (isinstance(seconds := args.get("seconds", 1), int | float) and 0 < seconds <= 3600):
        yield "seconds", f"{seconds!r} is not allowed; it must be above 0 and at most 3600"
    for name, low in (("n", 1), ("target", 0)):
        value = args.get(name)
        if value is not None and not (type(value) is int and value >= low):
            yield name, f"{value!r} is not allowed; it must be a whole number of at least {low}"
    if args.get("pattern") is not None:
        try:
            re.compile(args["pattern"])
        except (re.error, TypeError) as fault:
            yield "pattern", f"{args['pattern']!r} is not a regular expression ({fault})"


def missing(function: str) -> str | None:
    """What a built-in rule needs and this installation lacks, as the end of a message."""
    if function == "math_verify" and find_spec("math_verify") is None:
        return f"needs the package math-verify; {install_extra('math')}, or use exact_answer"
    return None


def _reference(prompt: Prompt, field: str) -> answers.Reference:
    if field not in prompt.meta:
        raise ValueError(f"prompt {prompt.id} has no meta field {field!r}; {suggest(field, list(prompt.meta))}")
    try:
        return answers.Reference.of(prompt.meta[field])
    except ValueError as fault:
        raise ValueError(f"prompt {prompt.id}: the reference in {field!r} {fault}") from None
