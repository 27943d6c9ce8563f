"""What may reach a terminal. Model output is hostile text: an escape sequence in it must not act."""

import os
import sys
import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

HARMLESS = "\n\t"
DIRECTIONS = {"\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"}

aside: Callable[[], AbstractContextManager[object]] = nullcontext  # clears what is drawn at the cursor for a message


def safe(text: str) -> str:
    """The text with control characters, and characters that turn the direction of writing, made visible."""
    return "".join(_visible(character) if character not in HARMLESS else character for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cs") or character in DIRECTIONS:
        return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
    return character


def say(text: str = "") -> None:
    """A line on standard output, at once and harmless, whatever the terminal's encoding."""
    _write(text, sys.stdout)


def complain(text: str) -> None:
    """A message on standard error, at once and harmless: it quotes files and programs of others."""
    _write(text, sys.stderr)


def _write(text: str, stream: TextIO | None) -> None:
    if stream is None:  # closed before the process began
        return
    encoding, text = stream.encoding or "utf-8", safe(text)
    with aside():
        print(text.encode(encoding, errors="replace").decode(encoding), file=stream, flush=True)


def rounded(value: float) -> str:
    """A measured number as a person reads it: 12,000, 0.4286, 3.2e-05."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def draws(stream: TextIO) -> bool:
    """Whether it is a terminal on which something can be drawn again in its place."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def size(stream: TextIO) -> os.terminal_size:
    """The columns and rows of a terminal; 80 and 24 for one that does not say."""
    columns, rows = os.get_terminal_size(stream.fileno())
    return os.terminal_size((columns or 80, rows or 24))


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half a character (a lone surrogate) cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
