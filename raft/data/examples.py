"""The `examples:` section of the jobs `sft` and `reward-model`: responses that somebody else wrote.

Rows are read as those of `prompts:` are, and become examples (one response) or pairs (the better response first).
A row that cannot is dropped and named by its place; more than `max_bad_rows_fraction` of them stop the run.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import islice, pairwise
from typing import TypeVar

import numpy as np

from raft.core.errors import RowError, UserError
from raft.core.options import choice, faults_of_range
from raft.core.records import Drop, Example, Pair, Prompt, Response
from raft.core.seeds import derive
from raft.data.preference_layouts import LAYOUTS, Compared, Layout, Unused, compared, conversations, require_pair
from raft.data.prompts import (
    FIRST,
    Reading,
    columns_of,
    filled,
    held_out_key,
    identified,
    reasons,
    template_faults,
)
from raft.data.sources import FileRows, HubRows, InlineRows, Row
from raft.models.chat_templates import Tokenizer, encode_response, require_variables, require_written, unembedded
from raft.models.messages import Malformed, Message, answered, turns, words

# options that say where prompts and responses stand, which a layout knows by itself
LAYOUT_OPTIONS = (
    "prompt_column", "messages", "until", "tools", "format", "prefix", "suffix", "extract", "id", "response", "chosen",
    "rejected", "text", "label",
)  # fmt: skip
RESPONSE = "response"
AHEAD = 100  # rows that are looked at before the job is stopped for malformed ones, to say whether all are
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # how the dialogues of Anthropic's HH-RLHF mark their turns

Made = TypeVar("Made")
Rated = tuple[float, str, str]  # a label, the id of its row, the text


@dataclass(frozen=True, kw_only=True)
class Examples(Reading):
    """The options of every kind. Without `pairs` a row is a prompt and a response; `prompt_column: null`: no prompt.

    `response` names its column, or several in a template. With null it is the answer of the assistant with which
    `messages` end; so it is, too, where rows with `messages` have no column `response`.

    `pairs: columns` reads the columns `chosen` and `rejected`: two texts, or two lists of messages, each a whole
    conversation or only the answer, of which all but the last message is the prompt. With `prompt_column: null` the
    prompt is what two conversations, or two dialogues of texts, have in common. `pairs: from_labels` makes pairs out of
    rows with a `text` and a `label` (a number). Every other name is a layout of `data.preference_layouts`, which knows
    its columns and numbers its rows; with `single_turn` and `language` its other rows are left out. `held_out` rows, a
    seeded choice, are set aside for evaluation, each with all rows of the same prompt and all its pairs.
    """

    response: str | None = RESPONSE
    pairs: str | None = choice(("columns", "from_labels", *LAYOUTS), None)
    chosen: str = "chosen"
    rejected: str = "rejected"
    text: str = "text"
    label: str = "label"
    single_turn: bool = False
    language: str | None = None
    limit: int | None = None
    held_out: int = 0
    max_bad_rows_fraction: float = 0.01

    def faults(self) -> Iterator[tuple[str, str]]:
        """Values out of range, and options without an effect."""
        yield from super().faults()
        yield from faults_of_range(self, limit=(1, math.inf), held_out=(0, math.inf), max_bad_rows_fraction=(0, 1))
        yield from self._filter_faults()
        if self.response is not None:
            yield from template_faults("response", self.response)
        elif self.messages is None and self.pairs is None:
            yield "response", "null is the last of messages; name the column with messages, or that of the response"
        if self.pairs is not None and self.chat_template_kwargs:
            yield "chat_template_kwargs", "has no effect on pairs, which no policy reads; leave it out"
        if self.layout is not None:
            for item in fields(self):
                if item.name in LAYOUT_OPTIONS and getattr(self, item.name) != item.default:
                    yield item.name, f"has no effect, pairs: {self.pairs} knows where everything stands; leave it out"
        elif self.is_chat and (self.pairs == "from_labels" or (self.prompt_column is None and self.messages is None)):
            yield "format", "there is no prompt, so there can be no chat; use format: text"

    def _filter_faults(self) -> Iterator[tuple[str, str]]:
        if self.single_turn and not (self.layout and self.layout.turns):
            able = ", ".join(name for name, layout in LAYOUTS.items() if layout.turns)
            yield "single_turn", f"has no effect with pairs: {self.pairs}; leave it out, it is for: {able}"
        if self.language is not None and not (self.layout and self.layout.language):
            able = ", ".join(name for name, layout in LAYOUTS.items() if layout.language)
            yield "language", f"has no effect with pairs: {self.pairs}; leave it out, it is for: {able}"

    @property
    def layout(self) -> Layout | None:
        """The published layout that the rows have, None where the recipe says what stands where."""
        return LAYOUTS.get(self.pairs or "")

    @property
    def is_chat(self) -> bool:
        return self.layout is not None or super().is_chat

    def columns(self) -> list[str]:
        if self.layout is not None:
            return list(self.layout.columns)
        if self.pairs == "from_labels":
            return [self.text, self.label]
        if self.pairs:
            return [*super().columns(), self.chosen, self.rejected]
        if self.messages is not None and self.response == RESPONSE:
            return super().columns()
        return [*super().columns(), *columns_of(self.response)]

    def missing(self, row: Row) -> str | None:
        fault = super().missing(row)
        if fault is None or self.layout is not None or self.pairs == "from_labels":
            return fault
        if (
            self.pairs
            and self.prompt_column is not None
            and self.prompt_column not in row
            and {self.chosen, self.rejected} <= {*row}
        ):
            return (
                f"{fault}; with prompt_column: null the prompt is what {self.chosen} and {self.rejected} have in common"
            )
        return f"{fault}; {_other_form(self, row)}"

    def first_rows(self) -> Iterator[tuple[str, str, Row]]:
        return islice(_rows(self), FIRST)

    def understand(self, row: Row, prompt_id: str) -> None:
        if self.max_bad_rows_fraction == 1:
            return  # then no row has to be one that can be used
        if self.pairs in (None, "from_labels"):
            self.answered(row, prompt_id)
        else:
            list(self.compared(row, prompt_id))

    def advice(self, row: Row) -> str:
        return _other_form(self, row)

    def repeated(self) -> tuple[int, int]:
        """In how many of the first rows every answer begins with its prompt, and how many rows these are.

        The prompt is what a row has in its column, or its last message, without what frames it.
        """
        repeats, read = 0, 0
        for _, prompt_id, row in self.first_rows() if self.layout is None else ():
            with suppress(Malformed):
                prompt, answers = self.answered(row, prompt_id)
                column = row.get(self.prompt_column or "")
                last = prompt.messages[-1].get("content") if prompt.messages else prompt.text
                asked = {one.strip() for one in (column, last) if isinstance(one, str) and one.strip()}
                repeats += any(all(answer.lstrip().startswith(one) for answer in answers) for one in asked)
                read += 1
        return repeats, read

    def answered(self, row: Row, prompt_id: str) -> tuple[Prompt, list[str]]:
        """A row's prompt and what answers it: one text, or the chosen and the rejected. Malformed if there is none."""
        if self.pairs == "from_labels":
            return Prompt(prompt_id, text=""), [_filled(row, self.text)]
        if self.pairs is None:
            return self._supervised(row, prompt_id)
        if isinstance(row.get(self.chosen), list):
            return self._conversations(row, prompt_id)
        prompt = self.prompt(row, prompt_id)
        sides = [words(row, self.chosen), words(row, self.rejected)]
        if self.prompt_column is None and self.messages is None:
            prompt, sides = _dialogues(prompt_id, sides)
        require_pair(sides[0], sides[1], (self.chosen, self.rejected))
        return prompt, sides

    def _supervised(self, row: Row, prompt_id: str) -> tuple[Prompt, list[str]]:
        if self.response is not None and (self.messages is None or self.response != RESPONSE or RESPONSE in row):
            return self.prompt(row, prompt_id), [_filled(row, self.response)]
        assert self.messages is not None
        before, text = answered(row.get(self.messages), self.messages)
        if not text.strip():
            raise Malformed("the last message is empty")
        asked = turns(before, self.messages) if before else before
        if not asked:
            raise Malformed(f"{self.messages} has no message before the answer of the assistant")
        return self._chat(prompt_id, asked, row), [text]

    def _conversations(self, row: Row, prompt_id: str) -> tuple[Prompt, list[str]]:
        """The pair of two lists of messages; the prompt is a list of them too, or a text that they repeat."""
        known: list[Message] | str | None = None
        if self.messages is not None:
            known = turns(row.get(self.messages), self.messages)
        elif self.prompt_column is not None:
            found = row.get(self.prompt_column)
            known = turns(found, self.prompt_column) if isinstance(found, list) else self._framed(row)
        one = conversations(known, row, self.chosen, self.rejected)
        require_pair(one.chosen, one.rejected, (self.chosen, self.rejected))
        return self._chat(prompt_id, one.messages, row), [one.chosen, one.rejected]

    def first_prompt(self) -> Prompt | None:
        """The prompt of the first row that can be used; None where none of the first rows can."""
        for _, prompt_id, row in self.first_rows():
            with suppress(Malformed):
                if self.pairs in (None, "from_labels"):
                    return self.answered(row, prompt_id)[0]
                for one in self.compared(row, prompt_id):
                    if isinstance(one, Pair):
                        return one.prompt
        return None

    def asked(self, row: Row, prompt_id: str) -> str:
        """A hash of what a row's prompt says; empty if it has none. Malformed if the row is broken."""
        if self.layout is None:
            prompt = self.answered(row, prompt_id)[0]
        else:
            found = (one.prompt for one in self.compared(row, prompt_id) if isinstance(one, Pair))
            prompt = next(found, Prompt(prompt_id, text=""))
        return held_out_key(prompt) if prompt.content.strip() else ""

    def compared(self, row: Row, prompt_id: str) -> Iterator[Pair | Drop]:
        """What a row compares, pair by pair. Malformed, before any pair, if it is broken."""
        if self.layout is None:
            yield _pair(*self.answered(row, prompt_id))
            return
        for one in compared(self.layout, row, self.single_turn, self.language):
            yield self._of_layout(one, f"{prompt_id}-{one.part}" if one.part else prompt_id)

    def _of_layout(self, one: Compared | Unused, prompt_id: str) -> Pair | Drop:
        if isinstance(one, Unused):
            return Drop(prompt_id, None, "load_examples", one.reason)
        prompt = self._chat(prompt_id, one.messages)
        return replace(_pair(prompt, [one.chosen, one.rejected]), subset=one.subset)


