"""The options that every generator shares, by their usual names, and the text of what came out."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from raft.chat import Tokenizer, continuation
from raft.errors import UserError
from raft.plugins import faults_of_range
from raft.records import Prompt, Response

COLDEST = 0.001  # the lowest temperature above 0: logits divided by it stay well inside float32


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn: `k` for each prompt, each from the softmax of the policy's logits.

    `stop` ends a response at any of these texts, which is left out of the text (its tokens stay).
    `cut_at` and `strip` clean a response afterwards: it ends before the first of the markers, and loses
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
    cut_at: list[str] = field(default_factory=list)
    strip: bool = False

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
        for name in ("stop", "cut_at"):
            if "" in getattr(self, name):
                yield name, "holds an empty text, which would match everywhere"

    def check_room(self, prompt: Prompt, ids: Sequence[int], context: int | None) -> None:
        """UserError where the prompt's tokens and `max_tokens` together exceed the context; None is no limit."""
        if context is not None and len(ids) + self.max_tokens > context:
            raise UserError(
                f"prompt {prompt.id} has {len(ids)} tokens and generator.max_tokens is {self.max_tokens}, together "
                f"more than the {context} that the policy can read; lower generator.max_tokens or prompts.max_tokens"
            )

    def clean(self, response: Response, tokenizer: Tokenizer) -> Response:
        """The response as it is scored and trained: before the first marker, stripped if asked for.

        The tokens that spell what is left stay as they were generated, white space at the beginning among
        them. Where the end is inside a token no such tokens exist: what is left is encoded again, and its
        log-probabilities are unknown.
        """
        end = first_of(self.cut_at, response.text)
        reason = response.finish_reason if end is None else "marker"
        left = response.text[:end].rstrip() if self.strip else response.text[:end]
        text = left.strip() if self.strip else left
        if text == response.text:
            return response
        return _shorten(response, left, text, reason, tokenizer)


def first_of(markers: Sequence[str], text: str) -> int | None:
    """Where the first of the markers begins in the text; None if it holds none of them."""
    return min((at for at in map(text.find, markers) if at >= 0), default=None)


def spell(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of generated tokens as it goes on from a prompt, special tokens left out.

    Some tokenizers drop the space before a text's first word, which a continuation must keep; so the
    first token is decoded twice in a row and the text of the first of the two taken away.
    """
    anchor = len(tokenizer.decode(ids[:1], skip_special_tokens=True))
    return tokenizer.decode([*ids[:1], *ids], skip_special_tokens=True)[anchor:]


def spelled_by(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> int | None:
    """How many of the first tokens spell exactly this text; None if it ends inside a token."""
    low = bisect_left(range(len(ids)), len(text), key=lambda count: len(spell(tokenizer, ids[:count])))
    # A character of up to four bytes can span as many tokens, and reads as one wrong character until the last.
    near = range(low, min(low + 4, len(ids) + 1))
    return next((count for count in near if spell(tokenizer, ids[:count]) == text), None)


def _shorten(response: Response, left: str, text: str, reason: str, tokenizer: Tokenizer) -> Response:
    """The response with the tokens that spell `left`; what ended it by itself stays with a text that was not cut."""
    ids, logprobs = response.token_ids, response.logprobs
    kept, whole = (spelled_by(tokenizer, ids, part) for part in (left, response.text))
    ending = range(whole, len(ids)) if reason == "stop" and whole is not None else range(0)
    if kept is None:
        return Response(text, [*continuation(tokenizer, left), *(ids[at] for at in ending)], None, reason)
    places = [*range(kept), *ending]
    return Response(text, [ids[at] for at in places], logprobs and [logprobs[at] for at in places], reason)
