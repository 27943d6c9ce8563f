"""Thoughts in responses: where the answer begins behind what a model thinks aloud (`<think> ... </think> 4`).

A thought is told by the marks of the model around it. In a response that was generated it is cut off by token, so that
the answer keeps the tokens and log-probabilities with which it was generated; in a response of which only the text is
known, by text. A response that ends inside its thought has no answer.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from raft.core.records import Response

MARKERS = (  # what opens a thought, and what separates it from the answer
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1 and many others
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<mm:think>", "</mm:think>"),  # MiniMax
)
OPENING = 16  # tokens at the end of a prompt in which its template may open a thought

Marks = Sequence[str]  # two: what opens a thought, and what ends it
Clean = Callable[[Response], Response]
Spell = Callable[[Any, Sequence[int]], str]  # (tokenizer, tokens of a response): its text


def answer_at(written: str, marks: Marks | None = None, opened: bool = False) -> int | None:
    """Where the answer begins in a text: 0 without a thought, None for a thought without an end.

    `marks` are those of the model, None for all of `MARKERS`; `opened`: the prompt opened the thought already. As in
    vLLM's parsers, the first end counts, and one without a beginning ends a thought that the prompt opened.
    """
    known = [marks] if marks else MARKERS
    ends = [(at, at + len(end)) for _, end in known if (at := written.find(end)) >= 0]
    if ends:
        return min(ends)[1]
    begun = opened or any(written.lstrip().startswith(start) for start, _ in known)
    return None if begun else 0


def without_thought(response: Response, marks: Marks | None = None) -> Response:
    """A response of which only the text is known, its text without the thought."""
    at = answer_at(response.text, marks)
    if at == 0:
        return response
    thought, answer = response.text[:at], "" if at is None else response.text[at:].lstrip()
    return replace(response, text=answer, reasoning=thought, reasoning_tokens=None if response.token_ids else 0)


def opening(tokenizer: Any, prompt: Sequence[int], marks: Marks | None = None) -> int:
    """How many of the last tokens of a prompt open a thought, as some templates do; 0 if none does."""
    starts = [marks[0]] if marks else [start for start, _ in MARKERS]
    for count in range(1, min(OPENING, len(prompt)) + 1):
        if _written(tokenizer, prompt[-count:]).strip() in starts:
            return count
    return 0


def split(
    response: Response, tokenizer: Any, spell: Spell, clean: Clean, marks: Marks | None = None, opened: int = 0
) -> Response:
    """A generated response whose text is its answer, cleaned by `clean`; `token_ids` are those of both.

    `reasoning_tokens` of them belong to the thought: its marks and the white space behind it are among them.
    """
    ids, logprobs = response.token_ids, response.logprobs
    written = _written(tokenizer, ids)  # with special tokens, which some marks are
    at = answer_at(written, marks, bool(opened))
    if at == 0:
        return clean(response)
    if at is None:
        return replace(response, text="", reasoning=response.text, reasoning_tokens=len(ids), opened=opened)
    count = bisect_left(range(len(ids)), at, key=lambda n: len(_written(tokenizer, ids[:n])))
    shared = _written(tokenizer, ids[:count])[at:].lstrip()  # of the answer, in the token in which the mark ends
    while not shared and count < len(ids) and _is_blank(tokenizer, ids[count]):
        count += 1
    head = len(spell(tokenizer, ids[:count]))
    rest = Response(response.text[head:], ids[count:], logprobs and logprobs[count:], response.finish_reason)
    rest = clean(rest)
    return replace(
        rest,
        text=(shared + rest.text).lstrip(),
        token_ids=[*ids[:count], *rest.token_ids],
        logprobs=None if rest.logprobs is None or logprobs is None else [*logprobs[:count], *rest.logprobs],
        reasoning=response.text[: head - len(shared)],
        reasoning_tokens=None if shared else count,
        opened=opened,
    )


def _is_blank(tokenizer: Any, token: int) -> bool:
    spelled = _written(tokenizer, [token])
    return bool(spelled) and not spelled.strip()


def _written(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def faults(reasoning: str, marks: Any) -> Iterator[tuple[str, str]]:
    """The faults of the options `reasoning` and `reasoning_marks`."""
    if marks is None:
        return
    if reasoning == "keep":
        yield "reasoning_marks", "has no effect with reasoning: keep; leave it out"
    elif len(marks) != 2 or not all(marks):
        yield "reasoning_marks", f"{marks!r} is not what begins and what ends a thought, such as [<think>, </think>]"