@dataclass(frozen=True, kw_only=True)
class FileExamples(Examples, FileRows):
    """kind: file."""


@dataclass(frozen=True, kw_only=True)
class HubExamples(Examples, HubRows):
    """kind: hub."""


@dataclass(frozen=True, kw_only=True)
class InlineExamples(Examples, InlineRows):
    """kind: list."""


def read(
    section: Examples, tokenizer: Tokenizer | None, seed: int, held_out: bool = False
) -> Iterator[Example | Pair | Drop]:
    """What the section asks for: pairs if it says how to get them, which needs no tokenizer, else examples."""
    if section.pairs is None:
        return supervised(section, tokenizer, seed, held_out)
    return pairs(section, seed, held_out)


def supervised(section: Examples, tokenizer: Tokenizer, seed: int, held_out: bool = False) -> Iterator[Example | Drop]:
    """Each row but those set aside (with `held_out`, only those) as an example, or as a drop.

    UserError if a column is missing, if more than `max_bad_rows_fraction` of all rows are dropped, or if too many are
    set aside.
    """

    def example(row: Row, prompt_id: str) -> list[Example]:
        prompt, (text,) = section.answered(row, prompt_id)
        response = Response(text, encode_response(tokenizer, prompt, text), None, "stop")
        if (strange := unembedded(tokenizer, response.token_ids)) is not None:
            raise RowError(strange)
        require_written(tokenizer, prompt)
        return [Example(prompt_id, response, **prompt.asked)]

    section = replace(section, pairs=None)
    require_variables(tokenizer, section.chat_template_kwargs or {})
    return _made(section, example, seed, held_out)


