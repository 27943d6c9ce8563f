"""The `prompts:` section: which rows are prompts, and which of them an iteration draws.

A row becomes a prompt, or a drop that says why not. The draw is without replacement: within each part of a mixture
every prompt comes once before any comes twice, and any iteration's draw can be known without making those before it.
"""

import math
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from hashlib import blake2b
from itertools import islice
from typing import Any, Literal

import numpy as np

from raft.core import protocols, records
from raft.core.errors import RowError, UserError
from raft.core.options import faults_of_range, only, section
from raft.core.records import Drop, Prompt
from raft.core.seeds import derive
from raft.data.sources import FileRows, HubRows, InlineRows, Row, Source, pattern_faults
from raft.models.chat_templates import (
    Tokenizer,
    encode_prompt,
    require_known,
    require_short,
    require_variables,
    require_written,
)
from raft.models.messages import Malformed, Message, messages, require_json, require_open, tools, until_user, words

PLACE = re.compile(r"(\S.*?(?::\d+|\[\d+\])): ")  # at the start of a reason with the place of its row
MOST_REASONS = 5
PER_ITERATION = 2048  # prompts of an iteration, where a recipe does not say
FIRST = 100  # rows that are looked at before a run starts
ADVICE = "correct the rows, or the options that say how they are read (docs/recipes.md)"
PIECE = re.compile(r"\{\{|\}\}|\{[^{}]+\}|[^{}]+")  # of a template over columns
IN_BRACES = re.compile(r"\{[^{}]+\}")
INSTRUCTION, ABOUT = "instruction", ("input", "context")  # columns of Alpaca and Dolly that are one question together
# What chat templates get from raft itself, or what is not a variable of theirs but an argument of apply_chat_template.
RESERVED = frozenset(
    ["conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
     "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
     "return_assistant_tokens_mask", "tokenizer_kwargs"]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reading(Source):
    """How a row becomes a prompt.

    Its text is the column `prompt_column`, or several in a template such as "{instruction}\\n\\n{input}", of which
    `extract` (a regular expression) takes out its first group, between `prefix` and `suffix`; with `format: chat` that
    is one message of the user. Or it is the column `messages`, a list of {role, content} that ends where the assistant
    is to speak; `until: last-user` leaves out what comes after the user's last words, such as an answer. `tools` is the
    column of the functions that messages may call. `system` goes before messages that have none. `chat_template_kwargs`
    are variables for the policy's chat template. `id` is the column with the id; with null rows are numbered.
    """

    prompt_column: str | None = "prompt"
    messages: str | None = None
    until: Literal["end", "last-user"] = "end"
    tools: str | None = "tools"
    format: Literal["text", "chat"] = "text"
    system: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prefix: str = ""
    suffix: str = ""
    extract: str | None = None
    id: str | None = "id"

    def faults(self) -> Iterator[tuple[str, str]]:
        """Options that contradict each other."""
        yield from super().faults()
        if self.messages is not None and self.prompt_column not in (None, "prompt"):
            yield "messages", f"give field ({self.prompt_column}) or messages ({self.messages}), not both"
        if self.prompt_column is None or self.messages is not None:
            for name in ("prefix", "suffix", "extract"):
                if getattr(self, name):
                    yield name, "is for the text of a field; leave it out"
        if self.prompt_column is not None:
            yield from template_faults("prompt_column", self.prompt_column)
        if self.system is not None and not self.is_chat:
            yield "system", "is for a chat; give messages, or format: chat, or write it into prefix"
        if self.chat_template_kwargs and not self.is_chat:
            yield "chat_template_kwargs", "is for a chat; give messages, or format: chat"
        for name in sorted(RESERVED.intersection(self.chat_template_kwargs or {})):
            yield f"chat_template_kwargs.{name}", "is not for a recipe to say; leave it out"
        if self.messages is None and (self.until, self.tools) != ("end", "tools"):
            yield "until" if self.until != "end" else "tools", "is for messages; leave it out"
        if self.extract is not None:
            yield from pattern_faults(
                "extract", self.extract, r"a group around what to take, such as (?s)(.*\n\nAssistant:)"
            )

    @property
    def is_chat(self) -> bool:
        """Whether the prompts are messages."""
        return self.messages is not None or self.format == "chat"

    def columns(self) -> list[str]:
        """The columns that every row has to have."""
        asked = [self.messages] if self.messages is not None else columns_of(self.prompt_column)
        named = [name for own in ("tools", "id") if (name := getattr(self, own)) not in (None, own)]
        return [*asked, *named]

    def missing(self, row: Row) -> str | None:
        """Which columns a row lacks, None if it has those that every row has to have."""
        lacking = [name for name in self.columns() if name not in row]
        return f"no column {', '.join(lacking)}; columns: {', '.join(map(str, row)) or 'none'}" if lacking else None

    def first_rows(self) -> Iterator[tuple[str, str, Row]]:
        """The first rows, each with its place and id."""
        return ((place, prompt_id, row) for _, place, prompt_id, row in islice(identified([self]), FIRST))

    def understand(self, row: Row, prompt_id: str) -> None:
        """Malformed if a row cannot be used, as far as is known without a model."""
        self.prompt(row, prompt_id)

    def advice(self, row: Row) -> str:
        """What to do where no row can be used; `row` is one of them."""
        return ADVICE

    def first_fault(self) -> str | None:
        """What is wrong with the first rows, if one cannot be read or none of them can be used."""
        drops, used = [], 0
        row: Row = {}
        try:
            for place, prompt_id, row in self.first_rows():
                try:
                    self.understand(row, prompt_id)
                    used += 1
                except Malformed as fault:
                    drops.append(Drop(prompt_id, None, "", f"{place}: {fault}"))
        except UserError as fault:
            return str(fault)
        if used or not drops:
            return None
        return f"none of the first {len(drops)} rows can be used: {reasons(drops)}; {self.advice(row)}"

    def prompt(self, row: Row, prompt_id: str) -> Prompt:
        """The prompt of a row. Malformed says why it has none."""
        if self.messages is not None:
            return self._chat(prompt_id, self._turns(row), row)
        text = self._framed(row)
        if self.format == "chat":
            return self._chat(prompt_id, [{"role": "user", "content": text}])
        return Prompt(prompt_id, text=text)

    def _chat(self, prompt_id: str, turns: list[Message], row: Row | None = None) -> Prompt:
        """A chat as the policy is asked; `row` has the tools."""
        called = tools(row.get(self.tools), self.tools) if row is not None and self.tools else None
        variables = self.chat_template_kwargs or None
        return Prompt(prompt_id, self._with_system(turns), tools=called, chat_template_kwargs=variables)

    def _turns(self, row: Row) -> list[Message]:
        assert self.messages is not None
        turns = messages(row.get(self.messages), self.messages)
        if self.until == "last-user":
            turns = until_user(turns, self.messages)
        elif turns[-1]["role"] == "assistant":
            raise Malformed(f"{self.messages} ends with the assistant's own words; until: last-user leaves them out")
        require_open(turns, self.messages)
        return turns

    def _framed(self, row: Row) -> str:
        if self.prompt_column is None:
            return ""
        taken = filled(row, self.prompt_column)
        if self.extract is not None:
            match = re.search(self.extract, taken)
            taken = (match and match[1]) or ""
        if not taken.strip():
            raise Malformed("empty" if self.extract is None else "empty: extract finds nothing")
        return self.prefix + taken + self.suffix

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self.system is None or messages[0]["role"] in ("system", "developer"):
            return messages
        return [{"role": "system", "content": self.system}, *messages]


def is_column(spec: str | None) -> bool:
    """Whether an option names one column, and is not a template over several."""
    return spec is not None and not set(spec) & {"{", "}"}


def columns_of(spec: str | None) -> list[str]:
    """The columns that an option names: itself, or those in the braces of a template."""
    if spec is None or is_column(spec):
        return [] if spec is None else [spec]
    return [name for _, name in _pieces(spec) if name]


def template_faults(option: str, spec: str) -> Iterator[tuple[str, str]]:
    """Why a template over columns cannot be read."""
    if PIECE.sub("", spec):
        yield option, f"{spec!r} has a brace alone; a column is {{name}}, and a brace of the text is {{{{ or }}}}"
    elif not is_column(spec) and not columns_of(spec):
        yield option, f"{spec!r} names no column; a column is {{name}}"


def filled(row: Row, spec: str) -> str:
    """The text in a column, or of a template over columns. Malformed without text.

    The first column of a template has to have words. Any other that is empty or null is left out together with the
    text between it and the column before it.
    """
    if is_column(spec):
        return words(row, spec)
    text, first = "", True
    for before, name in _pieces(spec):
        part = "" if name is None or (row.get(name) is None and name in row and not first) else words(row, name)
        if name is None or part.strip():
            text += before + part
        elif first:
            raise Malformed(f"{name} is empty")
        first = False
    return text


@cache
def _pieces(spec: str) -> list[tuple[str, str | None]]:
    """The columns of a template, each behind the text before it; None behind the text after the last one."""
    pieces: list[tuple[str, str | None]] = []
    text = ""
    for piece in PIECE.findall(spec):
        if piece in ("{{", "}}"):
            text += piece[0]
        elif IN_BRACES.fullmatch(piece):
            pieces.append((text, piece[1:-1]))
            text = ""
        else:
            text += piece
    return [*pieces, (text, None)]


@dataclass(frozen=True, kw_only=True)
class Prompts(Reading):
    """The options of every kind.

    `meta` names the columns that a rule reads from `prompt.meta`; without it they are all the others that can be
    written as JSON, and what a column `meta` holds. `per_iteration` is PER_ITERATION where it is left out, or as many
    as there are. `max_prompt_length` bounds a prompt as the policy reads it,
    template included. `weight` is that of a part of a mixture.
    """

    prompt_column: str = "prompt"
    meta: list[str] | None = None
    per_iteration: int | None = only("draw", None)
    max_prompt_length: int = 256
    weight: float = only("draw", 1.0)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Values out of range."""
        yield from super().faults()
        yield from faults_of_range(self, per_iteration=(1, math.inf), max_prompt_length=(1, math.inf))
        if not 0 < self.weight < math.inf:
            yield "weight", f"{self.weight!r} is out of range; it must be greater than 0"

    def columns(self) -> list[str]:
        return [*super().columns(), *(self.meta or [])]

    def prompt(self, row: Row, prompt_id: str) -> Prompt:
        read = super().prompt(row, prompt_id)
        return replace(read, meta=self._meta(row))

    def _meta(self, row: Row) -> dict[str, Any]:
        if self.meta is None:
            inner = row.get("meta")
            flat = {**row, **inner} if isinstance(inner, dict) else row
            read = (
                [self.messages, self.tools]
                if self.messages
                else [self.prompt_column if is_column(self.prompt_column) else None]
            )
            own = {*read, self.id, *(["meta"] if flat is not row else [])}
            return {name: value for name, value in flat.items() if name not in own and _is_json({name: value})}
        kept = {name: row[name] for name in self.meta if name in row}
        for name, value in kept.items():
            require_json({name: value}, f"column {name}")
        return kept


@dataclass(frozen=True, kw_only=True)
class File(Prompts, FileRows):
    """kind: file."""


@dataclass(frozen=True, kw_only=True)
class Hub(Prompts, HubRows):
    """kind: hub."""


@dataclass(frozen=True, kw_only=True)
class Inline(Prompts, InlineRows):
    """kind: list."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """kind: mixture. Parts are drawn from in the proportion of their weights; each says how its own rows are read."""

    sources: list[Any] = section("prompts")
    per_iteration: int | None = only("draw", None)

    def faults(self) -> Iterator[tuple[str, str]]:
        """What is not a list of parts."""
        yield from faults_of_range(self, per_iteration=(1, math.inf))
        if not isinstance(self.sources, list) or not self.sources:
            yield "sources", "expected a list of prompts sections, each with a weight:"
            return
        for index, part in enumerate(self.sources):
            if not isinstance(part, Prompts):
                yield f"sources[{index}].kind", "a part is a source of its own; list the parts of an inner mixture here"
            elif part.per_iteration != Prompts.per_iteration:
                yield f"sources[{index}].per_iteration", "is the mixture's to say; move it beside sources:"

    @property
    def max_prompt_length(self) -> int:
        """The longest prompt that any part allows."""
        return max(part.max_prompt_length for part in self.sources)

    def parts(self) -> list[tuple[float, Any]]:
        """The parts, each with its weight."""
        return [(part.weight, part) for part in self.sources]


def read(source: Prompts | Mixture, tokenizer: Tokenizer) -> Iterator[Prompt | Drop]:
    """Every row of a source, as a prompt or as a drop, the rows of each part in turn.

    UserError if a part's first row lacks a column that it needs, or if two rows have the same id.
    """
    parts = source.parts()
    for _, part in parts:
        require_variables(tokenizer, part.chat_template_kwargs or {})
    for number, _, prompt_id, row in identified([part for _, part in parts]):
        part = parts[number][1]
        try:
            prompt = part.prompt(row, prompt_id)
            require_short(tokenizer, prompt, part.max_prompt_length)
            ids = encode_prompt(tokenizer, prompt)
            require_known(tokenizer, prompt, ids)
            require_written(tokenizer, prompt)
        except (Malformed, RowError) as fault:
            yield Drop(prompt_id, None, "collect", str(fault))
            continue
        if len(ids) > part.max_prompt_length:
            yield Drop(
                prompt_id,
                None,
                "collect",
                f"{len(ids)} tokens, more than prompts.max_prompt_length: {part.max_prompt_length}",
            )
        else:
            yield replace(prompt, source=number if len(parts) > 1 else None)


def dropped(drops: Sequence[Drop], of: int | None = None) -> str:
    """How many rows were dropped, of how many if that is known, and why."""
    many = f"{len(drops)} row{'s' * (len(drops) != 1)}" if of is None else f"{len(drops)} of {of} rows"
    return f"{many} {'was' if len(drops) == 1 else 'were'} dropped: {reasons(drops)}"


def reasons(drops: Iterable[Drop], unit: str = "row") -> str:
    """Why rows were dropped: each reason with its count and its first row, the commonest first; "" if none was.

    Reasons that differ only in their numbers are counted as one.
    """
    counts: Counter[str] = Counter()
    firsts: dict[str, tuple[str, str]] = {}
    seen: dict[str, set[str]] = {}
    for drop in drops:
        place = PLACE.match(drop.reason)
        reason = drop.reason[place.end() :] if place else drop.reason
        kind = re.sub(r"\d+", "0", reason)
        counts[kind] += 1
        seen.setdefault(kind, set()).add(reason)
        firsts.setdefault(kind, (reason, place[1] if place else drop.prompt_id))
    listed = []
    for kind, count in counts.most_common(MOST_REASONS):
        reason, first = firsts[kind]
        told = [f"{count} {unit}s"] if len(counts) > 1 and count > 1 else []
        told += [f"the first: {first}" if count > 1 else first]
        told += ["the numbers differ"] if len(seen[kind]) > 1 else []
        listed.append(f"{reason} ({', '.join(told)})")
    rest = counts.total() - sum(count for _, count in counts.most_common(MOST_REASONS))
    return "; ".join([*listed, *([f"other reasons ({rest} {unit}{'s' * (rest != 1)})"] if rest else [])])


def identified(parts: Sequence[Reading]) -> Iterator[tuple[int, str, str, Row]]:
    """The rows of each part in turn: the number of the part, the row's place, its id, the row.

    A row without an id gets its number in all the rows, from 000000.
    """
    seen: dict[str, int] = {}
    for count, (number, place, row) in enumerate(_rows(parts)):
        column = parts[number].id
        row_id = None if column is None else _id(row.get(column), place)
        row_id = f"{count:06d}" if row_id is None else row_id
        if row_id in seen:
            first = next(islice(_rows(parts), seen[row_id], None))[1]
            raise UserError(
                f"{place}: its id {row_id!r} is also that of {first}; make them differ, name another column with id:, "
                "or number the rows with id: null"
            )
        seen[row_id] = count
        yield number, place, row_id, row


def _rows(parts: Sequence[Reading]) -> Iterator[tuple[int, str, Row]]:
    for number, part in enumerate(parts):
        for count, (place, row) in enumerate(protocols.rows(part)):
            if count == 0 and (fault := part.missing(row)) is not None:
                raise UserError(f"{place}: {fault}")
            if (lost := _left_out(part, row)) is not None:
                column = part.prompt_column
                raise UserError(
                    f"{place}: prompt_column: {column} leaves out the column {lost}, which belongs to it; write "
                    f'prompt_column: "{{{column}}}\\n\\n{{{lost}}}", or, to leave it out, prompt_column: "{{{column}}}"'
                )
            yield number, place, row


def _left_out(part: Reading, row: Row) -> str | None:
    """The column that says what the instruction in `prompt_column` is about, where there is one with words in it."""
    if part.messages is None and part.prompt_column == INSTRUCTION:
        return next((name for name in ABOUT if isinstance(row.get(name), str) and row[name].strip()), None)
    return None


def _id(value: Any, place: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not _is_json(value):
        raise UserError(
            f"{place}: the id {value!r} is neither text nor a whole number; name another column with id:, "
            "or number the rows with id: null"
        )
    return str(value)


def _is_json(value: Any) -> bool:
    """Whether a record can hold a value."""
    try:
        require_json(value, "")
    except Malformed:
        return False
    return True


def held_out_key(prompt: Prompt) -> str:
    """A hash of what a prompt says, alike for prompts that differ only in case, white space or Unicode form."""
    text = "\n".join([prompt.content, *(records.dump(tool).decode() for tool in prompt.tools or [])])
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return blake2b(" ".join(folded.split()).encode(), digest_size=16).hexdigest()


def draw(parts: Sequence[tuple[float, int]], per_iteration: int, seed: int, iteration: int) -> list[tuple[int, int]]:
    """The prompts of an iteration, 1 being the first: pairs of a part and an index in it, no pair twice.

    `parts` has the weight of each part and how many prompts it holds. UserError if one holds too few for an iteration.
    """
    weights = [Fraction(weight) for weight, _ in parts]
    shares = [weight / sum(weights) for weight in weights]
    history = allotted(shares, per_iteration, iteration)
    drawn: list[tuple[int, int]] = []
    for part, (_, count) in enumerate(parts):
        totals = [row[part] for row in history]
        _check_enough(part, shares[part], count, totals[-1] - totals[-2], per_iteration)
        drawn += [(part, index) for index in _drawn(count, totals, seed, part).tolist()]
    order = np.random.default_rng(derive(seed, "order", iteration)).permutation(len(drawn))
    return [drawn[place] for place in order]


def drawn_at_once(parts: Sequence[tuple[float, int]], asked: int | None) -> int:
    """How many prompts an iteration draws: those asked for, or else PER_ITERATION, or as many as the parts hold."""
    if asked is not None:
        return asked
    weights = [Fraction(weight) for weight, _ in parts]
    most = (math.floor(count * sum(weights) / weight) for weight, (_, count) in zip(weights, parts, strict=True))
    return max(1, min(PER_ITERATION, *most))


def count_rows(part: Any, most: int) -> int | None:
    """How many rows a part has, counted up to `most`; None if they have to be fetched first, or cannot be read."""
    if not isinstance(part, FileRows | InlineRows):
        return None
    try:
        return sum(1 for _ in islice(part.rows(), most))
    except UserError:  # whoever reads the rows to use them says which, and why
        return None


def count_different(source: Any, most: int) -> int | None:
    """How many different prompts a source has, counted up to `most`; None where `count_rows` is.

    Prompts that are too long for the policy are among them.
    """
    parts = [part for _, part in source.parts()]
    if not all(isinstance(part, FileRows | InlineRows) for part in parts):
        return None
    seen = set[str]()
    try:
        for number, _, prompt_id, row in identified(parts):
            with suppress(Malformed):
                seen.add(held_out_key(parts[number].prompt(row, prompt_id)))
            if len(seen) == most:
                break
    except UserError:  # said elsewhere
        return None
    return len(seen)


def first_prompts(source: Any, most: int) -> list[Prompt]:
    """The first usable prompts of each part that is on this machine."""
    found: list[Prompt] = []
    for _, part in source.parts():
        if count_rows(part, FIRST):
            kept = 0
            for _, prompt_id, row in part.first_rows():
                with suppress(Malformed):
                    found.append(part.prompt(row, prompt_id))
                    kept += 1
                if kept == most:
                    break
    return found


def allotted(shares: Sequence[Fraction], per_iteration: int, iterations: int) -> list[list[int]]:
    """How often each part has been drawn from after 0, 1, ... iterations, [iterations + 1, parts].

    After i iterations a part is due share * per_iteration * i prompts, and has had that many rounded down or up.
    Rounded up are those that will be due one more whole prompt the soonest: if every deadline can be kept at all,
    then so (largest remainders would at times have to take a prompt back).
    """
    history = [[0] * len(shares)]
    for iteration in range(1, iterations + 1):
        due = [share * per_iteration * iteration for share in shares]
        totals = [max(before, math.floor(now)) for before, now in zip(history[-1], due, strict=True)]
        behind = [part for part, now in enumerate(due) if totals[part] < now]
        behind.sort(key=lambda part: (totals[part] + 1) / shares[part])
        for part in behind[: per_iteration * iteration - sum(totals)]:
            totals[part] += 1
        history.append(totals)
    return history


def _check_enough(part: int, share: Fraction, count: int, taken: int, per_iteration: int) -> None:
    needed = max(taken, math.ceil(share * per_iteration))
    if needed > count:
        where = "" if share == 1 else f" from sources[{part}] of the mixture"
        most = math.floor(count / share)
        raise UserError(
            f"prompts.per_iteration: {per_iteration} takes {needed} different prompts{where} in one iteration, "
            f"but there are only {count}; {f'lower it to {most} or less, or ' if most else ''}give more prompts"
        )


def _drawn(count: int, totals: list[int], seed: int, part: int) -> np.ndarray:
    """What the last iteration draws from a part of `count` prompts, of which `totals` were drawn after each iteration.

    There is pass after pass over the part, each in an order of its own. Where one begins inside an iteration, the
    prompts which that iteration already has come last in it.
    """
    begin, end = totals[-2:]
    passes = math.ceil(end / count)
    before = last = np.empty(0, dtype=np.int64)
    for number in range(passes):
        before, order = last, np.random.default_rng(derive(seed, "draw", part, number)).permutation(count)
        begun = totals[bisect_right(totals, number * count) - 1]  # the iteration in which the pass begins
        again = np.isin(order, before[len(before) - (number * count - begun) :])
        last = np.concatenate([order[~again], order[again]])
    two = np.concatenate([before, last])
    first = passes * count - len(two)
    return two[begin - first : end - first]
