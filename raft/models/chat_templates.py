"""Words to tokens as a policy reads and writes them: chat templates, and where a response begins.

The generator encodes a prompt, the trainer a prompt and the response that is learned. What a reward model reads, the
two as one conversation, is in `raft.models.reward_templates`. Templates are written by `raft.models.jinja`.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from raft.core.errors import RowError, UserError
from raft.core.options import suggest
from raft.core.records import Prompt, Response, said
from raft.models import jinja, special_tokens
from raft.models.messages import Malformed, Message, marked

Tokenizer = Any  # transformers.PreTrainedTokenizerBase; importing it here would make every command slow


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as fault:
        raise UserError(
            f"{path}: no tokenizer could be loaded ({' '.join(str(fault).split())}); a model folder needs one, and a "
            "config.json that transformers reads"
        ) from fault
    if not isinstance(tokenizer.model_max_length, int | float):
        raise UserError(
            f"{path}/tokenizer_config.json: model_max_length is {tokenizer.model_max_length!r}, not a number"
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(
            f"{path}: its tokenizer knows no words; put the files of the model's tokenizer (tokenizer.json) into it"
        )
    return tokenizer


def check_rows(tokenizer: Tokenizer, model: Any, name: str) -> int:
    """How many tokens the model has a row of embeddings for. UserError if the tokenizer writes others.

    Added tokens beyond the rows (the image token of Gemma 3's text models) do no harm until a text names one.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    added = tokenizer.added_tokens_decoder
    beyond = [piece for piece, at in tokenizer.get_vocab().items() if at >= rows and at not in added]
    if beyond:
        raise UserError(
            f"{name}: the tokenizer has {len(tokenizer):,} tokens, but the model has embeddings for {rows:,}, so "
            f"{len(beyond):,} tokens ({beyond[0]!r}) cannot be read; put the tokenizer of this model into its folder"
        )
    return rows


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
    RowError where it refuses the conversation, UserError where it writes no conversation at all.
    """
    chosen = _template(tokenizer, template, tools)
    if (fault := _shape(tokenizer, chosen).fault) is not None:
        raise UserError(fault)
    return _rendered(tokenizer, messages, ask, chosen, tools, variables or {})


def written(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    ask: bool,
    template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """As `render`, with stand-ins for special tokens that the messages spell (`special_tokens`): text for `encode`."""
    hidden, offered = special_tokens.of(tokenizer).hide([list(messages), tools])
    return render(tokenizer, hidden, ask=ask, template=template, tools=offered, variables=variables)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts as templates write them, special tokens read as such, with nothing added."""
    return special_tokens.of(tokenizer).encode(texts)


def _template(tokenizer: Tokenizer, template: str | None, tools: Any) -> str:
    if not (template or tokenizer.chat_template):
        raise UserError(
            f"{tokenizer.name_or_path} has no chat template, but the prompt is a list of messages; "
            "give plain text instead, or use a model with a template"
        )
    try:
        return tokenizer.get_chat_template(template, tools)
    except ValueError as fault:
        raise UserError(f"{tokenizer.name_or_path}: {str(fault).splitlines()[0][:200]}") from None


def _rendered(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], ask: bool, template: str, tools: Any, variables: Any
) -> str:
    values = {"messages": list(messages), "tools": tools, "documents": None, "add_generation_prompt": ask}
    whose = _whose(tokenizer, template)
    try:
        return jinja.write(template, whose, {**values, **tokenizer.special_tokens_map, **variables})
    except jinja.Refused as fault:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise RowError(
            f"{whose} refuses a conversation of {roles} ({fault}); "
            "change the prompts' messages to what it takes, or the template"
        ) from fault


def _whose(tokenizer: Tokenizer, template: Any) -> str:
    given = isinstance(tokenizer.chat_template, str) and template != tokenizer.chat_template
    return f"the chat template {'given for' if given else 'of'} {tokenizer.name_or_path}"


class Shape(NamedTuple):
    """What a template writes around turns.

    `header` is what it writes before an answer though it takes no notice of add_generation_prompt; `end` the token
    right behind an answer, None if it writes none; `fault` says why it is not a template for conversations.
    """

    header: str = ""
    end: int | None = None
    fault: str | None = None


HUGE, EDGE = 1 << 17, 16  # characters; tokens that may differ where a text is cut
ASKED, ANSWERED = "which 7316?", "that 2590."  # what a template is tried with; it has to bring them back


@lru_cache(maxsize=16)
def _shape(tokenizer: Tokenizer, template: str) -> Shape:
    """Learnt from a question and its answer; of a template that refuses those nothing is known."""
    turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
    try:
        asked, quiet = (_rendered(tokenizer, turns[:1], ask, template, None, {}) for ask in (True, False))
        closed = _rendered(tokenizer, turns, False, template, None, {})
    except RowError:
        return Shape()
    whose = f"the chat template used for {tokenizer.name_or_path}"
    if ASKED not in asked.lower() or ASKED not in closed.lower():
        return Shape(fault=f"{whose} leaves out what the user says; use another template, or another model")
    if ANSWERED not in closed.lower():
        return Shape(fault=f"{whose} leaves out what the assistant says; use another template, or another model")
    before, _, behind = closed.lower().partition(ANSWERED)
    header = closed[len(asked) : len(before)] if asked == quiet and closed.startswith(asked) else ""
    return Shape(header if header.strip() else "", _first_token(tokenizer, closed[len(closed) - len(behind) :]))


