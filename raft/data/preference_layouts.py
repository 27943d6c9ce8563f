"""Layouts of preference data: how a row of a published data set becomes pairs, prompts always as messages.

    examples: {kind: hub, dataset: openbmb/UltraFeedback, pairs: ultrafeedback}

A layout names the columns that it reads, so that another data set is refused at its first row. What a row compares
is a pair; or it is not used, with a reason (a tie, another language, more turns than wanted); or the row is malformed.
docs/preference-data.md has the data sets and what each layout leaves out.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations, groupby, product
from typing import Any

from raft.data.sources import Row
from raft.models.messages import Malformed, Message, answered, messages, turns, words

Messages = list[Message]

HH_MARK = re.compile(r"\n\n(Human|Assistant):")  # of Anthropic's dialogues
HELPSTEER2_MARK = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
STRONGEST = 3  # preference of HelpSteer: from -3, the first is much better, to 3


@dataclass(frozen=True, slots=True)
class Compared:
    """Two responses to a prompt, the better one first. `part` tells what one row compares apart, "" if it is alone."""

    messages: Messages
    chosen: str
    rejected: str
    subset: str | None = None
    part: str = ""


@dataclass(frozen=True, slots=True)
class Unused:
    """Two responses that are no pair, though nothing is wrong with their row, and why."""

    reason: str
    part: str = ""


@dataclass(frozen=True)
class Layout:
    """The columns that a data set has to have, and what a row of it compares.

    `language`: whether its column `language` says that of a row. `turns`: whether a prompt may have several.
    """

    columns: tuple[str, ...]
    read: Callable[[Row], Iterator[Compared | Unused]]
    language: bool = False
    turns: bool = True


def compared(
    layout: Layout, row: Row, single_turn: bool = False, language: str | None = None
) -> list[Compared | Unused]:
    """What a row compares. With `single_turn` and `language` (in any case of letters) the others are not used.

    Malformed says what is wrong with the row, of which then nothing is used.
    """
    if language is not None and (spoken := words(row, "language")).casefold() != language.casefold():
        return [Unused(f"the language is {spoken}, not {language}")]
    return [_kept(one, single_turn) for one in layout.read(row)]


def _kept(one: Compared | Unused, single_turn: bool) -> Compared | Unused:
    if isinstance(one, Unused):
        return one
    if single_turn and sum(message["role"] != "system" for message in one.messages) > 1:
        return Unused("more than one turn", one.part)
    require_pair(one.chosen, one.rejected)
    return one


def require_pair(chosen: str, rejected: str, names: tuple[str, str] = ("chosen", "rejected")) -> None:
    """Malformed if two texts are no pair: one is empty, or they are equal. `names` are their columns."""
    for name, text in zip(names, (chosen, rejected), strict=True):
        if not text.strip():
            raise Malformed(f"{name} is empty")
    if chosen == rejected:
        raise Malformed(f"{names[0]} and {names[1]} are equal")


def conversations(known: Messages | str | None, row: Row, chosen: str, rejected: str) -> Compared:
    """Two columns of messages, each a whole conversation or only what answers `known`, the prompt as messages or text.

    The prompt is what the two have in common; one answer of the assistant has to follow in each. Malformed if not, or
    if they do not begin with the prompt that is known.
    """
    one, other = (_whole(known, messages(row.get(column), column), column) for column in (chosen, rejected))
    if one == other:
        raise Malformed(f"{chosen} and {rejected} are equal")
    if one[:-1] != other[:-1]:
        raise Malformed(f"{chosen} and {rejected} differ before their last message")
    (shared, good), (_, bad) = answered(one, chosen), answered(other, rejected)
    if not shared:
        raise Malformed(f"{chosen} and {rejected} have no prompt in common")
    return Compared(turns(shared, chosen), good, bad)


def _whole(known: Messages | str | None, said: Messages, column: str) -> Messages:
    """A conversation from its beginning. One that begins with the assistant answers the prompt that is known."""
    if known is None:
        return said
    if said[0]["role"] == "assistant":
        return [*([{"role": "user", "content": known}] if isinstance(known, str) else known), *said]
    if isinstance(known, str):
        asked = [(message["content"] or "").strip() for message in said if message["role"] == "user"]
        if known.strip() not in asked:
            raise Malformed(
                f"{column} does not hold the prompt; with prompt_column: null its own beginning is the prompt"
            )
    elif said[: len(known)] != known:
        raise Malformed(f"{column} does not begin with the prompt")
    return said


def _hh(row: Row) -> Iterator[Compared | Unused]:
    """Two whole dialogues, alike up to the last reply."""
    (prompt, chosen), (other, rejected) = (_dialogue(words(row, side)) for side in ("chosen", "rejected"))
    if prompt != other:
        raise Malformed("prompts differ")
    yield Compared(_asked(prompt), chosen, rejected)


def _hh_split(row: Row) -> Iterator[Compared | Unused]:
    """The dialogue up to the last reply, and two replies."""
    yield Compared(_before_reply(row), words(row, "chosen").strip(), words(row, "rejected").strip())


def _before_reply(row: Row) -> Messages:
    prompt, said = _dialogue(words(row, "prompt"))
    if said:
        raise Malformed(f'prompt does not end with "Assistant:" but with {said[-40:]!r}')
    return _asked(prompt)


def _ultrafeedback(row: Row) -> Iterator[Compared | Unused]:
    """Up to four responses, each pair of which is told apart by the mean of its ratings.

    That is `fine-grained_score`; `overall_score`, in which 1 was at times written as 10, is not read.
    """
    rated = [(_number(one, "fine-grained_score"), words(one, "response")) for one in _responses(row, "completions")]
    yield from _every_two(_question(row, "instruction"), rated, "rated")


def _responses(row: Row, column: str) -> list[Row]:
    found = row.get(column)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Malformed(f"{column} is not a list of responses with their scores")
    return found


def _every_two(
    prompt: Messages, rated: list[tuple[float, str]], how: str, sign: int = 1
) -> Iterator[Compared | Unused]:
    """Every two responses whose numbers differ, the higher one chosen; `sign` is that of the number as it is told."""
    if len(rated) < 2:
        yield Unused("fewer than two responses")
    for (i, first), (j, second) in combinations(enumerate(rated), 2):
        part = f"{i}-{j}"
        if first[0] == second[0]:
            yield Unused(f"a tie, both are {how} {sign * first[0]:g}", part)
        elif first[1] == second[1]:
            yield Unused(f"the same text is {how} {sign * first[0]:g} and {sign * second[0]:g}", part)
        else:
            better, worse = (first, second) if first[0] > second[0] else (second, first)
            yield Compared(prompt, better[1], worse[1], part=part)


def _helpsteer2(row: Row) -> Iterator[Compared | Unused]:
    """A prompt whose turns, but for the first, are marked, and how much better the second response is."""
    said = HELPSTEER2_MARK.split(words(row, "prompt"))
    prompt = _asked(_turns(["User", *said]))
    yield _signed(row, "preference_strength", prompt, words(row, "response_1"), words(row, "response_2"))


def _helpsteer3(row: Row) -> Iterator[Compared | Unused]:
    """Messages, and how much better the second response is; the domains are the subsets."""
    sides = words(row, "response1"), words(row, "response2")
    yield _signed(row, "overall_preference", turns(row.get("context"), "context"), *sides, subset=words(row, "domain"))


def _arena(row: Row) -> Iterator[Compared | Unused]:
    """Two conversations with the same person, of which that person preferred one or none.

    From the second turn on each side was asked about its own replies: only equal prompts can be compared.
    """
    winner = words(row, "winner")
    if winner.startswith("tie") or winner == "both_bad":
        yield Unused("a tie")
        return
    if winner not in ("model_a", "model_b"):
        raise Malformed(f"winner is neither model_a nor model_b nor a tie but {winner!r}")
    columns = ["conversation_a", "conversation_b"]
    better_first = columns if winner == "model_a" else columns[::-1]
    (prompt, chosen), (other, rejected) = (answered(row.get(column), column) for column in better_first)
    if prompt == other:
        yield Compared(prompt, chosen, rejected)
    elif min(len(prompt), len(other)) > 1:
        yield Unused("more than one turn, and the conversations differ before the last reply")
    else:
        raise Malformed("prompts differ")


def _reward_bench(row: Row) -> Iterator[Compared | Unused]:
    """A question or messages, the subset that they belong to, and two responses, or lists of good and of bad ones."""
    prompt = turns(row["prompt"], "prompt") if isinstance(row.get("prompt"), list) else _question(row, "prompt")
    subset = words(row, "subset")
    if not isinstance(row.get("chosen"), list):
        yield Compared(prompt, words(row, "chosen"), words(row, "rejected"), subset)
        return
    good, bad = (_texts(row, column) for column in ("chosen", "rejected"))
    for (i, chosen), (j, rejected) in product(enumerate(good), enumerate(bad)):
        yield Compared(prompt, chosen, rejected, subset, "" if len(good) == len(bad) == 1 else f"{i}-{j}")


def _texts(row: Row, column: str) -> list[str]:
    found = row.get(column)
    if not isinstance(found, list) or not found:
        raise Malformed(f"{column} is neither text nor a list of texts")
    return [words({column: text}, column) for text in found]


def _nectar(row: Row) -> Iterator[Compared | Unused]:
    """A dialogue of Anthropic's form up to the last reply, and up to seven replies in order; rank 1 is the best."""
    ranked = [(-_number(one, "rank"), words(one, "answer").strip()) for one in _responses(row, "answers")]
    yield from _every_two(_before_reply(row), ranked, "ranked", sign=-1)