def pairs(section: Examples, seed: int, held_out: bool = False) -> Iterator[Pair | Drop]:
    """The pairs of each row but those set aside (with `held_out`, only those), or a drop; see `supervised`.

    Their texts are what matters: a pair has no tokens. A layout may find several pairs in a row, whose ids end in what
    is compared ("000012-0-3"), and may leave some out, which is no fault of the row. `from_labels` pairs the rows of
    each label with those of the next lower one, at random: as many pairs as the larger of the two has rows, and every
    row of both is used before any is used twice. It holds the texts in memory.
    """
    section = replace(section, pairs=section.pairs or "columns")
    if section.pairs == "from_labels":
        return _ranked(section, seed, held_out)
    return _made(section, section.compared, seed, held_out)


def texts(section: Examples) -> Iterator[str]:
    """Every text of the rows, prompts and responses, for a tokenizer to be made from."""
    for _, prompt_id, row in _rows(section):
        try:
            if section.layout is None:
                prompt, answers = section.answered(row, prompt_id)
                yield from filter(None, [prompt.content, *answers])
                continue
            found = list(section.compared(row, prompt_id))
        except Malformed:
            continue
        for one in found:
            if isinstance(one, Pair):
                yield from (one.prompt.content, one.chosen.text, one.rejected.text)