def _first_token(tokenizer: Tokenizer, text: str) -> int | None:
    """The token of its own that a text begins with, white space aside."""
    spelled = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()} | special_tokens.of(
        tokenizer
    ).ids
    matching = [spelling for spelling in spelled if spelling and text.lstrip().startswith(spelling)]
    return spelled[max(matching, key=len)] if matching else None


def end_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a response: the tokenizer's, those of the model's folder, and its template's."""
    ends = {*_ends(tokenizer, is_chat=False), *_folder_ends(Path(tokenizer.name_or_path or ""))}
    if tokenizer.chat_template:
        ends |= {*_ends(tokenizer, is_chat=True)}
    rows = _embeddings(Path(tokenizer.name_or_path or ""))
    return frozenset(token for token in ends if rows is None or token < rows)


def writes_end(tokenizer: Tokenizer) -> bool:
    """Whether the chat template writes an end token right after an answer."""
    return _shape(tokenizer, _template(tokenizer, None, None)).end is not None


def _ends(tokenizer: Tokenizer, is_chat: bool) -> list[int]:
    """The end token that is trained after a response, if any: in a chat the template's, else EOS."""
    if is_chat and (end := _shape(tokenizer, _template(tokenizer, None, None)).end) is not None:
        return [end]
    return frame(tokenizer).tail[:1] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


@lru_cache(maxsize=8)
def _folder_ends(folder: Path) -> frozenset[int]:
    """The end tokens of the generation config, or without it of the config."""
    files = [folder / name for name in ("generation_config.json", "config.json")]
    file = next((item for item in files if item.is_file()), None)
    if file is None:
        return frozenset()
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError):
        raise UserError(f"{file} is damaged: it is not a mapping in JSON; make the model folder again") from None
    ends = value if isinstance(value, list) else [value]
    if not all(item is None or type(item) is int for item in ends):
        raise UserError(f"{file}: eos_token_id is {value!r}; it has to be a token id, or a list of them")
    return frozenset(ends) - {None}


def require_variables(tokenizer: Tokenizer, variables: Mapping[str, Any]) -> None:
    """UserError if the model's chat template does not read one of these variables, which would have no effect."""
    if not (variables and tokenizer.chat_template):
        return
    template = _template(tokenizer, None, None)
    read = jinja.variables(template, _whose(tokenizer, template)) - {"messages", "tools"}
    for name in variables:
        if name not in read:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} reads no variable {name} (chat_template_kwargs); "
                f"{suggest(name, sorted(read))}"
            )


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
    template = _template(tokenizer, template, tools)
    roles = sorted({message["role"] for message in messages} & {"tool", "developer"})
    lost = [f"the role {role}" for role in roles if role not in template]
    try:
        asked = json.dumps([*marked(messages, tools), variables], sort_keys=True)
        return (*lost, *_unwritten(tokenizer, template, asked))
    except UserError:  # the template inspects the content, and refuses such marks
        written = render(tokenizer, messages, ask=False, template=template, tools=tools, variables=variables)
        parts = ((message["content"] or "", message["role"]) for message in messages)
        return (
            *lost,
            *dict.fromkeys(f"the words of the {role}" for text, role in parts if text.strip() not in written),
        )


@lru_cache(maxsize=4096)
def _unwritten(tokenizer: Tokenizer, template: str, asked: str) -> tuple[str, ...]:
    messages, tools, marks, variables = json.loads(asked)
    written = render(tokenizer, messages, ask=False, template=template, tools=tools, variables=variables)
    return tuple(dict.fromkeys(what for mark, what in marks.items() if mark not in written))


def unembedded(tokenizer: Tokenizer, ids: Sequence[int]) -> str | None:
    """Why the model of the tokenizer's folder cannot read these tokens; None where it can."""
    rows = _embeddings(Path(tokenizer.name_or_path or ""))
    if rows is None or max(ids, default=0) < rows:
        return None
    token = max(ids)
    return (
        f"token {token} ({tokenizer.convert_ids_to_tokens(token)!r}) is beyond the {rows} embeddings of the model; "
        "its tokenizer is that of another"
    )


