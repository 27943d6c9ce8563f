"""The rows of every artifact, and how they are read and written as JSON Lines.

One record type for each file of a run; docs/design.md shows the files. Records are immutable, and
reading is lazy: no function here holds more than one row of a file.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from raft.core import compressed
from raft.core.atomic import create
from raft.core.errors import UserError
from raft.core.seeds import derive

RESPONSE = ("text", "token_ids", "logprobs", "finish_reason")  # of every response
THOUGHT = ("reasoning", "reasoning_tokens", "opened")  # of one with a thought before its answer
ASKED = ("messages", "text", "tools", "chat_template_kwargs")  # what of a prompt goes into what answers it


WITHHELD = "withheld"


@dataclass(frozen=True, slots=True)
class Record:
    """A row of an artifact."""

    def row(self) -> dict[str, Any]:
        """The row as JSON-able data, with the record's own lists and mappings; what is None is left out."""
        values = ((name, getattr(self, name)) for name in _names(self))
        return {
            name: value.row() if isinstance(value, Record) else value for name, value in values if value is not None
        }

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """The record that `row()` wrote."""
        return cls(**row)


def _names(record: Record) -> list[str]:
    return [item.name for item in fields(record)]


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """What the policy answers: chat messages, or a plain text to be continued; exactly one of the two.

    `meta` holds what a rule needs to judge a response (a reference answer, say); `source` is the
    index of the part of a mixture that the prompt comes from. `tools` are the functions that a chat may call, and
    `chat_template_kwargs` the variables that the policy's chat template gets, both as transformers takes them.
    `drawn` is how many responses earlier rounds of adaptive sampling drew: the numbers of the next go on from there.
    """

    id: str
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    source: int | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    drawn: int | None = None

    def seed(self, seed: int, k: int) -> int:
        """The seed of response k, counted from the first that has not been drawn yet."""
        return derive(seed, self.id, (self.drawn or 0) + k)

    @property
    def asked(self) -> dict[str, Any]:
        """What of it examples and pairs hold."""
        return {name: getattr(self, name) for name in ASKED}

    @property
    def content(self) -> str:
        """The content of the prompt without any template: its text, or that of its messages, by line."""
        if self.text is not None:
            return self.text
        return "\n".join(map(said, self.messages or []))


def said(message: dict[str, Any]) -> str:
    """What a message says: its content, which is None beside some tool calls, and each call as a line of JSON."""
    calls = (json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or [])
    return "\n".join(filter(None, [message["content"], *calls]))