def answers_of_a_prompt(section: Examples) -> int:
    """The most responses that one prompt has; 0 where the rows are not on this machine, or cannot be read."""
    counts = Counter[str]()
    with suppress(UserError, OSError):  # said elsewhere
        for _, prompt_id, row in _rows(section) if isinstance(section, FileRows | InlineRows) else ():
            with suppress(Malformed):
                counts[held_out_key(section.answered(row, prompt_id)[0])] += 1
    return max(counts.values(), default=0)


def _rows(section: Examples) -> Iterator[tuple[str, str, Row]]:
    """The first `limit` rows, each with its place and id. Ids of published data sets are not trusted to differ."""
    numbered = section if section.layout is None else replace(section, id=None)
    for _, place, prompt_id, row in islice(identified([numbered]), section.limit):
        yield place, prompt_id, row


def _made(
    section: Examples, make: Callable[[Row, str], Iterable[Made]], seed: int, held_out: bool
) -> Iterator[Made | Drop]:
    """The rows of one side of the split, each made into something or dropped."""
    aside = _set_aside(section, seed)
    rows = (one for number, one in enumerate(_rows(section)) if aside[number] == held_out)
    used = 0
    failed: list[Drop] = []
    for place, prompt_id, row in rows:
        made = _tried(make, place, prompt_id, row)
        if isinstance(made, Drop):
            failed.append(made)
            if len(failed) > section.max_bad_rows_fraction * len(aside):
                ahead = [_tried(make, *one) for one in islice(rows, AHEAD)]
                seen = used + len(failed) + len(ahead)
                failed += [one for one in ahead if isinstance(one, Drop)]
                raise UserError(_too_many(section, failed, seen, len(aside), row))
            yield made
        else:
            used += 1
            yield from made


def _tried(make: Callable[[Row, str], Iterable[Made]], place: str, prompt_id: str, row: Row) -> list[Made] | Drop:
    """What is made of a row, all of it or nothing."""
    try:
        return list(make(row, prompt_id))
    except (Malformed, RowError) as fault:
        return Drop(prompt_id, None, "load_examples", f"{place}: {fault}")


