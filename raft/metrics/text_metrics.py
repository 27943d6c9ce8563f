"""What a reward cannot say of itself: diversity, length, drift, agreement. Pure functions on arrays and texts.

A reward that rises tells nothing of how it rose. These figures describe the answers themselves, and the distance that
a policy has come; `alerts` says when to worry. Arrays are [N, K]: N prompts, K responses each, NaN where unknown.
Means over prompts count each prompt once. docs/diagnostics.md says what each figure means.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from raft.metrics.reward_metrics import prompt_means

# Han, Hiragana and Katakana with their marks of repetition and length: scripts that put no space between words
UNSPACED = (
    "\u3005\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
SYMBOL = re.compile(r"[^\w\s]")
SEGMENT = 100  # words of a segment of MSTTR-100
PAIRS = 2**20  # of values whose order is compared at once
RISEN = 4.0  # z from which an n-gram has risen: of many thousands, hardly one gets there by chance

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Rise:
    """An n-gram or symbol that a larger share of answers contains `now` than `before`, `z` standard errors more."""

    text: str
    now: float
    before: float
    z: float


@dataclass(frozen=True)
class Longest:
    """The share of winners that are the longest of their group, what chance gives, and the distance in errors `z`."""

    share: float
    chance: float
    z: float


def words(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation.

    A word is a run of letters, digits and underscores, but each character of Han, Hiragana and Katakana is a word of
    its own: Japanese and Chinese put no space between words. Hangul is in runs, as Korean writes spaces.
    """
    return WORD.findall(text.lower())


def grams(text: str, n: int) -> list[Gram]:
    """The n-grams of a text's words, in order; none if it has fewer than n words."""
    found = words(text)
    return [tuple(found[at : at + n]) for at in range(len(found) - n + 1)]


def absorbed(before: np.ndarray, now: np.ndarray, learned: np.ndarray | None = None) -> float:
    """How much of the headroom that a policy was trained on it has made its own: 0 nothing, 1 caught up.

    (mean now - mean before) / (best of K before - mean before), of rewards [N, K] of the policy before and of the one
    trained on its winners. The two may answer different prompts. `learned` are the rewards that the winners were taken
    from, where those are not `before` itself. NaN where there was no headroom.
    """
    means, bests = prompt_means(before), np.fmax.reduce(before if learned is None else learned, axis=-1)
    start, best = (float(np.nanmean(one)) if not np.isnan(one).all() else math.nan for one in (means, bests))
    known = prompt_means(now)
    if np.isnan(known).all() or not best > start:
        return math.nan
    return (float(np.nanmean(known)) - start) / (best - start)


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """The table of the RAFT paper (arXiv:2304.06767, after GEM-metrics), on answers in their given order.

    distinct-n: different n-grams / all n-grams. unique-n: how many n-grams occur exactly once (a count). MSTTR-100:
    all words in a row, cut into segments of 100, the mean share of different words in a segment; the rest is left out.
    n-grams do not reach over the end of an answer. distinct-n falls as texts grow longer or more; MSTTR does not.
    What cannot be taken (no n-gram, fewer than 100 words) is left out.
    """
    figures: dict[str, float] = {}
    for n in (1, 2):
        counts = _counted(texts, n)
        if counts:
            figures[f"distinct_{n}"] = len(counts) / counts.total()
            figures[f"unique_{n}"] = float(sum(count == 1 for count in counts.values()))
    row = list(chain.from_iterable(map(words, texts)))
    segments = [row[at : at + SEGMENT] for at in range(0, len(row) - SEGMENT + 1, SEGMENT)]
    if segments:
        figures["msttr_100"] = sum(len(set(segment)) for segment in segments) / (SEGMENT * len(segments))
    return figures


def distinct_kept(now: Sequence[str], before: Sequence[str], n: int = 2) -> float:
    """The different n-grams among equally many, relative to those of other texts; 1 is as diverse as before.

    Both are the expected number of different ones among m n-grams drawn without replacement (Hurlbert 1971), m the
    smaller number of the two: so texts that merely grew longer or more do not look poorer. NaN without any n-gram.
    """
    counts = [_counted(texts, n) for texts in (now, before)]
    drawn = min(one.total() for one in counts)
    if not drawn:
        return math.nan
    found, expected = (expected_distinct(one.values(), drawn) for one in counts)
    return found / expected


def expected_distinct(counts: Iterable[int], drawn: int) -> float:
    """How many kinds are expected among `drawn` things out of `counts` of each kind, drawn without replacement.

    The sum over kinds of 1 - C(N - count, drawn) / C(N, drawn), N all things (Hurlbert 1971).
    """
    alike = Counter(counts)
    total = sum(count * kinds for count, kinds in alike.items())
    assert 0 <= drawn <= total, f"{drawn} cannot be drawn from {total}"
    return sum(kinds * (1 - _missed(total, count, drawn)) for count, kinds in alike.items())


