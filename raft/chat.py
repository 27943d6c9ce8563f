"""Words to tokens as a policy reads and writes them: chat templates, and where a response begins.

The generator encodes a prompt, the trainer a prompt and the response that is learned. What a reward model reads, the
two as one conversation, is in `raft.conversation`. Templates run in transformers' sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from raft.errors import Stopped, UserError
from raft.messages import Malformed, Message, marked
from raft.plugins import suggest
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


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    ask: bool,
    template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Messages as the model's own template writes them; with `ask` up to where the assistant begins to speak.

    `template` is the text of another template, in Jinja; `tools` and `variables` (chat_template_kwargs) are read by it.
    """
    if not (template or tokenizer.chat_template):
        raise UserError(
            f"{tokenizer.name_or_path} has no chat template, but the prompt is a list of messages; "
            "give plain text instead (prompts.field), or use a model with a template"
        )
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            tools=tools,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=ask,
            **(variables or {}),
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


def require_variables(tokenizer: Tokenizer, variables: Mapping[str, Any]) -> None:
    """UserError if the model's chat template does not read one of these variables, which would have no effect."""
    if not (variables and tokenizer.chat_template):
        return
    read = _variables(tokenizer.get_chat_template())
    for name in variables:
        if name not in read:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} reads no variable {name} (chat_template_kwargs); "
                f"{suggest(name, sorted(read))}"
            )


@lru_cache
def _variables(template: str) -> set[str]:
    """The variables that a template reads and does not set itself."""
    from jinja2 import meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template(template).environment  # with the tags that transformers adds to Jinja's
    return meta.find_undeclared_variables(environment.parse(template)) - {*environment.globals, "messages", "tools"}


def require_written(tokenizer: Tokenizer, prompt: Prompt) -> None:
    """Malformed if the policy's chat template leaves out what a message of the prompt says, or what it may call."""
    if prompt.messages is not None:
        lost = left_out(tokenizer, prompt.messages, prompt.tools, prompt.chat_template_kwargs)
        if lost:
            raise Malformed(f"the chat template of {tokenizer.name_or_path} leaves out {', '.join(lost)}")


def left_out(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    template: str | None = None,
) -> tuple[str, ...]:
    """What a chat template does not write of messages and tools that are like these, in words; nothing if all is there.

    Each content, function name and argument is replaced by a mark of its own and looked for in what the template writes
    of that. Besides, the roles tool and developer have to be spelled in it: templates that write any role as it is
    called would make a turn of which the model knows nothing.
    """
    template = template or tokenizer.get_chat_template(tools=tools)
    roles = sorted({message["role"] for message in messages} & {"tool", "developer"})
    lost = [f"the role {role}" for role in roles if role not in template]
    try:
        asked = json.dumps([*marked(messages, tools), variables], sort_keys=True)
        return (*lost, *_unwritten(tokenizer, template, asked))
    except UserError:  # the template looks into what is said, and refuses such marks
        written = render(tokenizer, messages, ask=False, template=template, tools=tools, variables=variables)
        said = ((message["content"] or "", message["role"]) for message in messages)
        return (*lost, *dict.fromkeys(f"the words of the {role}" for text, role in said if text.strip() not in written))


@lru_cache(maxsize=4096)
def _unwritten(tokenizer: Tokenizer, template: str, asked: str) -> tuple[str, ...]:
    messages, tools, marks, variables = json.loads(asked)
    written = render(tokenizer, messages, ask=False, template=template, tools=tools, variables=variables)
    return tuple(dict.fromkeys(what for mark, what in marks.items() if mark not in written))


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The tokens that the policy reads. A template writes its own BOS; plain text gets what the tokenizer adds."""
    if prompt.messages is not None:
        return tokenizer(_asked(tokenizer, prompt, prompt.messages, ask=True), add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt.text)["input_ids"]
    if tokenizer.eos_token_id is not None and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # some tokenizers close every text; a prompt is open
    return ids


def _asked(tokenizer: Tokenizer, prompt: Prompt, messages: Sequence[Message], ask: bool) -> str:
    """Messages of a prompt as the policy reads them."""
    return render(tokenizer, messages, ask=ask, tools=prompt.tools, variables=prompt.chat_template_kwargs)


def encode_response(tokenizer: Tokenizer, prompt: Prompt, text: str) -> list[int]:
    """The tokens of a response that somebody wrote, its end included: what a supervised row teaches.

    In a chat the template says how an answer ends; in plain text it is the EOS token.
    """
    if prompt.messages is None:
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return continuation(tokenizer, text) + end
    opened = _asked(tokenizer, prompt, prompt.messages, ask=True)
    closed = _asked(tokenizer, prompt, [*prompt.messages, {"role": "assistant", "content": text}], ask=False)
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