def _too_many(section: Examples, failed: list[Drop], seen: int, rows: int, row: Row) -> str:
    """That more rows than `max_bad_rows_fraction` allows cannot be used; of the `seen` first ones it is known which."""
    if len(failed) == seen:
        return f"none of the first {seen} rows can be used: {reasons(failed)}; {_other_form(section, row)}"
    return (
        f"{len(failed)} of the first {seen} rows cannot be used: {reasons(failed)}. examples.max_bad_rows_fraction: "
        f"{section.max_bad_rows_fraction:g} allows {math.floor(section.max_bad_rows_fraction * rows)} of {rows}; "
        "correct the rows, or raise max_bad_rows_fraction"
    )


def _other_form(section: Examples, row: Row) -> str:
    """What to do where no row has the form that the section says."""
    if section.pairs is None:
        return (
            "say with prompt_column or messages, and with response, where prompt and response stand (docs/recipes.md)"
        )
    fitting = [name for name, layout in LAYOUTS.items() if name != section.pairs and {*layout.columns} <= row.keys()]
    hint = f"; these columns are those of pairs: {' or '.join(fitting)}" if fitting else ""
    return f"this is not the form of pairs: {section.pairs}; docs/preference-data.md has the forms that are known{hint}"


def _set_aside(section: Examples, seed: int) -> np.ndarray:
    """Which rows are held out, [rows] of bool: all rows of a prompt, or none, so perhaps a few more than asked for."""
    if not section.held_out:
        return np.zeros(sum(1 for _ in islice(section.rows(), section.limit)), dtype=bool)
    prompts = np.array(list(_prompts(section)), dtype=int)
    order = prompts[np.random.default_rng(derive(seed, "held out")).permutation(len(prompts))]
    drawn = order[np.sort(np.unique(order, return_index=True)[1])]  # each prompt once
    rows = np.cumsum(np.bincount(prompts)[drawn])
    aside = np.isin(prompts, drawn[: int(np.searchsorted(rows, section.held_out)) + 1])
    if aside.all():
        whole = f", of {len(drawn)} prompts that are held out whole," if len(drawn) < len(prompts) else ""
        raise UserError(
            f"examples.held_out: {section.held_out} of {len(prompts)} rows{whole} leave none to learn from; lower it"
        )
    return aside


def _prompts(section: Examples) -> Iterator[int]:
    """The number of each row's prompt; rows whose prompts say the same share it."""
    known: dict[str, int] = {}
    for number, (_, prompt_id, row) in enumerate(_rows(section)):
        said = ""
        if section.pairs != "from_labels":
            with suppress(Malformed):
                said = section.asked(row, prompt_id)
        yield known.setdefault(said or f"row {number}", len(known))


def _ranked(section: Examples, seed: int, held_out: bool) -> Iterator[Pair | Drop]:
    def rated(row: Row, prompt_id: str) -> list[Rated]:
        return [(_label(row, section.label), prompt_id, section.answered(row, prompt_id)[1][0])]

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
            yield _compared(better, worse)


def _matched(higher: list[Rated], lower: list[Rated], rng: np.random.Generator) -> Iterator[tuple[Rated, Rated]]:
    count = max(len(higher), len(lower))
    orders = [np.resize(rng.permutation(len(side)), count).tolist() for side in (higher, lower)]
    for better, worse in zip(*orders, strict=True):
        yield higher[better], lower[worse]


def _compared(better: Rated, worse: Rated) -> Pair | Drop:
    prompt = Prompt(f"{better[1]}-{worse[1]}", text="")
    if better[2] == worse[2]:
        return Drop(prompt.id, None, "load_examples", f"the same text is labelled {better[0]:g} and {worse[0]:g}")
    return _pair(prompt, [better[2], worse[2]])


def _pair(prompt: Prompt, sides: list[str]) -> Pair:
    chosen, rejected = (Response(side, [], None, "stop") for side in sides)
    return Pair(prompt.id, chosen, rejected, **prompt.asked)


def _filled(row: Row, column: str) -> str:
    text = filled(row, column)
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