def _pku(row: Row, column: str) -> Iterator[Compared | Unused]:
    """A question, two responses, and which of them is the better (or the safer) one."""
    better = row.get(column)
    if isinstance(better, bool) or better not in (0, 1):
        raise Malformed(f"{column} is neither 0 nor 1 but {better!r}")
    sides = words(row, "response_0"), words(row, "response_1")
    yield Compared(_question(row, "prompt"), sides[int(better)], sides[1 - int(better)])


def _shp(row: Row) -> Iterator[Compared | Unused]:
    """A post, two comments, and whether the first is the better one (1) or the second (0)."""
    first = row.get("labels")
    if isinstance(first, bool) or first not in (0, 1):
        raise Malformed(f"labels is neither 0 nor 1 but {first!r}")
    sides = words(row, "human_ref_B"), words(row, "human_ref_A")
    yield Compared(_question(row, "history"), sides[int(first)], sides[1 - int(first)])


def _webgpt(row: Row) -> Iterator[Compared | Unused]:
    """A question with its full text, and two answers with their scores."""
    question = row.get("question")
    if not isinstance(question, dict):
        raise Malformed("question is not a mapping with full_text")
    rated = [(_number(row, f"score_{side}"), words(row, f"answer_{side}")) for side in (0, 1)]
    yield from _every_two(_question(question, "full_text"), rated, "rated")


