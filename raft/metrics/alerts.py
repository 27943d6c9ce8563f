"""When to worry: from the rows of metrics.jsonl to findings in plain sentences; docs/diagnostics.md has the rules.

A reward model is a stand-in for what is meant, and training finds where the two part. None of these rules proves
that; each is a reason to look at the answers (`raft show`). Where a gold reward has risen and still holds, a
change of style is what was wanted, so rules of style then say "watch" at most.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raft.core.options import faults_of_range

Rows = Sequence[dict[str, Any]]  # of metrics.jsonl, as far as the run has come
Level = Literal["ok", "watch", "warning"]

NORMAL_95 = 1.96
CLEAR = 4.0  # standard errors beyond which winners are the longest by more than chance
RARE = 0.5  # an n-gram has risen only if it was at most this fraction as frequent at first
# From which value on a figure is "watch", and from which "warning". Where the second is smaller, small is bad.
LIMITS: dict[str, tuple[float, float]] = {
    "length": (1.5, 2.0),  # times the tokens of the first policy's answers
    "length-reward": (0.3, 0.5),  # Kendall's tau of reward and length within prompts
    "diversity": (0.8, 0.6),  # times the different bigrams of the first policy, among equally many
    "n-grams": (0.25, 0.5),  # more of all answers than at first
    "entropy": (0.5, 0.2),  # times the first policy's nats per token
    "duplicates": (0.25, 0.5),  # more chance of the same text twice than at first
    "agreement": (0.25, 0.1),  # Kendall's tau of reward and gold within prompts, plus two standard errors
    "ties": (0.5, 0.8),  # of the prompts
    "truncated": (0.2, 0.5),  # of the answers
    "empty": (0.05, 0.2),  # of the answers
    "unscored": (0.01, 0.05),  # of the answers, by the reward or by gold
}
STYLE = ("length", "length-reward", "diversity", "n-grams", "entropy", "duplicates")
SEVERITY: dict[Level, int] = {"ok": 0, "watch": 1, "warning": 2}


@dataclass(frozen=True)
class Finding:
    """What a rule says: `message` has the numbers, what they mean, and what to do."""

    name: str
    level: Level
    message: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What is done where the figures of a run give reason to worry (docs/diagnostics.md).

    `stop` ends the run after the iteration that a rule warns of. `patience` is how many evaluations may pass without
    a gain of held-out reward. `ignore` names rules that are not asked.
    """

    on_warning: Literal["warn", "stop"] = "warn"
    patience: int = 3
    ignore: list[
        Literal[
            "gain", "gold", "agreement", "length", "length-reward", "n-grams",
            "diversity", "entropy", "duplicates", "ties", "truncated", "empty", "unscored",
        ]
    ] = field(default_factory=list)  # fmt: skip

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, patience=(1, float("inf")))


def advise(rows: Rows, options: Advice) -> list[Finding]:
    """The findings of all rules that are not ignored and whose figures were measured, on rows in ascending order."""
    found = [rule(rows, options) for name, rule in RULES.items() if name not in options.ignore]
    blessed = _gold_holds(rows)
    return [_softened(one) if blessed and one.name in STYLE else one for one in found if one is not None]


def warnings(findings: Sequence[Finding]) -> list[Finding]:
    """Those of level warning."""
    return [one for one in findings if one.level == "warning"]


def stops(findings: Sequence[Finding], options: Advice) -> bool:
    """Whether the run is to end here."""
    return options.on_warning == "stop" and bool(warnings(findings))


def worse(findings: Sequence[Finding], told: dict[str, Level]) -> list[Finding]:
    """The findings beyond ok that are more severe than what was last told of the same rule."""
    return [one for one in findings if SEVERITY[one.level] > SEVERITY[told.get(one.name, "ok")]]


def _gain(rows: Rows, options: Advice) -> Finding | None:
    """No gain of held-out reward in `patience` evaluations, beyond a standard error (the RAFT paper stops there)."""
    key = "reward/eval" if _series(rows, "reward/eval") else "gold/eval"
    series = _series(rows, key)
    if len(series) <= options.patience:
        return None
    past, recent = series[: -options.patience], series[-options.patience :]
    best, latest = max(past, key=lambda row: row[key]), max(recent, key=lambda row: row[key])
    gain, error = latest[key] - best[key], best.get(f"{key}_se", 0.0)
    stands = gain <= error
    return Finding(
        "gain",
        "warning" if stands else "ok",
        f"the last {options.patience} evaluations brought {gain:+.3f} of held-out reward over {best[key]:.3f} "
        f"(iteration {best['iteration']}, standard error {error:.3f})"
        + ("; it has stopped rising: stop here, or change the data or the reward" if stands else ""),
    )


