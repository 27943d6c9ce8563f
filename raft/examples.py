"""The `examples:` section of the jobs `sft` and `reward-model`: responses that somebody else wrote.

Rows are read as those of `prompts:` are, and become examples (one response) or pairs (the better response first).
A row that cannot is dropped and named by its place; more than `max_failed` of them stop the run.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Literal, TypeVar

import numpy as np

from raft import plugins
from raft.chat import Tokenizer, encode_response
from raft.errors import UserError
from raft.prompts import Malformed, Reading, identified, words
from raft.records import Drop, Example, Pair, Prompt, Response
from raft.seeds import derive
from raft.sources import FileRows, HubRows, InlineRows, Row

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # how the dialogues of Anthropic's HH-RLHF mark their turns

Made = TypeVar("Made")
Rated = tuple[float, str, str]  # a label, the id of its row, the text


@dataclass(frozen=True, kw_only=True)
class Examples(Reading):
    """The options of every kind. Without `pairs` a row has a prompt and a response; with `field: null` no prompt.

    `pairs: given` reads the columns `chosen` and `rejected`; with `field: null` they may be whole dialogues, whose
    prompt is all that they have in common up to the last "Assistant:". `pairs: from_labels` makes pairs out of rows
    with a `text` and a `label` (a number). `held_out` rows, a seeded choice, are set aside for evaluation.
    """

    response: str = "response"
    pairs: Literal["given", "from_labels"] | None = None
    chosen: str = "chosen"
    rejected: str = "rejected"
    text: str = "text"
    label: str = "label"
    limit: int | None = None
    held_out: int = 0
    max_failed: float = 0.01

    def faults(self) -> Iterator[tuple[str, str]]:
        """Values out of range, and options without an effect."""
        yield from super().faults()
        yield from plugins.faults_of_range(self, limit=(1, math.inf), held_out=(0, math.inf), max_failed=(0, 1))
        if self.is_chat and (self.pairs == "from_labels" or (self.field is None and self.messages is None)):
            yield "format", "there is no prompt, so there can be no chat; use format: text"

    def columns(self) -> list[str]:
        if self.pairs == "from_labels":
            return [self.text, self.label]
        return [*super().columns(), *([self.chosen, self.rejected] if self.pairs else [self.response])]

    def answered(self, row: Row, prompt_id: str) -> tuple[Prompt, list[str]]:
        """A row's prompt and what answers it: one text, or the chosen and the rejected. Malformed if there is none."""
        if self.pairs == "from_labels":
            return Prompt(prompt_id, text=""), [_filled(row, self.text)]
        prompt = self.prompt(row, prompt_id)
        if self.pairs is None:
            return prompt, [_filled(row, self.response)]
        sides = [words(row, self.chosen), words(row, self.rejected)]
        if self.field is None and self.messages is None:
            prompt, sides = _dialogues(prompt_id, sides)
        for name, side in zip((self.chosen, self.rejected), sides, strict=True):
            if not side.strip():
                raise Malformed(f"{name} is empty")
        if sides[0] == sides[1]:
            raise Malformed(f"{self.chosen} and {self.rejected} are equal")
        return prompt, sides


@dataclass(frozen=True, kw_only=True)
class FileExamples(Examples, FileRows):
    """kind: file."""


@dataclass(frozen=True, kw_only=True)
class HubExamples(Examples, HubRows):
    """kind: hub."""


@dataclass(frozen=True, kw_only=True)
class InlineExamples(Examples, InlineRows):
    """kind: list."""


def read(section: Examples, tokenizer: Tokenizer, seed: int, held_out: bool = False) -> Iterator[Example | Pair | Drop]:
    """What the section asks for: pairs if it says how to get them, else examples."""
    return (supervised if section.pairs is None else pairs)(section, tokenizer, seed, held_out)


def supervised(section: Examples, tokenizer: Tokenizer, seed: int, held_out: bool = False) -> Iterator[Example | Drop]:
    """Each row but those set aside (with `held_out`, only those) as an example, or as a drop.

    UserError if a column is missing, if more than `max_failed` of all rows are dropped, or if too many are set aside.
    """

    def example(row: Row, prompt_id: str) -> Example:
        prompt, (text,) = section.answered(row, prompt_id)
        return Example(prompt_id, _response(tokenizer, prompt, text), messages=prompt.messages, text=prompt.text)

    section = replace(section, pairs=None)
    return _made(section, example, seed, held_out)


def pairs(section: Examples, tokenizer: Tokenizer, seed: int, held_out: bool = False) -> Iterator[Pair | Drop]:
    """Each row but those set aside (with `held_out`, only those) as a pair, or as a drop; see `supervised`.

    `from_labels` pairs the rows of each label with those of the next lower one, at random: as many pairs as the
    larger of the two has rows, and every row of both is used before any is used twice. It holds the texts in memory.
    """

    def pair(row: Row, prompt_id: str) -> Pair:
        return _pair(tokenizer, *section.answered(row, prompt_id))

    section = replace(section, pairs=section.pairs or "given")
    if section.pairs == "given":
        return _made(section, pair, seed, held_out)
    return _ranked(section, tokenizer, seed, held_out)