@dataclass(frozen=True, slots=True)
class Response(Record):
    """One answer of a policy.

    `token_ids` are the tokens that were generated, the end token included when the response ended by
    itself. `logprobs` has one natural log-probability for each of them, of the policy that generated,
    before temperature and top-p; None where the generator cannot say. `finish_reason` is "stop" (ended
    by itself or at a stop string), "length" (cut by the limit) or "marker" (cleaned at a turn marker).

    Where a thought stood before the answer, `text` is the answer alone and `reasoning` the thought. Of `token_ids` the
    first `reasoning_tokens` are the thought (None: it ends inside a token), which the last `opened` tokens of the
    prompt began. A thought without an answer has the text "".

    Where a server gave no text that can be used, `finish_reason` is "withheld: " and why, and there are no tokens.

    `candidate` names where a response comes from that no policy of the run made.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float] | None
    finish_reason: str
    reasoning: str | None = None
    reasoning_tokens: int | None = 0
    opened: int = 0
    candidate: str | None = None

    def row(self) -> dict[str, Any]:
        """As JSON; the fields of a thought only if there is a thought, and `candidate` only for one."""
        names = RESPONSE if self.reasoning is None else RESPONSE + THOUGHT
        return {name: getattr(self, name) for name in names} | (
            {} if self.candidate is None else {"candidate": self.candidate}
        )

    @property
    def unanswered(self) -> str | None:
        """Why a response that was withheld, or is nothing but a thought, has no reward; None for all others."""
        if self.withheld:
            return self.finish_reason
        if self.reasoning is None or self.text:
            return None
        if self.finish_reason == "length":
            return "the thought was cut by the token limit before there was an answer (generator.max_tokens)"
        return "a thought without an answer"

    @classmethod
    def missing(cls, why: str) -> "Response":
        """The place of a response that a server withheld."""
        return cls("", [], None, f"{WITHHELD}: {why}")

    @property
    def withheld(self) -> bool:
        """Whether there is a reason in place of a response."""
        return self.finish_reason.startswith(WITHHELD)


@dataclass(frozen=True, slots=True)
class Group(Record):
    """One prompt and its K responses."""

    prompt: Prompt
    responses: list[Response]

    def row(self) -> dict[str, Any]:
        return {"prompt_id": self.prompt.id, "responses": [response.row() for response in self.responses]}


@dataclass(frozen=True, slots=True)
class Score(Record):
    """How good a response is: `reward`, higher is better, or None with an `error`; never a made-up number.

    `rank` is the response's place in its group, 0 for the best, where the reward compares the responses of one
    prompt: it decides which is best, and `reward` says nothing about those of other prompts.
    """

    reward: float | None
    parts: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Example(Record):
    """A response to be trained on: the winner of a group, or a row of a supervised data set."""

    prompt_id: str
    response: Response
    index: int = 0
    reward: float | None = None
    weight: float = 1.0
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    age: int | None = None  # iterations since it was selected, where it is learned from again

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Example":
        return cls(**{**row, "response": Response(**row["response"])})

    @property
    def prompt(self) -> Prompt:
        """The prompt that the response answers."""
        return Prompt(self.prompt_id, **{name: getattr(self, name) for name in ASKED})


@dataclass(frozen=True, slots=True)
class Pair(Record):
    """Two responses to one prompt, the better one first; `subset` is the part of a benchmark that it belongs to.

    Where a selection made it, `index` and `rejected_index` are the places of the two in their group.
    """

    prompt_id: str
    chosen: Response
    rejected: Response
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    subset: str | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    index: int | None = None
    rejected_index: int | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Pair":
        return cls(**{**row, "chosen": Response(**row["chosen"]), "rejected": Response(**row["rejected"])})

    @property
    def prompt(self) -> Prompt:
        """The prompt that both responses answer."""
        return Prompt(self.prompt_id, **{name: getattr(self, name) for name in ASKED})


@dataclass(frozen=True, slots=True)
class Drop(Record):
    """A row that went no further, and why; `index` is the response's place in its group, None for the whole prompt."""

    prompt_id: str
    index: int | None
    stage: str
    reason: str

    def row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _names(self)}


@dataclass(frozen=True)
class Policy:
    """A model folder that transformers and vLLM load, and the probe that proves which weights an engine holds."""

    path: Path
    probe: Path


def dump(row: dict[str, Any]) -> bytes:
    """One line of a JSON Lines file, in UTF-8; NaN and infinity are refused."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def parse(line: bytes) -> dict[str, Any]:
    """The row that `dump` wrote."""
    return json.loads(line)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file, one at a time; a bad line is named by file and number."""
    return (row for _, row in placed(path))


def placed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSON Lines file, each with its place, such as "prompts.jsonl:7"; blank lines are not rows."""
    with compressed.opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as fault:
                raise UserError(f"{path}:{number}: not a line of JSON ({fault})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: expected an object such as {{...}}, found {type(row).__name__}")
            yield f"{path}:{number}", row


def write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows as JSON Lines into a new file; returns how many."""
    count = 0
    with create(path) as lines:
        for row in rows:
            lines.write(dump(row))
            count += 1
    return count


def groups(prompts: Path, responses: Path) -> Iterator[Group]:
    """The groups of an iteration: its prompts beside its responses, which stand in the same order."""
    for prompt, answered in in_step(prompts, responses):
        yield Group(Prompt(**prompt), answers(answered))


def in_step(prompts: Path, *others: Path) -> Iterator[tuple[dict[str, Any], ...]]:
    """The rows of files that belong to the same prompts, side by side. UserError if their prompts differ."""
    for rows in itertools.zip_longest(read(prompts), *map(read, others)):
        wanted = None if rows[0] is None else rows[0].get("id")
        for file, row in zip(others, rows[1:], strict=True):
            if rows[0] is None or row is None or row.get("prompt_id") != wanted:
                theirs = "nothing" if row is None else f"prompt {row.get('prompt_id')!r}"
                here = "nothing" if rows[0] is None else f"prompt {wanted!r}"
                raise UserError(f"{file} does not belong to {prompts}: it has {theirs} where that has {here}")
        yield rows


def answers(row: dict[str, Any]) -> list[Response]:
    """The responses of a row of responses."""
    return [Response(**response) for response in row["responses"]]
