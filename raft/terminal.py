"""What may reach a terminal. Model output is hostile text: an escape sequence in it must not act."""

import sys
import unicodedata

HARMLESS = "\n\t"
DIRECTIONS = {"\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"}


def safe(text: str) -> str:
    """The text with control characters, and characters that turn the direction of writing, made visible."""
    return "".join(_visible(one) if one not in HARMLESS else one for one in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cs") or character in DIRECTIONS:
        return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
    return character


def say(text: str = "") -> None:
    """A line on standard output, at once, whatever the terminal's encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
