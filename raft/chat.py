"""Words to tokens as a policy reads and writes them: chat templates, and where a response begins.

The generator encodes a prompt, the trainer a prompt and the response that is learned. What a reward model reads, the
two as one conversation, is in `raft.conversation`. Templates run in transformers' sandbox.
"""

from collections.abc import Sequence
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


def render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, ask: bool, template: str | None = None) -> str:
    """Messages as the model's own template writes them; with `ask` up to where the assistant begins to speak.

    `template` is the text of another template, in Jinja.
    """
    if not (template or tokenizer.chat_template):
        raise UserError(
            f"{tokenizer.name_or_path} has no chat template, but the prompt is a list of messages; "
            "give plain text instead (prompts.field), or use a model with a template"
        )
    try:
        return tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=ask
        )
    except Stopped:
        raise
    except Exception as fault:
        roles = ", ".join(message["role"] for message in messages)
        whose = "given for" if template else "of"
        raise UserError(
            f"the chat template {whose} {tokenizer.name_or_path} refuses a conversation of {roles} ({fault}); "
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
