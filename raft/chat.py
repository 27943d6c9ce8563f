"""Words to tokens: the only file that knows chat templates, BOS rules and where a response begins.

Three readers share it: the generator (a prompt), the trainer (a prompt and the response that is
learned), the reward model (a whole conversation). Templates run in transformers' sandbox.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from raft.errors import Stopped, UserError
from raft.records import Prompt, Response

Tokenizer = Any  # transformers.PreTrainedTokenizerBase; importing it here would make every command slow


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Stopped:
        raise
    except Exception as fault:
        raise UserError(f"{path}: no tokenizer could be loaded ({fault}); a model folder needs one") from fault


def render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, ask: bool) -> str:
    """Messages as the model's own template writes them; with `ask` up to where the assistant begins to speak."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path} has no chat template, but the prompt is a list of messages; "
            "give plain text instead (prompts.field), or use a model with a template"
        )
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    except Stopped:
        raise
    except Exception as fault:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation of {roles} ({fault}); "
            "change the prompts' messages to what it takes, or the template"
        ) from fault


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The tokens that the policy reads. A template writes its own BOS; plain text gets what the tokenizer adds."""
    if prompt.messages is not None:
        return tokenizer(render(tokenizer, prompt.messages, ask=True), add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt.text)["input_ids"]
    if tokenizer.eos_token_id is not None and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # some tokenizers close every text; a prompt is open
    return ids


def encode_response(tokenizer: Tokenizer, prompt: Prompt, text: str) -> list[int]:
    """The tokens of a response that somebody wrote, its end included: what a supervised row teaches.

    In a chat the template says how an answer ends; in plain text it is the EOS token.
    """
    if prompt.messages is None:
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return continuation(tokenizer, text) + end
    opened = render(tokenizer, prompt.messages, ask=True)
    closed = render(tokenizer, [*prompt.messages, {"role": "assistant", "content": text}], ask=False)
    if not closed.startswith(opened):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} writes a question and its answer so that the "
            "question alone is not their beginning; the response cannot be told apart, so it cannot be trained on"
        )
    return continuation(tokenizer, closed[len(opened) :].rstrip("\n"))


def continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that goes on after another, without the blank that some tokenizers write before every text.

    It is encoded behind an anchor (a special token, else a line break) that is then taken off again; the first
    anchor is used that leaves exactly the text. A tokenizer that loses characters encodes the text as it stands.
    """
    for anchor in filter(None, [tokenizer.bos_token, tokenizer.eos_token, "\n"]):
        head = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        ids = tokenizer(anchor + text, add_special_tokens=False)["input_ids"]
        spelled = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if ids[: len(head)] == head and spelled == anchor + text:
            return ids[len(head) :]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def trained_tokens(tokenizer: Tokenizer, response: Response) -> list[int]:
    """The tokens of a response that are learned: those that were generated, and an end only where there was one.

    A response cleaned at a turn marker had come to its end without the end token, so it is added;
    a response cut by the limit had not, so it never is.
    """
    if response.finish_reason == "marker" and tokenizer.eos_token_id is not None:
        return [*response.token_ids, tokenizer.eos_token_id]
    return response.token_ids


def one_bos(tokenizer: Tokenizer, text: str) -> list[int]:
    """A rendered conversation as tokens with exactly one BOS if the tokenizer uses one, and none if it does not.

    Templates and tokenizers both may write a BOS; two of them change a reward silently (allenai/reward-bench#164).
    A tokenizer with a CLS token (BERT and its kin) frames every text: those models read nothing without the frame.
    """
    framed = tokenizer.cls_token_id is not None
    ids = tokenizer(text, add_special_tokens=framed)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    if ids[:1] != [bos]:
        adds_bos = tokenizer("x")["input_ids"][:1] == [bos]
        return [bos, *ids] if adds_bos else ids
    while ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids


def encode_conversation(tokenizer: Tokenizer, prompt: Prompt, response: str, template: str) -> list[int]:
    """A prompt and its response as a reward model reads them, complete, with exactly one BOS.

    `template` is "chat" (the reward model's own template; needs messages) or "plain" (the prompt's text
    and the response joined as they are).
    """
    if template == "plain":
        if prompt.text is None:
            raise UserError(f"prompt {prompt.id} has messages, but reward.template is plain; use template: chat")
        return one_bos(tokenizer, prompt.text + response)
    if prompt.messages is None:
        raise UserError(f"prompt {prompt.id} is plain text, but reward.template is chat; use template: plain")
    answered = [*prompt.messages, {"role": "assistant", "content": response}]
    return one_bos(tokenizer, render(tokenizer, answered, ask=False))


def cut_conversation(tokenizer: Tokenizer, prompt: Prompt, response: str, template: str, limit: int) -> list[int]:
    """The tokens of `encode_conversation` without as much of the oldest part of the prompt as `limit` tokens demand.

    In a chat whole turns go, never a system message at its head or the last turn of the user; in plain text tokens go.
    Nothing of the response goes, so what is left may still be longer than the limit.
    """
    if prompt.messages is None:
        return _cut_text(tokenizer, prompt, response, template, limit)
    system = list(takewhile(lambda message: message["role"] == "system", prompt.messages))
    turns = prompt.messages[len(system) :]
    starts = [at for at, turn in enumerate(turns) if turn["role"] == "user"] or [0]
    for start in starts:
        shorter = replace(prompt, messages=system + turns[start:])
        ids = encode_conversation(tokenizer, shorter, response, template)
        if len(ids) <= limit:
            break
    return ids


def _cut_text(tokenizer: Tokenizer, prompt: Prompt, response: str, template: str, limit: int) -> list[int]:
    ids = encode_conversation(tokenizer, prompt, response, template)
    alone = encode_conversation(tokenizer, prompt, "", template)
    frame = sum(one is not None and ids[:1] == [one] for one in {tokenizer.bos_token_id, tokenizer.cls_token_id})
    same = takewhile(lambda pair: pair[0] == pair[1], zip(ids, alone, strict=False))
    wholly_prompt = len(list(same))  # a token that spells the end of the prompt and more is not
    end = max(frame, min(frame + len(ids) - limit, wholly_prompt))
    return ids[:frame] + ids[end:]