@lru_cache(maxsize=8)
def _embeddings(folder: Path) -> int | None:
    """How many tokens a model has embeddings for, as its config says."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rows = (config.get("text_config") or config).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return None
    return rows if type(rows) is int else None


def require_short(tokenizer: Tokenizer, prompt: Prompt, limit: int) -> None:
    """RowError if a huge prompt has more tokens than the limit, as its beginning shows already.

    To encode it whole can take minutes and gigabytes.
    """
    text, size = prompt.content, max(HUGE, 8 * limit)
    while size < len(text):
        tokens = len(tokenizer(text[:size], add_special_tokens=False)["input_ids"]) - EDGE
        if tokens > limit:
            raise RowError(f"{len(text)} characters, of which the first {size} have {tokens} tokens, more than {limit}")
        size *= 8


def require_known(tokenizer: Tokenizer, prompt: Prompt, ids: Sequence[int]) -> None:
    """RowError if the policy cannot read a prompt of these tokens, or nothing is left of its last words."""
    if (fault := unembedded(tokenizer, ids)) is not None:
        raise RowError(fault)
    text = prompt.text if prompt.messages is None else said(prompt.messages[-1])
    (kept,) = encode(tokenizer, [special_tokens.of(tokenizer).hide(text)])
    if text and text.strip() and not tokenizer.decode(kept).strip():
        raise RowError("the policy's tokenizer knows no character of it, so that nothing is left to read")


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The tokens that the policy reads. A template writes its own BOS; plain text gets what the tokenizer puts before
    every text, unless it begins with that already, and nothing of what it puts behind one: a prompt is open.
    """
    if prompt.messages is not None:
        return encode(tokenizer, [_opened(tokenizer, prompt)])[0]
    ids, head = tokenizer(prompt.text, add_special_tokens=False)["input_ids"], frame(tokenizer).head
    return ids if ids[: len(head)] == head else [*head, *ids]


def _opened(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """A conversation as written up to where the assistant begins to speak, the beginning of its turn included."""
    assert prompt.messages is not None
    text = _asked(tokenizer, prompt, prompt.messages, ask=True)
    return text + _shape(tokenizer, _template(tokenizer, None, prompt.tools)).header


def _asked(tokenizer: Tokenizer, prompt: Prompt, messages: Sequence[Message], ask: bool) -> str:
    """Messages of a prompt as the policy reads them."""
    return written(tokenizer, messages, ask=ask, tools=prompt.tools, variables=prompt.chat_template_kwargs)


class Frame(NamedTuple):
    """The tokens that a tokenizer puts before and behind every text by itself: BOS, EOS, CLS, SEP."""

    head: list[int]
    tail: list[int]


@lru_cache(maxsize=8)
def frame(tokenizer: Tokenizer) -> Frame:
    """What the tokenizer puts around a text, learnt from a text of one letter."""
    bare, framed = (tokenizer("x", add_special_tokens=added)["input_ids"] for added in (False, True))
    start = next((at for at in range(len(framed)) if framed[at : at + len(bare)] == bare), 0)
    return Frame(framed[:start], framed[start + len(bare) :])


def encode_response(tokenizer: Tokenizer, prompt: Prompt, text: str) -> list[int]:
    """The tokens of a given response, its end token included, as a supervised row is trained on.

    In a chat the template says how an answer ends; in plain text, and where a template writes no end, it is EOS.
    """
    if prompt.messages is None:
        return continuation(tokenizer, text) + _ends(tokenizer, is_chat=False)
    opened = _opened(tokenizer, prompt)
    closed = _asked(tokenizer, prompt, [*prompt.messages, {"role": "assistant", "content": text}], ask=False)
    if not closed.startswith(opened):
        raise RowError(
            f"the chat template of {tokenizer.name_or_path} writes a question and its answer so that the "
            "question alone is not their beginning; the response cannot be separated, so it cannot be trained on"
        )
    ids, end = _continued(tokenizer, closed[len(opened) :].rstrip("\n")), _ends(tokenizer, is_chat=True)
    return [*takewhile(lambda token: token not in end, ids), *end]


def continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of words that go on after a text, without the blank that some tokenizers write before every text."""
    return _continued(tokenizer, special_tokens.of(tokenizer).hide(text))


def _continued(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text as `written`, encoded behind an anchor (a special token, else a line break) that is then
    taken off again; the first anchor is used that leaves exactly the text. A tokenizer that loses characters encodes
    the text as it stands.
    """
    for anchor in filter(None, [tokenizer.bos_token, tokenizer.eos_token, "\n"]):
        head, ids = encode(tokenizer, [anchor, anchor + text])
        spelled = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if ids[: len(head)] == head and spelled == special_tokens.of(tokenizer).reveal(anchor + text):
            return ids[len(head) :]
    return encode(tokenizer, [text])[0]


def trained_tokens(tokenizer: Tokenizer, response: Response, is_chat: bool = False) -> list[int]:
    """The tokens of a response that are learned: those that were generated, and an end only where there was one.

    A response cleaned at a turn marker had come to its end without the end token, so it is added;
    a response cut by the limit had not, so it never is.
    """
    if response.finish_reason == "marker":
        return [*response.token_ids, *_ends(tokenizer, is_chat)]
    return response.token_ids