def _gold(rows: Rows, options: Advice) -> Finding | None:
    """Gold falls from its peak while the reward rises: over-optimisation (Gao et al., arXiv:2210.10760)."""
    series = _series(rows, "gold/eval")
    if len(series) < 2 or "reward/eval" not in series[-1]:
        return None
    peak, last = max(series, key=lambda row: row["gold/eval"]), series[-1]
    fall, error = peak["gold/eval"] - last["gold/eval"], _error_of_difference(peak, last, "gold/eval")
    rise = last["reward/eval"] - peak.get("reward/eval", math.inf)
    level: Level = "ok"
    if rise > 0 and fall > error:
        level = "warning" if fall > NORMAL_95 * error else "watch"
    told = "; training now gains reward at the expense of what was meant: go back to that policy, and stop earlier"
    return Finding(
        "gold",
        level,
        f"gold is {last['gold/eval']:.3f} after a best of {peak['gold/eval']:.3f} at iteration {peak['iteration']} "
        f"(±{NORMAL_95 * error:.3f}), the reward {rise:+.3f} since" + (told if level != "ok" else ""),
    )


def _length(rows: Rows, options: Advice) -> Finding | None:
    """Answers grow."""
    return _against_first(
        rows, "length", "eval/tokens",
        "held-out answers have {now:.0f} tokens, at first {first:.0f} ({times:.2f} times)",
        "see whether the longer ones are better, or let the reward count less for length",
    )  # fmt: skip


def _length_reward(rows: Rows, options: Advice) -> Finding | None:
    """Winners are the longest of their groups far beyond chance, and the reward goes with length."""
    row = _latest(rows, "length/reward_correlation", "length/winner_longest_z")
    if row is None:
        return None
    tau, clear = row["length/reward_correlation"], row["length/winner_longest_z"] > CLEAR
    level = _level("length-reward", tau if clear else 0.0)
    return Finding(
        "length-reward",
        level,
        f"{row['length/winner_longest']:.0%} of the winners are the longest of their group, by chance "
        f"{row['length/winner_longest_chance']:.0%}; reward and length go together with {tau:+.2f}"
        + ("; the reward likes length: answers will grow, whether that is meant or not" if level != "ok" else ""),
    )


def _diversity(rows: Rows, options: Advice) -> Finding | None:
    """The words of answers repeat more than those of the first policy."""
    return _plain(
        rows, "diversity", "diversity/distinct_2_kept",
        "held-out answers have {now:.2f} times the different pairs of words of the first policy, among equally many",
        "answers become alike: look for a phrase that all have, raise the temperature, or stop earlier",
    )  # fmt: skip


def _ngrams(rows: Rows, options: Advice) -> Finding | None:
    """A symbol or a few words stand in far more answers than at first."""
    row = _latest(rows, "ngrams/rising")
    if row is None:
        return None
    rises = [one for one in row["ngrams/rising"] if one["before"] <= RARE * one["now"]]
    most = max(rises, key=lambda one: one["now"] - one["before"], default=None)
    if most is None:
        return Finding("n-grams", "ok", "no word, phrase or symbol has become much more frequent")
    level = _level("n-grams", most["now"] - most["before"])
    others = [repr(one["text"]) for one in rises if one is not most][:2]
    return Finding(
        "n-grams",
        level,
        f"{most['text']!r} stands in {most['now']:.0%} of the held-out answers, at first in {most['before']:.0%}"
        + (f" (also {', '.join(others)})" if others else "")
        + ("; the reward may like it for itself: read some of them, and drop or penalise it" if level != "ok" else ""),
    )


def _entropy(rows: Rows, options: Advice) -> Finding | None:
    """The policy is sure of every token: there is nothing left to choose from."""
    return _against_first(
        rows, "entropy", "entropy/token",
        "a token of an answer surprises by {now:.3f} nats, at first by {first:.3f} ({times:.2f} times)",
        "the policy settles on one way to answer, and best of K finds little to choose from: stop, or learn slower",
    )  # fmt: skip


def _duplicates(rows: Rows, options: Advice) -> Finding | None:
    """The answers to a prompt become one answer."""
    series = _series(rows, "diversity/same_text")
    if not series:
        return None
    now, first = series[-1]["diversity/same_text"], series[0]["diversity/same_text"]
    level = _level("duplicates", now - first)
    return Finding(
        "duplicates",
        level,
        f"two answers to a prompt are the same text with a chance of {now:.0%}, at first of {first:.0%}"
        + ("; the policy collapses to one answer, and K responses say no more than one" if level != "ok" else ""),
    )


def _agreement(rows: Rows, options: Advice) -> Finding | None:
    """Reward and gold disagree on which of two answers is better."""
    row = _latest(rows, "agreement/within", "agreement/within_se")
    if row is None:
        return None
    tau, error = row["agreement/within"], row["agreement/within_se"]
    level = _level("agreement", tau + 2 * error)
    return Finding(
        "agreement",
        level,
        f"within prompts reward and gold agree with {tau:+.2f} (±{NORMAL_95 * error:.2f}), that is on "
        f"{(1 + tau) / 2:.0%} of pairs"
        + ("; what the reward prefers is hardly what gold prefers: mend the reward first" if level != "ok" else ""),
    )


