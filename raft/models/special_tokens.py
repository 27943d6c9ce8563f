"""Special tokens in texts: special where a template writes them, ordinary text where a message contains them.

A tokenizer reads `<|im_end|>` as the end of a turn anywhere, so a message could end its own turn. `hide` puts
a stand-in for each such spelling into what a template is given; `encode` reads a text with stand-ins as if they were
the words, and the marks around them as marks. A text without stand-ins is encoded as the tokenizer does it.
"""

import json
import re
import secrets
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from raft.core.errors import RowError

NUMBER = str(secrets.randbelow(10**18)).zfill(18)  # nobody's data can hold it
OPEN, CLOSE = "\ufdd0", "\ufdd1"  # no characters, which no text of anybody holds
STAND_IN = re.compile(f"{OPEN}{NUMBER}-(\\d+){CLOSE}")


class Marks:
    """The special tokens of a tokenizer, by their spellings."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.ids = {str(token): number for number, token in added.items() if token.special}
        for spelling in tokenizer.all_special_tokens:
            self.ids.setdefault(spelling, tokenizer.convert_tokens_to_ids(spelling))
        self.spellings = sorted(filter(None, self.ids), key=lambda text: (-len(text), text))
        self.pattern = re.compile("|".join(map(re.escape, self.spellings)) or "(?!)")
        self.known = frozenset(self.ids.values()) - {tokenizer.unk_token_id, None}

    def hide(self, value: Any) -> Any:
        """The value, messages for instance, with a stand-in for each special token that its texts spell."""
        if isinstance(value, str):
            return self.pattern.sub(lambda match: f"{OPEN}{NUMBER}-{self.spellings.index(match[0])}{CLOSE}", value)
        if isinstance(value, dict):
            return {name: self.hide(item) for name, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def reveal(self, text: str) -> str:
        """The text with its own words in the place of stand-ins."""
        return STAND_IN.sub(lambda match: self.spellings[int(match[1])], text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, with nothing added. RowError if text cannot be distinguished from special tokens."""
        if not texts:
            return []
        plain = ["" if _has_stand_in(text) else text for text in texts]
        encoded = self.tokenizer(plain, add_special_tokens=False)["input_ids"]
        return [
            ids if not _has_stand_in(text) and self._count(ids) <= self._written(text) else self._encode_words(text)
            for ids, text in zip(encoded, texts, strict=True)
        ]

    def _count(self, ids: Sequence[int]) -> int:
        return 0 if self.known.isdisjoint(ids) else sum(token in self.known for token in ids)

    def _written(self, text: str) -> int:
        return sum(self.ids[spelling] in self.known for spelling in self.pattern.findall(text))

    def _encode_words(self, text: str) -> list[int]:
        """Tokens of a text in which words spell special tokens, by a tokenizer whose special tokens are renamed."""
        pieces = STAND_IN.split(text)  # alternately the text between stand-ins, and their numbers
        marked = [self.pattern.sub(lambda match: _name(self.ids[match[0]]), piece) for piece in pieces[::2]]
        words = [self.spellings[int(number)] for number in pieces[1::2]]
        written = "".join(part for pair in zip(marked, [*words, ""], strict=True) for part in pair)
        tokenizer = self._renamed
        if tokenizer is None or any(map(_has_stand_in, pieces[::2])):
            raise RowError(f"spells a special token ({words[0] if words else 'in another form'}){CANNOT}")
        ids = tokenizer.encode(written, add_special_tokens=False).ids
        if self._count(ids) > sum(map(self._written, pieces[::2])):
            raise RowError(f"spells a special token ({words[0] if words else 'in another form'}){CANNOT}")
        return ids

    @cached_property
    def _renamed(self) -> Any:
        """The same tokenizer with special tokens that no text spells; None where it cannot be made."""
        from tokenizers import Tokenizer

        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        parts = json.loads(backend.to_str())
        parts["truncation"] = parts["padding"] = None
        for token in parts["added_tokens"]:
            token["content"] = self._rename(token["content"])
        _rename_model(parts["model"], self._rename)
        try:
            renamed = Tokenizer.from_str(json.dumps(parts))
        except Exception:  # the library raises nothing narrower
            return None
        return renamed if all(renamed.token_to_id(_name(number)) == number for number in self.ids.values()) else None

    def _rename(self, spelling: str) -> str:
        return _name(self.ids[spelling]) if spelling in self.ids else spelling


CANNOT = ", and this tokenizer or its template cannot write that as plain words; take it out of the text"


@lru_cache(maxsize=8)
def of(tokenizer: Any) -> Marks:
    """The special tokens of a tokenizer."""
    return Marks(tokenizer)


def _has_stand_in(text: str) -> bool:
    """Whether a text holds a stand-in, or what a template left of one."""
    return OPEN in text or NUMBER in text


def _name(number: int) -> str:
    return f"{OPEN}{NUMBER}={number}{CLOSE}"


def _rename_model(model: dict[str, Any], rename: Any) -> None:
    """The vocabulary of any model of the tokenizers library, and what in it refers to a token by its spelling."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {rename(spelling): number for spelling, number in vocab.items()}
    else:
        model["vocab"] = [[rename(spelling), *rest] for spelling, *rest in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = rename(model["unk_token"])
    if "merges" in model:
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if all(rename(piece) == piece for piece in (*pair, "".join(pair)))]
