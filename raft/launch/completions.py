"""What an answer in OpenAI's protocol says: its text, why it ended, or the error in its place.

Servers agree on the envelope and on little else: the tables below hold the words of known dialects. What a server says
is untrusted text: only an excerpt of it reaches a message.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raft.core.errors import UserError
from raft.core.terminal import is_unicode, safe

EXCERPT = 200  # characters of what a server says that are kept

# Why an answer ended, in the words of OpenAI, vLLM, TGI, Together, watsonx, Anthropic, Gemini, Cohere, Bedrock and kin.
REASONS = {
    "stop": """stop eos eos_token end_turn stop_sequence stop_token stop_string stopped_eos stopped_word endoftext
        end_of_text complete completed finished done normal finish_reason_stop""",
    "length": """length max_tokens max_length max_new_tokens max_output_tokens model_length token_limit limit
        stopped_limit finish_reason_max_tokens model_context_window_exceeded""",
    "withheld": """content_filter content_filtered filtered safety image_safety finish_reason_safety refusal spii
        recitation blocklist blocked prohibited_content guardrail_intervened flagged moderation
        error_toxic sensitive""",
    "tools": "tool_calls tool_call tool_use function_call",
    "failed": "error abort aborted cancelled canceled failed insufficient_system_resource time_limit",
}
ENDS = {word: kind for kind, words in REASONS.items() for word in words.split()}
FILTER = re.compile(r"content_filter|content_policy|data_inspection_failed|ResponsibleAI|moderation", re.IGNORECASE)

# Between such marks models think before they answer; the answer comes after the last mark that ends a thought.
NAMES = r"(?:\w+[:|])?(?:think(?:ing)?|thoughts?|reason(?:ing)?)(?:[:_]\w+)?"
OPENS = [rf"<{NAMES}>", r"\[THINK\]", r"<\|(?:START_THINKING|begin_of_thought|content_thinking)\|>", "◁think▷"]
OPENS += ["<unused94>", r"<\|channel\|>analysis", r"<\|channel>thought", r"<\|plamo:begin_think:plamo\|>"]
CLOSES = [rf"</{NAMES}>", r"\[/THINK\]", r"<\|(?:END_THINKING|end_of_thought)\|>", "<unused95>", "◁/think▷"]
CLOSES += [r"<\|channel\|>final(?:<\|message\|>)?", r"<channel\|>", r"<\|plamo:end_think:plamo\|>"]
THOUGHT_BEGINS, THOUGHT_ENDS = (re.compile("|".join(marks), re.IGNORECASE) for marks in (OPENS, CLOSES))


@dataclass(frozen=True)
class Completion:
    """The only choice of an answer. `ended` is "stop" or "length", None for another reason of the server.

    `fault` says why there is no text to use, "" where there is; `choice` is the choice as the server sent it.
    """

    text: str
    ended: str | None
    fault: str
    choice: Mapping[str, Any]


def read(what: str, answer: Mapping[str, Any], chat: bool, limit: int) -> Completion:
    """The choice in an answer to a chat or to a plain text, of at most `limit` tokens. UserError without one."""
    try:
        (choice,) = answer["choices"]
        message = choice["message"] if chat else choice
        text, thought = _parts(message["content"] if chat else message["text"])
    except (KeyError, TypeError, ValueError):
        raise foreign(what, answer) from None
    reason = choice.get("finish_reason")
    ended = _ended(reason, text, _tokens(answer) >= limit)
    return Completion(text or "", ended, _fault(message, text, thought, ended, reason), choice)


def after_thought(text: str) -> str | None:
    """The text behind the last mark that ends a thought, all of it where nothing is thought; None: it still thinks."""
    ends = list(THOUGHT_ENDS.finditer(text))
    answer = text[ends[-1].end() :] if ends else text
    return None if THOUGHT_BEGINS.search(answer) else answer


def error_of(answer: Mapping[str, Any]) -> tuple[int, str] | None:
    """The status and the words of an error that came as an answer, at its top or in its choice; None if it has none."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    reason = choice.get("finish_reason")
    failed = {"message": f"finish_reason {reason}"} if _kind(reason) == "failed" else None
    error = (
        answer.get("error") or choice.get("error") or failed or (answer if answer.get("object") == "error" else None)
    )
    if not error:
        return None
    given = error.get("code") or error.get("status") if isinstance(error, dict) else None
    known = isinstance(given, int | str) and re.fullmatch(r"[45]\d\d", str(given))
    return int(str(given)) if known else 500, words_of(error)


def words_of(error: Any) -> str:
    """What an error says, without its envelope."""
    while isinstance(error, dict) and (inner := error.get("error") or error.get("message") or error.get("detail")):
        error = inner
    return str(error)


def foreign(what: str, answer: Any) -> UserError:
    """The error of an answer that cannot be read."""
    return UserError(
        f"{what}: an answer that is not OpenAI's protocol: {excerpt(str(answer))}; check what runs at the url"
    )


def excerpt(text: str) -> str:
    """A third-party text cut to fit a message, on one line, without control characters."""
    line = " ".join(text[: 4 * EXCERPT].split())
    return safe(line if len(line) <= EXCERPT else line[: EXCERPT - 3] + "...")


def _parts(content: Any) -> tuple[str | None, str]:
    """The text and the thought of a content: null, a text, or a list of parts. ValueError for anything else."""
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise ValueError
    texts, thoughts = [], []
    for part in content:
        if part["type"] in ("text", "output_text"):
            texts.append(part["text"])
        elif part["type"] in ("thinking", "reasoning", "redacted_thinking"):
            thoughts.append(str(part))
        else:
            raise ValueError
    return "".join(texts) if texts else None, "".join(thoughts)


def _ended(reason: Any, text: str | None, full: bool) -> str | None:
    """ "stop" or "length"; without a reason a text that is there ended by itself, unless it has all its tokens."""
    if reason is None and text:
        return "length" if full else "stop"
    kind = _kind(reason)
    return kind if kind in ("stop", "length") else None


def _kind(reason: Any) -> str | None:
    """What a server's word for the end of an answer means, a key of REASONS; None for an unknown one."""
    return ENDS.get(str(reason).casefold())


def _tokens(answer: Mapping[str, Any]) -> int:
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def _fault(message: Mapping[str, Any], text: str | None, thought: str, ended: str | None, reason: Any) -> str:
    """Why there is no text to use, "" where there is."""
    named, kind = f"(finish_reason {excerpt(str(reason))})", _kind(reason)
    if kind == "withheld":
        return f"the server withholds the text or a part of it {named}"
    if not text and message.get("refusal"):
        return f"the model refuses to answer: {excerpt(str(message['refusal']))}"
    if not text and (thought or message.get("reasoning_content") or message.get("reasoning")):
        return f"the answer holds a thought (reasoning_content) and no text {named}; raise max_tokens"
    if kind == "tools" or (not text and message.get("tool_calls")):
        return f"the answer calls a tool {named}"
    if text is None:
        return f"the answer holds no text (null) {named}"
    if ended is None:
        return f"the answer ended for a reason that raft does not know {named}"
    if not is_unicode(text):
        return f"the text holds half a character: {excerpt(text)}"
    return ""
