"""A prompt and its response as a reward model reads them: the only file that knows their templates and BOS rules.

| template | writes | made for |
|---|---|---|
| chat | the reward model's own chat template | most models of today |
| plain | prompt and response unchanged | text prompts |
| hh | `###Human: ... ###Assistant: ...` | weqweasdas/hh_rlhf_rm_open_llama_3b |
| ultrarm | `Human: ...`, a blank line, `Assistant: ...` | openbmb/UltraRM-13b |
| pair | question and answer as two segments, `[CLS] q [SEP] a [SEP]` | OpenAssistant/reward-model-deberta-v3-large-v2 |
| a file | a Jinja template, `*.jinja`, of `messages`, `bos_token` and `eos_token` | all else |
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import takewhile
from typing import Literal

from raft.core.errors import RowError, UserError
from raft.core.options import faults_of_text, suggest, text_of
from raft.core.records import Prompt, said
from raft.models import special_tokens
from raft.models.chat_templates import Tokenizer, frame, left_out, written
from raft.models.chat_templates import encode as encode_texts
from raft.models.messages import TOOLS, Message

Bos = Literal["auto", "one", "none"]
Messages = list[Message]

TEXT_TEMPLATES = ("plain", "hh", "pair")  # those that write text prompts
TEMPLATES = ("chat", "plain", "hh", "ultrarm", "pair")
FILE = ".jinja"
HH_MARKS = {"\n\nHuman:": "###Human:", "\n\nAssistant:": "###Assistant:"}  # of the data set, of the reward model
SPEAKERS = {
    "hh": {"user": "###Human: ", "assistant": "###Assistant: "},
    "ultrarm": {"user": "Human: ", "assistant": "Assistant: "},
}
BETWEEN = {"hh": " ", "ultrarm": "\n\n"}


def template_faults(template: str) -> Iterator[tuple[str, str]]:
    """The fault of an option `template` that names no template, or a file that is not text."""
    if template not in TEMPLATES and not template.endswith(FILE):
        yield "template", f"{template!r} is not a template; {suggest(template, list(TEMPLATES))}, or a file *{FILE}"
    elif template.endswith(FILE):
        yield from faults_of_text("template", template)


def no_template(name: str) -> str:
    """What is wrong where a reward model is to read its own chat template and has none."""
    return (
        f"chat, but {name} has no chat template; for text prompts use template: plain; for chats say how its card "
        f"writes them: template: pair (encoders that read question and answer), hh, ultrarm, or a file *{FILE}"
    )


def encode(tokenizer: Tokenizer, prompt: Prompt, response: str, template: str, bos: Bos = "auto") -> list[int]:
    """The tokens of a prompt and its response, complete.

    `bos` is "auto" (one if the tokenizer uses one, and none if it does not), "one", or "none": no more than the
    template writes. UserError where the template cannot write the prompt, or the conversation would have two.
    """
    return encode_all(tokenizer, prompt, [response], template, bos)[0]


def encode_all(
    tokenizer: Tokenizer, prompt: Prompt, responses: Sequence[str], template: str, bos: Bos = "auto"
) -> list[list[int]]:
    """As `encode`, for any number of responses to one prompt: a tokenizer is asked once for all of them."""
    if not responses:
        return []
    if template == "pair":
        segments = (_segments(tokenizer, prompt, response) for response in responses)
        return [framed(question, answer) for question, answer, framed in segments]
    texts = [_written(tokenizer, prompt, response, template) for response in responses]
    return [_with_bos(tokenizer, _framed(tokenizer, ids), bos) for ids in encode_texts(tokenizer, texts)]


def _framed(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """With a CLS token (BERT and its kin) every text is framed: those models read nothing without the frame."""
    if tokenizer.cls_token_id is None:
        return ids
    head, tail = frame(tokenizer)
    ids = ids if ids[: len(head)] == head else [*head, *ids]
    return ids if ids[len(ids) - len(tail) :] == tail else [*ids, *tail]


def cut(tokenizer: Tokenizer, prompt: Prompt, response: str, template: str, limit: int, bos: Bos = "auto") -> list[int]:
    """The tokens of `encode` without as much of the oldest part of the prompt as `limit` tokens demand.

    In a chat whole turns go, never a system message at its head or the last turn of the user; of a text, and of a
    question that is a segment of its own, tokens go. Nothing of the response goes, so what is left may still be longer.
    """
    if template == "pair":
        question, answer, framed = _segments(tokenizer, prompt, response)
        over = len(framed(question, answer)) - limit
        return framed(question[max(0, over) :], answer)
    if prompt.messages is None:
        return _cut_text(tokenizer, prompt, response, template, limit, bos)
    system = list(takewhile(lambda message: message["role"] == "system", prompt.messages))
    turns = prompt.messages[len(system) :]
    starts = [at for at, turn in enumerate(turns) if turn["role"] == "user"] or [0]
    for start in starts:
        shorter = replace(prompt, messages=system + turns[start:])
        ids = encode(tokenizer, shorter, response, template, bos)
        if len(ids) <= limit:
            break
    return ids


def _written(tokenizer: Tokenizer, prompt: Prompt, response: str, template: str) -> str:
    """The conversation as text, with stand-ins for special tokens that it spells (`models.special_tokens`)."""
    if prompt.messages is None:
        return _continued(prompt, template) + special_tokens.of(tokenizer).hide(response)
    if template == "plain":
        raise UserError(f"prompt {prompt.id} has messages, which template: plain does not write; use template: chat")
    answered = [*prompt.messages, {"role": "assistant", "content": response}]
    if template in SPEAKERS:
        return _spoken(prompt, special_tokens.of(tokenizer).hide(answered), template)
    own = _file(template) if template.endswith(FILE) else None
    _require_calls(tokenizer, prompt, own)
    return written(tokenizer, answered, ask=False, template=own, tools=prompt.tools)


def _require_calls(tokenizer: Tokenizer, prompt: Prompt, template: str | None) -> None:
    """RowError where a prompt has calls of tools, or their results, and the template does not write them."""
    messages = prompt.messages or []
    if any("tool_calls" in message or message["role"] in ("tool", "developer") for message in messages):
        lost = [part for part in left_out(tokenizer, messages, prompt.tools, template=template) if part != TOOLS]
        if lost:
            raise RowError(f"prompt {prompt.id}: the template of the reward model leaves out {', '.join(lost)}")


def _continued(prompt: Prompt, template: str) -> str:
    """A text prompt, which its response goes on from."""
    assert prompt.text is not None
    if template == "plain":
        return prompt.text
    if template not in TEXT_TEMPLATES:
        raise UserError(f"prompt {prompt.id} is plain text, but the template is {template}; use template: plain")
    text = prompt.text
    for theirs, ours in HH_MARKS.items():
        text = text.replace(theirs, ours)
    return text


def _spoken(prompt: Prompt, messages: Messages, template: str) -> str:
    speakers = SPEAKERS[template]
    strange = [message["role"] for message in messages if message["role"] not in speakers]
    if strange:
        raise RowError(
            f"prompt {prompt.id} has a turn of {strange[0]}, but the template {template} knows only user and "
            "assistant; leave out prompts.system, or use another template"
        )
    return BETWEEN[template].join(speakers[message["role"]] + said(message) for message in messages)


@cache
def _file(template: str) -> str:
    return text_of(template)


@lru_cache(maxsize=8)
def _adds_bos(tokenizer: Tokenizer) -> bool:
    return tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]


def _with_bos(tokenizer: Tokenizer, ids: list[int], bos: Bos) -> list[int]:
    """Templates and tokenizers both may write a BOS; two change a reward silently (allenai/reward-bench#164)."""
    first = tokenizer.bos_token_id
    if first is None:
        if bos == "one":
            raise UserError(f"{tokenizer.name_or_path} has no BOS token; use bos: auto")
        return ids
    if bos == "none":
        if ids[:2] == [first, first]:
            raise UserError(f"the template of {tokenizer.name_or_path} writes two BOS tokens; use bos: auto")
        return ids
    if ids[:1] != [first]:
        return [first, *ids] if bos == "one" or _adds_bos(tokenizer) else ids
    while ids[:2] == [first, first]:
        ids = ids[1:]
    return ids


def _segments(tokenizer: Tokenizer, prompt: Prompt, response: str) -> tuple[list[int], list[int], "Frame"]:
    """Question and answer as tokens, and what frames them. Tokenizers drop an empty second one."""
    if prompt.messages is not None and [message["role"] for message in prompt.messages] != ["user"]:
        raise RowError(
            f"prompt {prompt.id} is more than one question, but the template pair reads a question and an answer; "
            "leave out such prompts (examples.single_turn), or use another reward model"
        )
    hide = special_tokens.of(tokenizer).hide
    asked = prompt.content if prompt.messages is None else hide(prompt.content)
    question, answer = encode_texts(tokenizer, [asked, hide(response)])
    return question, answer, Frame(tokenizer)


class Frame:
    """The special tokens around a question and its answer, learnt from how the tokenizer frames two words."""

    def __init__(self, tokenizer: Tokenizer):
        framed = tokenizer("x", "x")
        ids, parts = framed["input_ids"], framed.sequence_ids(0)
        if 1 not in parts:
            raise UserError(f"{tokenizer.name_or_path} frames no pairs of texts; the template pair is not for it")
        first = [at for at, part in enumerate(parts) if part == 0]
        second = [at for at, part in enumerate(parts) if part == 1]
        self.head, self.between = ids[: first[0]], ids[first[-1] + 1 : second[0]]
        self.tail = ids[second[-1] + 1 :]

    def __call__(self, question: list[int], answer: list[int]) -> list[int]:
        return [*self.head, *question, *self.between, *answer, *self.tail]


def _cut_text(tokenizer: Tokenizer, prompt: Prompt, response: str, template: str, limit: int, bos: Bos) -> list[int]:
    ids = encode(tokenizer, prompt, response, template, bos)
    alone = encode(tokenizer, prompt, "", template, bos)
    frame = sum(token is not None and ids[:1] == [token] for token in {tokenizer.bos_token_id, tokenizer.cls_token_id})
    same = takewhile(lambda pair: pair[0] == pair[1], zip(ids, alone, strict=False))
    wholly_prompt = len(list(same))  # a token that spells the end of the prompt and more is not
    end = max(frame, min(frame + len(ids) - limit, wholly_prompt))
    return ids[:frame] + ids[end:]
