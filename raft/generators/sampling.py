"""The options that every generator shares, by their usual names, and the text of what came out."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from raft.core.errors import UserError
from raft.core.options import faults_of_range
from raft.core.records import Prompt, Response
from raft.models import reasoning, special_tokens
from raft.models.chat_templates import Tokenizer, continuation, end_tokens

COLDEST = 0.001  # the lowest temperature above 0: logits divided by it stay well inside float32
PART = "\ufffd"  # how a decoder writes bytes that are not a whole character
LONGEST = 4  # bytes of a character in UTF-8


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn: `k` for each prompt, each from the softmax of the policy's logits.

    `stop` ends a response at any of these texts, which is left out of the text (its tokens stay); a special token may
    be one of them.
    `reasoning: split` tells the thought of a model from its answer, which alone is scored; `keep` leaves both in the
    text. `reasoning_marks` are what begins and what ends a thought, for a model whose own are not in `reasoning`.
    `truncate_at` and `strip` clean a response afterwards: it ends before the first of the markers, and loses
    white space at both ends; the cleaned response is what is scored and trained.
    """

    k: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 192
    stop: list[str] = field(default_factory=list)
    truncate_at: list[str] = field(default_factory=list)
    strip: bool = False
    reasoning: Literal["split", "keep"] = "split"
    reasoning_marks: list[str] | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(
            self, k=(1, 4096), temperature=(0, 100), min_p=(0, 1), max_tokens=(1, float("inf")), top_k=(1, float("inf"))
        )
        if not 0 < self.top_p <= 1:
            yield "top_p", f"{self.top_p!r} is out of range; it must be above 0 and at most 1"
        if not 0 < self.repetition_penalty < float("inf"):
            yield "repetition_penalty", f"{self.repetition_penalty!r} is out of range; it must be above 0"
        if 0 < self.temperature < COLDEST:
            yield "temperature", f"{self.temperature!r} divides logits by nearly nothing; give at least {COLDEST}, or 0"
        if self.temperature == 0 and self.k > 1:
            yield "temperature", "0 is greedy: all k responses would be the same; set k: 1 or a temperature above 0"
        yield from reasoning.faults(self.reasoning, self.reasoning_marks)
        for name in ("stop", "truncate_at"):
            if "" in getattr(self, name):
                yield name, "holds an empty text, which would match everywhere"

    def check_room(self, prompt: Prompt, ids: Sequence[int], context: int | None) -> None:
        """UserError where the prompt's tokens and `max_tokens` together exceed the context; None means no limit."""
        if context is not None and len(ids) + self.max_tokens > context:
            raise UserError(
                f"prompt {prompt.id} has {len(ids)} tokens and generator.max_tokens is {self.max_tokens}, together "
                f"more than the {context} that the policy can read; lower generator.max_tokens or "
                "prompts.max_prompt_length"
            )

    def ends(self, tokenizer: Tokenizer) -> "Ends":
        """What ends a response. A special token among `stop` is the token itself, for no text of a response has it."""
        tokens = self._special("stop", tokenizer)
        texts = [text for text in self.stop if text not in tokens]
        return Ends(texts, end_tokens(tokenizer) | frozenset(tokens.values()))

    def _special(self, name: str, tokenizer: Tokenizer) -> dict[str, int]:
        """The special tokens among the texts of an option. UserError for a special token inside a longer text."""
        special, texts = special_tokens.of(tokenizer), getattr(self, name)
        for text in texts:
            if text not in special.ids and (match := special.pattern.search(text)):
                raise UserError(
                    f"generator.{name}: {text!r} would never be found, for the special token {match[0]} is left "
                    f"out of the text of a response; give {match[0]!r} alone, which is matched as a token"
                )
        return {text: special.ids[text] for text in texts if text in special.ids}

    def opening(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> int:
        """How many of the last tokens of a prompt open a thought."""
        return 0 if self.reasoning == "keep" else reasoning.opening(tokenizer, prompt, self.reasoning_marks)

    def finish(self, response: Response, tokenizer: Tokenizer, opened: int = 0) -> Response:
        """The response as it is scored and trained: without its thought, and cleaned."""

        def clean(part: Response) -> Response:
            return self.clean(part, tokenizer)

        if self.reasoning == "keep":
            return clean(response)
        return reasoning.split(response, tokenizer, spell, clean, self.reasoning_marks, opened)

    def clean(self, response: Response, tokenizer: Tokenizer) -> Response:
        """The response as it is scored and trained: before the first marker, stripped if asked for.

        The tokens that spell what is left stay as they were generated, white space at the beginning among
        them. Where the end is inside a token no such tokens exist: what is left is encoded again, and its
        log-probabilities are unknown. A special token among the markers is matched as a token.
        """
        response = self._before_tokens(response, tokenizer)
        end = first_of(self.truncate_at, response.text)
        reason = response.finish_reason if end is None else "marker"
        left = response.text[:end].rstrip() if self.strip else response.text[:end]
        text = left.strip() if self.strip else left
        if text == response.text:
            return response
        return _shorten(response, left, text, reason, tokenizer)

    def _before_tokens(self, response: Response, tokenizer: Tokenizer) -> Response:
        """The response before the first special token of `truncate_at`."""
        cut = set(self._special("truncate_at", tokenizer).values())
        at = next((at for at, token in enumerate(response.token_ids) if token in cut), None)
        if at is None:
            return response
        ids, logprobs = response.token_ids[:at], response.logprobs and response.logprobs[:at]
        return Response(spell(tokenizer, ids), ids, logprobs, "marker")


class Ends(NamedTuple):
    """What ends a response: any of these texts, which are left out of it, or any of these tokens."""

    texts: list[str]
    tokens: frozenset[int]

    def spell(self, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
        """The text of generated tokens without what ended them."""
        text = spell(tokenizer, ids[:-1] if ids and ids[-1] in self.tokens else ids)
        return text[: first_of(self.texts, text)]


def first_of(markers: Sequence[str], text: str) -> int | None:
    """Where the first of the markers begins in the text; None if it holds none of them."""
    return min((at for at in map(text.find, markers) if at >= 0), default=None)


def spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of generated tokens as it goes on from a prompt: whole characters, special tokens left out.

    Some tokenizers drop the space before a text's first word, which a continuation must keep; so the tokens are
    decoded behind a plain word, whose text is taken away. What a character is begun with at the end, and does not
    finish, spells nothing, as in vLLM.
    """
    before, word = _anchor(tokenizer)
    for end in range(len(ids), max(-1, len(ids) - LONGEST), -1):
        whole = _decoded(tokenizer, [*before, *ids[:end]])
        text = whole[len(word) :] if whole.startswith(word) else _decoded(tokenizer, ids[:end])
        if not text.endswith(PART):
            break
    return text.rstrip(PART)


@lru_cache(maxsize=8)
def _anchor(tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The tokens of a plain word and their text: a letter, else the first token that is a word; else nothing.

    A token of a single byte would be read together with the bytes behind it.
    """
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    for ids in [letter, *([token] for token in range(len(tokenizer)))]:
        text, pieces = _decoded(tokenizer, ids), map(str, tokenizer.convert_ids_to_tokens(ids))
        if text.strip().isalnum() and not any(piece.startswith("<0x") for piece in pieces):
            return ids, text
    return [], ""


def _decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def spelled_by(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> int | None:
    """How many of the first tokens spell exactly this text; None if it ends inside a token."""
    count = bisect_left(range(len(ids)), len(text), key=lambda count: len(spell(tokenizer, ids[:count])))
    return count if spell(tokenizer, ids[:count]) == text else None


def _shorten(response: Response, left: str, text: str, reason: str, tokenizer: Tokenizer) -> Response:
    """The response with the tokens that spell `left`; what ended it by itself stays with a text that was not cut."""
    ids, logprobs = response.token_ids, response.logprobs
    kept, whole = (spelled_by(tokenizer, ids, part) for part in (left, response.text))
    ending = range(whole, len(ids)) if reason == "stop" and whole is not None else range(0)
    if kept is None:
        return Response(text, [*continuation(tokenizer, left), *(ids[at] for at in ending)], None, reason)
    places = [*range(kept), *ending]
    return Response(text, [ids[at] for at in places], logprobs and [logprobs[at] for at in places], reason)
