"""What a solution comes to, a number, a letter or words, and whether the reference says the same.

Numbers are compared by their exact values, so 1/2, 0.5, 50% and \\frac{1}{2} are one. Every pattern takes time in
proportion to the text. What is not a plain number (roots, intervals, formulas) is compared as words; the rule
`math_verify` knows more of it.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

MARK = "####"  # GSM8K writes the answer behind it, at the end of a worked solution
LONGEST = 400  # digits, and exponents, beyond which a number is the answer to nothing
WORDS = 200  # characters of a reference that is not a number

VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"}
SIGNS = str.maketrans(dict.fromkeys("−–‑﹣－", "-") | {"⁄": "/", "％": "%", "’": "'"})
LATEX = [
    (r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname|textit)\s?\{([^{}]*)\}", r" \1 "),
    (r"\\(?:left|right|displaystyle)\b|\\[()\[\]]", " "),
    (r"(?<=\d)(?:\{,\}|,?\\[,!;: ])(?=\d{3})", ""),
    (r"\\[dtc]?frac\s?\{\s?(-?\d+(?:\.\d+)?)\s?\}\s?\{\s?(\d+(?:\.\d+)?)\s?\}", r"\1/\2"),
    (r"\\[dtc]?frac\s?(\d)\s?(\d)", r"\1/\2"),
    (r"\\([$%#&_])", r"\1"),
]
NUMERIC = [
    (r"(?<=\d)\s?(?:\\times|\\cdot|×|x|\*)\s?10\s?\^\s?\{?(-?\d{1,9})\}?", r"e\1"),
    (r"(?<=[A-Za-z}])\s?\^\s?\{?-?[123]\}?|(?<!\d[eE])(?<=[A-Za-z])[23]\b|\^?\{?\\circ\}?|°", " "),
    (r"-\s?[$€£¥₹]\s?(?=[\d.])", "-"),
    (r"[$€£¥₹]", " "),
    (r"(?<=\d)\s?per\s?cent\b", "%"),
]
GROUPED = r"\d{1,3}(?:[,'_\u00a0\u2009\u202f]\d{3})+(?![\d,])|\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])"
NUMBER = re.compile(
    r"(?P<sign>(?:(?<![\w)])-)?)(?:"
    r"(?<![\d/.,])(?:(?P<whole>\d{1,9}) )?(?P<up>\d+(?:\.\d+)?)/(?P<down>\d+(?:\.\d+)?)(?![\d/])"
    rf"|(?P<plain>(?:{GROUPED}|\d+)(?:\.\d+)?|\.\d+)(?:[eE](?P<power>[-+]?\d+))?(?P<percent>\s?%)?)"
)
UNIT = r"(?:\s?%|\s*(?!(?:pi|[a-df-z])\b)[A-Za-zµ][A-Za-zµ/.\s]*|\s[gmsLhJNWVKACF]\b)?[\s.]*"
LETTER = re.compile(r"\(?([A-Za-z])\)?[.):]?")
CHOICES = [
    r"\b(?i:answer|choice|option)\b(?i:\s+(?:is|would\s+be|choice))?[\s:*]*(?:\(([A-Za-z])\)|([A-Z]))(?![\w'])",
    r"\(([A-Za-z])\)",
]


@dataclass(frozen=True, eq=False)
class Number:
    """A number, and whether a per cent sign follows it."""

    value: Fraction
    percent: bool

    def __eq__(self, other: object) -> bool:
        """By value; if only one of the two has a per cent sign, the other may be that number or a hundredth of it."""
        if not isinstance(other, Number):
            return False
        if self.value == other.value:
            return True
        share, plain = (self, other) if self.percent else (other, self)
        return share.percent and not plain.percent and share.value == 100 * plain.value


class Reference(NamedTuple):
    """The right answer: a number, a letter of a multiple choice, or words on one line."""

    number: Number | None
    letter: str | None
    words: str

    @classmethod
    def of(cls, value: Any) -> "Reference":
        """What a reference says, behind #### or in \\boxed{} where it is a worked solution. ValueError if not one."""
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"is {value!r:.80}; give a number, a letter, or words on one line")
        text = stated(str(value)) or str(value).strip()
        if not text or "\n" in text or len(text) > WORDS:
            raise ValueError(
                f"has {len(text.splitlines())} lines and {len(text)} characters, which no answer equals; give a "
                f"number, a letter or words on one line, or a solution that ends in {MARK} and its answer"
            )
        letter = LETTER.fullmatch(text)
        return cls(number(text), letter[1] if letter else None, text)