def _question(row: Row, column: str) -> Messages:
    return _asked([{"role": "user", "content": words(row, column)}])


def _asked(messages: Messages) -> Messages:
    """A prompt as messages in which the speakers take turns, as many templates demand; the user speaks last."""
    joined = [
        {"role": role, "content": "\n\n".join(message["content"] for message in several)}
        for role, several in groupby(messages, key=lambda message: message["role"])
    ]
    if not joined or joined[-1]["role"] != "user":
        raise Malformed("the prompt does not end with the words of the user")
    if not joined[-1]["content"].strip():
        raise Malformed("the prompt is empty")
    return joined


def _dialogue(text: str) -> tuple[Messages, str]:
    """A dialogue of Anthropic's as what comes before the last reply, and that reply; each without blanks around it."""
    before, *said = HH_MARK.split(text)
    if before.strip() or len(said) < 2 or said[0] != "Human" or said[-2] != "Assistant":
        raise Malformed('not a dialogue that begins with "\\n\\nHuman:" and ends with "\\n\\nAssistant:" and a reply')
    *prompt, reply = _turns(said)
    return prompt, reply["content"]


def _turns(said: list[str]) -> Messages:
    """Messages out of speaker, words, speaker, words ..."""
    return [
        {"role": ROLES[speaker], "content": text.strip()} for speaker, text in zip(said[::2], said[1::2], strict=True)
    ]


def _signed(
    row: Row, column: str, prompt: Messages, first: str, second: str, subset: str | None = None
) -> Compared | Unused:
    """HelpSteer's preference: below 0 the first is better, above 0 the second."""
    strength: Any = row.get(column)
    if isinstance(strength, bool) or strength not in range(-STRONGEST, STRONGEST + 1):  # -2.0, as pandas writes, is -2
        raise Malformed(f"{column} is not a whole number from -{STRONGEST} to {STRONGEST} but {strength!r}")
    if strength == 0:
        return Unused("a tie")
    chosen, rejected = (first, second) if strength < 0 else (second, first)
    return Compared(prompt, chosen, rejected, subset)


def _number(row: Row, column: str) -> float:
    value = row.get(column)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise Malformed(f"{column} is not a number but {value!r}")
    return float(value)


PKU = ("prompt", "response_0", "response_1")
LAYOUTS = {
    "hh-rlhf": Layout(("chosen", "rejected"), _hh),
    "hh-rlhf-split": Layout(("prompt", "chosen", "rejected"), _hh_split),
    "ultrafeedback": Layout(("instruction", "completions"), _ultrafeedback, turns=False),
    "helpsteer2": Layout(("prompt", "response_1", "response_2", "preference_strength"), _helpsteer2),
    "helpsteer3": Layout(
        ("context", "response1", "response2", "overall_preference", "domain", "language"), _helpsteer3, language=True
    ),
    "arena": Layout(("conversation_a", "conversation_b", "winner", "language"), _arena, language=True),
    "reward-bench": Layout(("prompt", "chosen", "rejected", "subset"), _reward_bench),
    "nectar": Layout(("prompt", "answers"), _nectar),
    "pku-saferlhf": Layout((*PKU, "better_response_id"), partial(_pku, column="better_response_id"), turns=False),
    "pku-saferlhf-safer": Layout((*PKU, "safer_response_id"), partial(_pku, column="safer_response_id"), turns=False),
    "shp": Layout(("history", "human_ref_A", "human_ref_B", "labels"), _shp, turns=False),
    "webgpt": Layout(("question", "answer_0", "answer_1", "score_0", "score_1"), _webgpt, turns=False),
}