def repeats(texts: Sequence[str]) -> list[bool]:
    """Which responses of a group have the text of an earlier one: what `filters: [duplicate]` leaves out."""
    first: dict[str, int] = {}
    return [first.setdefault(text, at) != at for at, text in enumerate(texts)]


def twins(texts: Sequence[str]) -> list[bool]:
    """Which responses of a group have the text of another one, earlier or later."""
    counts = Counter(texts)
    return [counts[text] > 1 for text in texts]


def same_text(groups: Iterable[Sequence[str]]) -> float:
    """The chance that two answers to the same prompt are the same text: equal pairs / pairs, mean over prompts.

    Unbiased for any K; 1 is a policy with one answer. NaN if every prompt has a single answer.
    """
    shares = [
        sum(count * (count - 1) for count in Counter(texts).values()) / (len(texts) * (len(texts) - 1))
        for texts in groups
        if len(texts) > 1
    ]
    return sum(shares) / len(shares) if shares else math.nan


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's rank correlation tau-b of two arrays [K]: pairs in the same order less pairs in the opposite order,
    over the root of the pairs untied in a times those untied in b. NaN where a or b has no spread.

    Without ties its expectation is the same for every K (Spearman's is not), and (1 + tau) / 2 is the chance that the
    two agree on a pair. Counted by sorting (Knight 1966): no K^2 of time or memory.
    """
    known = ~(np.isnan(a) | np.isnan(b))
    order = np.lexsort((b[known], a[known]))
    a, b = a[known][order], b[known][order]
    pairs, both = math.comb(len(a), 2), np.stack([a, b], axis=1)
    tied_a, tied_b, tied_both = (_tied_pairs(np.unique(one, axis=0, return_counts=True)[1]) for one in (a, b, both))
    agree = pairs - tied_a - tied_b + tied_both - 2 * _inversions(b)
    return _tau(agree, pairs - tied_a, pairs - tied_b)


def within_prompts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each prompt's values [N, K], [N]; NaN for a prompt without spread in either."""
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = (np.where(known, values, np.nan) for values in (a, b))
    rows = max(PAIRS // max(a.shape[-1] ** 2, 1), 1)
    return np.concatenate(
        [np.empty(0), *(_taus(a[at : at + rows], b[at : at + rows]) for at in range(0, len(a), rows))]
    )


def _taus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As `within_prompts`, all pairs of these prompts at once."""
    in_a, in_b = (np.nan_to_num(np.sign(one[:, :, None] - one[:, None, :])) for one in (a, b))
    sums = ((one.sum(axis=(1, 2)) / 2).astype(int).tolist() for one in (in_a * in_b, np.abs(in_a), np.abs(in_b)))
    return np.array([_tau(*counts) for counts in zip(*sums, strict=True)], dtype=float)


def _tau(agree: int, untied_a: int, untied_b: int) -> float:
    return agree / math.sqrt(untied_a * untied_b) if untied_a and untied_b else math.nan


def _tied_pairs(counts: np.ndarray) -> int:
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values: np.ndarray) -> int:
    """How many pairs stand in descending order, counted while blocks of 2, 4, 8, ... are sorted."""
    found, half = 0, 1
    padded = np.full(1 << max(len(values) - 1, 0).bit_length(), np.inf)
    padded[: len(values)] = values
    while half < len(padded):
        blocks = padded.reshape(-1, 2 * half)
        order = np.argsort(blocks, axis=1, kind="stable")
        of_right = np.nonzero(order >= half)[1]  # where the right half's values go in their sorted block
        found += len(blocks) * (half * half + half * (half - 1) // 2) - int(of_right.sum())
        padded, half = np.take_along_axis(blocks, order, axis=1).ravel(), 2 * half
    return found


def longest(lengths: np.ndarray, rows: np.ndarray, picks: np.ndarray) -> Longest:
    """How many winners are the longest of their group; `rows` and `picks` [M] say where they stand in lengths [N, K].

    Chance is the mean share of longest responses in the winners' groups, and z = (hits - sum p) / sqrt(sum p (1 - p)),
    p the share in each group. Groups of one length are left out; all are NaN if none is left. Lengths are NaN behind
    the end of a smaller group.
    """
    tops, sizes = lengths == np.fmax.reduce(lengths, axis=1)[:, None], (~np.isnan(lengths)).sum(axis=1)
    rows, picks = (where[(tops.sum(axis=1) < sizes)[rows]] for where in (rows, picks))
    if not len(rows):
        return Longest(math.nan, math.nan, math.nan)
    hits, chances = tops[rows, picks], (tops.sum(axis=1) / sizes)[rows]
    z = float((hits - chances).sum() / np.sqrt((chances * (1 - chances)).sum()))
    return Longest(float(hits.mean()), float(chances.mean()), z)


def against_random(
    values: np.ndarray, rows: np.ndarray, picks: np.ndarray, fair: int | None = None
) -> tuple[float, float]:
    """The mean of the winners' values, and of what a random response of the same groups has on average.

    `values` are [N, K]; `rows` and `picks` [M] say where the winners stand in them. The random one is among the first
    `fair` of its group, where the others were drawn because of those.
    """
    if not len(rows):
        return math.nan, math.nan
    return float(values[rows, picks].mean()), float(values[rows, :fair].mean())


def rising(now: Sequence[str], before: Sequence[str], prompts: int, top: int = 5) -> list[Rise]:
    """The n-grams of 1 to 3 words, and single symbols such as "#", that a larger share of answers contains than before.

    z is of two proportions with pooled variance, (p - q) / sqrt(2 m (1 - m) / prompts), m = (p + q) / 2. Its size is
    the number of prompts and not of answers: answers to one prompt resemble each other, so z errs to the safe side.
    At least RISEN; the largest first, of equals the longest, and none that shares a word with one before it.
    """
    if not (now and before and prompts):
        return []
    shares = [_containing(texts) for texts in (now, before)]
    found = [(_z(share, shares[1].get(gram, 0.0), prompts), gram) for gram, share in shares[0].items()]
    listed: set[str] = set()
    rises: list[Rise] = []
    for z, gram in sorted(found, key=lambda one: (-one[0], -len(one[1]), one[1])):
        if z < RISEN or len(rises) == top:
            break
        if not listed.intersection(gram):
            listed.update(gram)
            rises.append(Rise(_written(gram), shares[0][gram], shares[1].get(gram, 0.0), z))
    return rises


def ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The sum of all sums over the sum of all counts, [N, K] each, and its standard error over prompts.

    With minus the log-probabilities of generated tokens and their numbers this is the mean surprise of a token in
    nats: an unbiased estimate of the entropy per token where answers were drawn at temperature 1 and top_p 1, as each
    token's surprise has the entropy of its place for an expectation. A response with a NaN is left out.
    The error is that of a ratio: the residuals sum - ratio * count of prompts, over all counts. Both NaN if nothing is
    known, the error if fewer than two prompts are.
    """
    known = ~np.isnan(sums)
    totals = np.where(known, sums, 0.0).sum(axis=-1)
    sizes = np.where(known, counts, 0).sum(axis=-1)
    totals, sizes = totals[sizes > 0], sizes[sizes > 0]
    if not len(sizes):
        return math.nan, math.nan
    found = float(totals.sum() / sizes.sum())
    if len(sizes) < 2:
        return found, math.nan
    spread = ((totals - found * sizes) ** 2).sum() * len(sizes) / (len(sizes) - 1)
    return found, float(np.sqrt(spread) / sizes.sum())


def log_ratios(policy: np.ndarray, first: np.ndarray) -> np.ndarray:
    """log p_i(y|x) - log p_0(y|x) of answers that p_i drew, [N, K] in nats: each an unbiased estimate of
    KL(p_i || p_0) on its prompt, if they were drawn at temperature 1 and top_p 1.

    The estimator r - 1 - log r with r = p_0 / p_i is never negative and has the same expectation, but of whole answers
    it would mislead: r is about 0 for nearly all, and its mean of 1 is made by answers that p_i draws with a chance of
    about exp(-KL), which no finite evaluation sees. It then reads KL - 1, with an error that does not show it.
    """
    return policy - first


def perplexity(logprobs: np.ndarray, tokens: np.ndarray) -> float:
    """exp(- sum of log-probabilities / sum of tokens) of given responses [N]: per token, over all of them together."""
    return math.exp(-float(logprobs.sum()) / int(tokens.sum())) if tokens.sum() else math.nan


def _counted(texts: Iterable[str], n: int) -> Counter[Gram]:
    return Counter(chain.from_iterable(grams(text, n) for text in texts))


def _missed(total: int, count: int, drawn: int) -> float:
    """C(total - count, drawn) / C(total, drawn): the chance that none of `count` things is drawn."""
    if drawn > total - count:
        return 0.0
    logs = [total - count, total - drawn, total - count - drawn, total]
    above, beside, left, all_of = (math.lgamma(one + 1) for one in logs)
    return math.exp(above + beside - left - all_of)


def _containing(texts: Sequence[str]) -> dict[Gram, float]:
    """The share of texts that contain each n-gram and symbol."""
    counts: Counter[Gram] = Counter()
    for text in texts:
        found = words(text)
        single = zip([*found, *SYMBOL.findall(text)], strict=True)
        counts.update({*single, *pairwise(found), *zip(found, found[1:], found[2:], strict=False)})
    return {gram: count / len(texts) for gram, count in counts.items()}


def _z(now: float, before: float, size: int) -> float:
    mean = (now + before) / 2
    return (now - before) / math.sqrt(2 * mean * (1 - mean) / size) if 0 < mean < 1 else 0.0


def _written(gram: Gram) -> str:
    """An n-gram as it stands in a text."""
    return ("" if all(re.fullmatch(f"[{UNSPACED}]", word) for word in gram) else " ").join(gram)