def matches(reference: Reference, response: str, ignore_case: bool = True) -> bool:
    """Whether a response comes to the reference: in \\boxed{} or behind #### where it says so, at its end otherwise."""
    answer = stated(response)
    if reference.number is not None:
        value = number(answer) if answer is not None else None
        return (
            value if value is not None or _is_boxed(response) else last_number(answer or response)
        ) == reference.number
    if reference.letter is not None:
        found_letter = _letter(response if answer is None else answer)
        return found_letter is not None and _folded(found_letter, ignore_case) == _folded(reference.letter, ignore_case)
    line = response.strip().rpartition("\n")[2] if answer is None else answer
    tail = re.split(r"(?i)\banswer(?:\s+is)?\s*:?\s+", line)[-1]
    return _folded(reference.words, ignore_case) in (_folded(line, ignore_case), _folded(tail, ignore_case))


def says(reference: Reference, answer: str, ignore_case: bool = True) -> bool:
    """Whether an answer that was cut out of a response is the reference."""
    if reference.number is not None:
        return number(answer) == reference.number
    letter = LETTER.fullmatch(answer.strip())
    words = letter[1] if letter and reference.letter else answer
    return _folded(words, ignore_case) == _folded(reference.letter or reference.words, ignore_case)


def stated(text: str) -> str | None:
    """What a text marks as its answer: the last \\boxed{}, or the line behind the last ####; None if it marks none."""
    if (boxed := _boxed(text)) is not None:
        return boxed.strip()
    _, mark, rest = text.rpartition(MARK)
    return rest.strip().partition("\n")[0].strip() if mark else None


def number(text: str) -> Number | None:
    """The number that a short text is, with its sign of money or unit; None if it is not a number."""
    plain = re.sub(r"^\s*\\?[A-Za-z]\w*\s*=\s*", "", _substituted(text, LATEX + NUMERIC)).strip()
    match = NUMBER.match(plain)
    return _value(match) if match and re.fullmatch(UNIT, plain[match.end() :]) else None


def last_number(text: str) -> Number | None:
    """The last number in a text that can be an answer, else None."""
    last = None
    for match in NUMBER.finditer(_substituted(text, LATEX + NUMERIC)):
        last = match
    return None if last is None else _value(last)


def _value(match: re.Match[str]) -> Number | None:
    parts = {name: re.sub(r"[^\d.+-]", "", part) for name, part in match.groupdict(default="").items() if part}
    if any(len(part) > LONGEST for part in parts.values()) or abs(int(parts.get("power", "0"))) > LONGEST:
        return None
    if "plain" in parts:
        size = Fraction(parts["plain"]) * Fraction(10) ** int(parts.get("power", "0"))
    elif Fraction(parts["down"]):
        size = int(parts.get("whole", "0")) + Fraction(parts["up"]) / Fraction(parts["down"])
    else:
        return None
    return Number(-size if "sign" in parts else size, match["percent"] is not None)


def _letter(text: str) -> str | None:
    """The letter of the choice that a text comes to, None if it names none."""
    text = _substituted(text, LATEX)
    for pattern in CHOICES:
        if letters := re.findall(pattern, text):
            return "".join(letters[-1])
    line = text.strip().rpartition("\n")[2].strip("*$ \t.")
    found_letter = re.fullmatch(r"([A-Za-z])[.):]?", line) or re.match(r"([A-Z])[.):]\s", line)
    return found_letter[1] if found_letter else None


def _boxed(text: str) -> str | None:
    """The content of the last \\boxed{} with its braces closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for at in range(begin, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[begin + 1 : at]
    return None


def _is_boxed(text: str) -> bool:
    return _boxed(text) is not None


def _substituted(text: str, rules: list[tuple[str, str]]) -> str:
    text = text.translate(SIGNS)
    text = re.sub(rf"(\d?)\s?([{''.join(VULGAR)}])", lambda match: f"{match[1]} {VULGAR[match[2]]}".strip(), text)
    text = re.sub(r"(?<=\d)(?=\\[dtc]?frac)", " ", text)
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _folded(text: str, ignore_case: bool) -> str:
    """Words without white space, dollar signs and emphasis around them, and the full stop at their end."""
    text = re.sub(r"\s", "", _substituted(text, LATEX)).strip("*$\"'`").rstrip(".").strip("*$\"'`")
    return text.casefold() if ignore_case else text
