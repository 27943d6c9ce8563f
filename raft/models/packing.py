"""Texts as inputs of a model: side by side in one row without padding, or a padded row for each. Pure numpy.

In a packed row, texts that begin alike can share their beginning: it is there once. What each token may see is told by
segments; `raft.models.packed_attention` computes it.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FORWARD = {"cpu": 2048, "cuda": 8192}  # tokens of a forward pass: what a cache holds, and what fills a GPU
MIN_SHARED_PREFIX = 16  # tokens saved, from which on a beginning is shared

Tokens = Sequence[int] | np.ndarray


class Layout(NamedTuple):
    """Texts as one model input: token t of text i is at row `row[i]`, column `places[i][t]`."""

    inputs: dict[str, np.ndarray]
    row: np.ndarray
    places: list[np.ndarray]


def pack(groups: Sequence[Sequence[Tokens]]) -> Layout:
    """One row [1, tokens] without padding: of each group what all its texts begin with, then the rest of each.

    Every rest has at least one token; a group of one text is one segment. Positions are those in the text. The segments
    [1, 1, segments, 4] take the place of an attention mask: start and length of each, start and length of the segment
    that it continues (0, 0 if none). A token sees those before it in its segment, and all that its segment continues.
    """
    pieces: list[Tokens] = []
    positions: list[np.ndarray] = []
    segments: list[tuple[int, int, int, int]] = []
    places: list[np.ndarray] = []
    end = 0

    def add(piece: Tokens, before: int, origin: tuple[int, int]) -> np.ndarray:
        nonlocal end
        pieces.append(piece)
        positions.append(np.arange(before, before + len(piece)))
        segments.append((end, len(piece), *origin))
        end += len(piece)
        return np.arange(end - len(piece), end)

    for texts in groups:
        shared = common(texts)
        origin = (end, shared) if shared else (0, 0)
        beginning = add(texts[0][:shared], 0, (0, 0)) if shared else np.arange(0)
        for text in texts:
            places.append(np.concatenate([beginning, add(text[shared:], shared, origin)]))
    tokens = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
    inputs = {
        "input_ids": tokens[None],
        "position_ids": np.concatenate(positions)[None],
        "attention_mask": np.array(segments)[None, None],
    }
    return Layout(inputs, np.zeros(len(places), dtype=int), places)


def pad(texts: Sequence[Tokens], padding: int = 0) -> Layout:
    """One row for each text [texts, longest], padded on the right with a token that the attention mask hides."""
    longest = max(map(len, texts))
    tokens = np.full((len(texts), longest), padding, dtype=np.int64)
    mask = np.zeros_like(tokens)
    for place, text in enumerate(texts):
        tokens[place, : len(text)] = text
        mask[place, : len(text)] = 1
    places = [np.arange(len(text)) for text in texts]
    return Layout({"input_ids": tokens, "attention_mask": mask}, np.arange(len(texts)), places)


def common(texts: Sequence[Tokens]) -> int:
    """How many tokens the texts begin with together, but for the last of the shortest.

    0 for a single text, and where sharing would save fewer than `MIN_SHARED_PREFIX` tokens: it costs a little, too.
    """
    shared = _alike(texts) if len(texts) > 1 else 0
    return shared if shared * (len(texts) - 1) >= MIN_SHARED_PREFIX else 0


def _alike(texts: Sequence[Tokens]) -> int:
    shortest = min(map(len, texts)) - 1
    beginnings = np.array([text[:shortest] for text in texts])
    apart = np.flatnonzero((beginnings != beginnings[0]).any(0))
    return int(apart[0]) if len(apart) else shortest


def size(texts: Sequence[Tokens]) -> int:
    """How many tokens a group has in a packed row."""
    return sum(map(len, texts)) - common(texts) * (len(texts) - 1)


Place = tuple[int, int]  # a text by its group and its number there


def batches(groups: Sequence[Sequence[Tokens]], capacity: int, packed: bool) -> list[list[list[Place]]]:
    """Forward passes of at most `capacity` tokens, but for a single longer text; each by groups, whole or parted.

    Packed passes are evenly filled; padded ones hold texts of like length, each a group of its own.
    """
    if not packed:
        single = [(number, at) for number, group in enumerate(groups) for at in range(len(group))]
        placed = rows([len(groups[number][at]) for number, at in single], capacity)
        return [[[single[place]] for place in places] for places in placed]
    parts: list[list[Place]] = []
    sizes: list[int] = []
    for number, group in enumerate(groups):
        begin = 0
        while begin < len(group):
            end = len(group)
            while (taken := size(group[begin:end])) > capacity and end - begin > 1:
                end = begin + (end - begin + 1) // 2
            parts.append([(number, at) for at in range(begin, end)])
            sizes.append(taken)
            begin = end
    return [[parts[place] for place in places] for places in bins(sizes, capacity)]


def bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of what has these sizes in few, evenly filled bins of at most `capacity`; what is larger has its own.

    Longest first, each into the emptiest bin (Graham's LPT rule), with the fewest bins for which that holds.
    """
    count = min(len(sizes), -(-sum(sizes) // capacity))
    while True:
        spread = _spread(sizes, count)
        if all(len(places) == 1 or sum(sizes[place] for place in places) <= capacity for places in spread):
            return spread
        count += 1


def _spread(sizes: Sequence[int], count: int) -> list[list[int]]:
    spread: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for place in longest_first(sizes):
        load, number = emptiest[0]
        spread[number].append(place)
        heapq.heapreplace(emptiest, (load + sizes[place], number))
    return spread


def rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of the texts in batches of like length: rows times the longest is at most `capacity`, but for one row."""
    batches: list[list[int]] = []
    for place in longest_first(lengths):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > capacity:
            batches.append([])
        batches[-1].append(place)
    return batches


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Places by falling length; equals stay in order."""
    return sorted(range(len(lengths)), key=lambda place: -lengths[place])