def _ties(rows: Rows, options: Advice) -> Finding | None:
    """Winners are arbitrary."""
    return _plain(
        rows, "ties", "reward/tied", "all rewards are equal for {now:.0%} of the training prompts",
        "their winners are arbitrary: use filters: [tied], a finer reward, or other prompts",
    )  # fmt: skip


def _truncated(rows: Rows, options: Advice) -> Finding | None:
    """Answers are cut by the limit."""
    return _plain(
        rows, "truncated", "eval/truncated", "{now:.0%} of the held-out answers are cut by the limit",
        "raise generator.max_tokens, or use filters: [truncated]",
    )  # fmt: skip


def _empty(rows: Rows, options: Advice) -> Finding | None:
    """Answers say nothing."""
    return _plain(
        rows, "empty", "eval/empty", "{now:.0%} of the held-out answers are empty",
        "see what the reward gives to an empty answer, or use filters: [empty]",
    )  # fmt: skip


def _unscored(rows: Rows, options: Advice) -> Finding | None:
    """Answers have no reward, so the means are of what is left."""
    keys = [key for key in ("reward/eval", "gold/eval") if _latest(rows, f"{key}_failed")]
    if not keys:
        return None
    latest = {key: _latest(rows, f"{key}_failed") or {} for key in keys}
    worst = max(keys, key=lambda key: latest[key][f"{key}_failed"])
    row, name = latest[worst], {"reward/eval": "reward", "gold/eval": "gold reward"}[worst]
    level = _level("unscored", row[f"{worst}_failed"])
    return Finding(
        "unscored",
        level,
        f"{row[f'{worst}_failed']:.1%} of the held-out answers have no {name}; "
        f"its mean is over {row[f'{worst}_n']} prompts"
        + ("; what is left may be another kind of answers: see the errors in scores.jsonl" if level != "ok" else ""),
    )


RULES: dict[str, Callable[[Rows, Advice], Finding | None]] = {
    "gain": _gain,
    "gold": _gold,
    "agreement": _agreement,
    "length": _length,
    "length-reward": _length_reward,
    "n-grams": _ngrams,
    "diversity": _diversity,
    "entropy": _entropy,
    "duplicates": _duplicates,
    "ties": _ties,
    "truncated": _truncated,
    "empty": _empty,
    "unscored": _unscored,
}


def _plain(rows: Rows, name: str, key: str, told: str, then: str) -> Finding | None:
    """A figure against its own limits."""
    row = _latest(rows, key)
    if row is None:
        return None
    level = _level(name, row[key])
    return Finding(name, level, told.format(now=row[key]) + (f"; {then}" if level != "ok" else ""))


def _against_first(rows: Rows, name: str, key: str, told: str, then: str) -> Finding | None:
    """A figure as a multiple of what it was for the first policy."""
    series = _series(rows, key)
    if len(series) < 2 or not series[0][key] > 0:
        return None
    now, first = series[-1][key], series[0][key]
    level = _level(name, now / first)
    message = told.format(now=now, first=first, times=now / first)
    return Finding(name, level, message + (f"; {then}" if level != "ok" else ""))


def _level(name: str, value: float) -> Level:
    watch, warning = LIMITS[name]
    sign = 1 if warning > watch else -1
    return "warning" if sign * value >= sign * warning else "watch" if sign * value >= sign * watch else "ok"


def _softened(finding: Finding) -> Finding:
    if finding.level != "warning":
        return finding
    return replace(finding, level="watch", message=f"{finding.message} (gold has risen as well, so it may be meant)")


def _gold_holds(rows: Rows) -> bool:
    """Whether gold has risen since the first policy, and is still within its error of the best so far."""
    series = _series(rows, "gold/eval")
    if len(series) < 2:
        return False
    first, last, peak = series[0], series[-1], max(series, key=lambda row: row["gold/eval"])
    risen = last["gold/eval"] - first["gold/eval"] > NORMAL_95 * _error_of_difference(first, last, "gold/eval")
    return risen and peak["gold/eval"] - last["gold/eval"] <= _error_of_difference(peak, last, "gold/eval")


def _error_of_difference(one: dict[str, Any], other: dict[str, Any], key: str) -> float:
    """As of two independent means: too large for the same prompts, so a difference is not claimed too early."""
    return math.hypot(*(row.get(f"{key}_se", 0.0) for row in (one, other)))


def _series(rows: Rows, key: str) -> list[dict[str, Any]]:
    return [row for row in rows if key in row]


def _latest(rows: Rows, *keys: str) -> dict[str, Any] | None:
    return next((row for row in reversed(rows) if all(key in row for key in keys)), None)