def texts(section: Examples) -> Iterator[str]:
    """Every text of the rows, prompts and responses, for a tokenizer to be made from."""
    for _, _, prompt_id, row in islice(identified([section]), section.limit):
        try:
            prompt, answers = section.answered(row, prompt_id)
        except Malformed:
            continue
        yield from filter(None, [prompt.content, *answers])


def _made(section: Examples, make: Callable[[Row, str], Made], seed: int, held_out: bool) -> Iterator[Made | Drop]:
    """The rows of one side of the split, each made into something or dropped."""
    aside = _set_aside(section, seed)
    failed = 0
    for number, (_, place, prompt_id, row) in enumerate(islice(identified([section]), section.limit)):
        if aside[number] != held_out:
            continue
        try:
            yield make(row, prompt_id)
        except Malformed as fault:
            failed += 1
            if failed > section.max_failed * len(aside):
                raise UserError(
                    f"{place}: {fault}; with this row {failed} of {len(aside)} cannot be used, more than "
                    f"examples.max_failed: {section.max_failed:g} allows; mend the rows, or raise max_failed"
                ) from None
            yield Drop(prompt_id, None, "gather", f"{place}: {fault}")


def _set_aside(section: Examples, seed: int) -> np.ndarray:
    """Which rows are held out, [rows] of bool."""
    count = sum(1 for _ in islice(section.rows(), section.limit))
    if section.held_out and section.held_out >= count:
        raise UserError(f"examples.held_out: {section.held_out} of {count} rows leave none to learn from; lower it")
    aside = np.zeros(count, dtype=bool)
    aside[np.random.default_rng(derive(seed, "held out")).permutation(count)[: section.held_out]] = True
    return aside


def _ranked(section: Examples, tokenizer: Tokenizer, seed: int, held_out: bool) -> Iterator[Pair | Drop]:
    def rated(row: Row, prompt_id: str) -> Rated:
        return _label(row, section.label), prompt_id, section.answered(row, prompt_id)[1][0]

    levels: dict[float, list[Rated]] = {}
    for one in _made(section, rated, seed, held_out):
        if isinstance(one, Drop):
            yield one
        else:
            levels.setdefault(one[0], []).append(one)
    if len(levels) == 1:
        raise UserError(f"examples.label: all rows have the label {min(levels):g}, so none is better; give others too")
    for lower, higher in pairwise(sorted(levels)):
        rng = np.random.default_rng(derive(seed, "pairs", str(higher)))
        for better, worse in _matched(levels[higher], levels[lower], rng):
            yield _compared(tokenizer, better, worse)


def _matched(higher: list[Rated], lower: list[Rated], rng: np.random.Generator) -> Iterator[tuple[Rated, Rated]]:
    count = max(len(higher), len(lower))
    orders = [np.resize(rng.permutation(len(side)), count).tolist() for side in (higher, lower)]
    for better, worse in zip(*orders, strict=True):
        yield higher[better], lower[worse]


def _compared(tokenizer: Tokenizer, better: Rated, worse: Rated) -> Pair | Drop:
    prompt = Prompt(f"{better[1]}-{worse[1]}", text="")
    if better[2] == worse[2]:
        return Drop(prompt.id, None, "gather", f"the same text is labelled {better[0]:g} and {worse[0]:g}")
    return _pair(tokenizer, prompt, [better[2], worse[2]])


def _pair(tokenizer: Tokenizer, prompt: Prompt, sides: list[str]) -> Pair:
    chosen, rejected = (_response(tokenizer, prompt, side) for side in sides)
    return Pair(prompt.id, chosen, rejected, prompt.messages, prompt.text)


def _response(tokenizer: Tokenizer, prompt: Prompt, text: str) -> Response:
    return Response(text, encode_response(tokenizer, prompt, text), None, "stop")


def _filled(row: Row, column: str) -> str:
    text = words(row, column)
    if not text.strip():
        raise Malformed(f"{column} is empty")
    return text


def _label(row: Row, column: str) -> float:
    value = row.get(column)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Malformed(f"{column} is not a number but {value!r}")
    return number


def _dialogues(prompt_id: str, sides: list[str]) -> tuple[Prompt, list[str]]:
    """Two dialogues as their common prompt and their last replies; texts that are no dialogues have no prompt."""
    if not any(side.startswith(HUMAN) for side in sides):
        return Prompt(prompt_id, text=""), sides
    cut = [side.rpartition(ASSISTANT) for side in sides]
    heads = {head + mark for head, mark, _ in cut}
    if len(heads) > 1:
        raise Malformed("prompts differ")
    return Prompt(prompt_id, text=heads.pop()), [reply for _, _, reply in cut]
