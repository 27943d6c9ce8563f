"""Alerts: what the rows of metrics.jsonl say when a run goes wrong, as sentences.

A rule looks at the figures so far and gives a value, which its limits make ok, watch or warning. The rules stand with
the figures that they look at (`raft.metrics.diagnostics`); docs/diagnostics.md has their table. A reward model is a
stand-in for what is meant, and training finds where the two part. No rule proves that; each is a reason to look at
the answers (`raft show`). Where a gold reward has risen and still holds, a change of style is what was wanted, and what
the reward prefers has served it, so the rules of both then say "watch" at most.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from raft.metrics.reward_metrics import NORMAL_95, held_out_key

Rows = Sequence[dict[str, Any]]  # of metrics.jsonl, as far as the run has come
Level = Literal["ok", "watch", "warning"]
Look = Callable[[Rows, int], tuple[float | Level, str] | None]

CLEAR = 4.0  # standard errors beyond which winners are the longest by more than chance
RARE = 0.5  # an n-gram has risen only if it was at most this fraction as frequent at first


@dataclass(frozen=True)
class Alert:
    """What a rule says: `message` has the numbers, what they mean, and what to do."""

    name: str
    level: Level
    message: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When figures give reason to worry.

    `look` takes the rows, in ascending order, and how many evaluations may pass without a gain. It gives a sentence
    with the numbers, and the value that `limits` are for or, where there are none, the level itself; None if its
    figures were not measured. From the first limit on the level is "watch", from the second on "warning"; where the
    second is smaller, small values are bad. `then` ends the sentence of both. `softened`: by gold that rises.
    """

    name: str
    look: Look
    then: str
    limits: tuple[float, float] | None = None
    softened: bool = False

    def judge(self, rows: Rows, patience: int) -> Alert | None:
        """What the rule says of these rows, None where its figures were not measured."""
        if (seen := self.look(rows, patience)) is None:
            return None
        value, message = seen
        level = value if isinstance(value, str) else self._level(value)
        return Alert(self.name, level, message if level == "ok" else f"{message}; {self.then}")

    def _level(self, value: float) -> Level:
        assert self.limits is not None, "a value without limits has no level"
        watch, warning = self.limits
        sign = 1 if warning > watch else -1
        return "warning" if sign * value >= sign * warning else "watch" if sign * value >= sign * watch else "ok"


def judge(rules: Iterable[Rule], rows: Rows, patience: int) -> list[Alert]:
    """The alerts of all rules whose figures were measured, those of level ok too."""
    blessed = _gold_holds(rows)
    alerts = [(rule, rule.judge(rows, patience)) for rule in rules]
    return [_softened(alert) if blessed and rule.softened else alert for rule, alert in alerts if alert is not None]


def warnings(alerts: Sequence[Alert]) -> list[Alert]:
    """Those of level warning."""
    return [alert for alert in alerts if alert.level == "warning"]


def changed(alerts: Sequence[Alert], last: dict[str, Level]) -> list[Alert]:
    """The alerts whose level is not what was last said of the same rule; that all is well is said only after others."""
    return [alert for alert in alerts if alert.level != last.get(alert.name, "ok")]


def value_of(key: str, message: str) -> Look:
    """The last value of a figure, `{now}` in the message."""

    def look(rows: Rows, patience: int) -> tuple[float, str] | None:
        row = _latest(rows, key)
        return None if row is None else (row[key], message.format(now=row[key]))

    return look


def times_first(key: str, message: str) -> Look:
    """A figure as a multiple of what it was for the first policy: `{now}`, `{first}` and `{times}` in the message."""

    def look(rows: Rows, patience: int) -> tuple[float, str] | None:
        series = _series(rows, key)
        if len(series) < 2 or not series[0][key] > 0:
            return None
        now, first = series[-1][key], series[0][key]
        return now / first, message.format(now=now, first=first, times=now / first)

    return look


def gain(rows: Rows, patience: int) -> tuple[Level, str] | None:
    """No gain of held-out reward in `patience` evaluations, beyond a standard error (the RAFT paper stops there)."""
    key = held_out_key(rows)
    series = _series(rows, key)
    if len(series) <= patience:
        return None
    past, recent = series[:-patience], series[-patience:]
    best, latest = max(past, key=lambda row: row[key]), max(recent, key=lambda row: row[key])
    gained, error = latest[key] - best[key], best.get(f"{key}_se", 0.0)
    return "warning" if gained <= error else "ok", (
        f"the last {patience} evaluations brought {gained:+.3f} of held-out reward over {best[key]:.3f} "
        f"(policy {best['iteration']}, standard error {error:.3f})"
    )


def gold_falls(rows: Rows, patience: int) -> tuple[Level, str] | None:
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
    return level, (
        f"gold is {last['gold/eval']:.3f} after a best of {peak['gold/eval']:.3f} by policy {peak['iteration']} "
        f"(±{NORMAL_95 * error:.3f}), the reward {rise:+.3f} since"
    )


def length_wins(rows: Rows, patience: int) -> tuple[float, str] | None:
    """Winners are the longest of their groups far beyond chance, and the reward goes with length."""
    row = _latest(rows, "length/reward_correlation", "length/winner_longest_z")
    if row is None:
        return None
    tau, clear = row["length/reward_correlation"], row["length/winner_longest_z"] > CLEAR
    return tau if clear else 0.0, (
        f"{row['length/winner_longest']:.0%} of the winners are the longest of their group (by chance "
        f"{row['length/winner_longest_chance']:.0%}); the rank correlation of reward and length is {tau:+.2f}"
    )


def phrase_rises(rows: Rows, patience: int) -> tuple[float | Level, str] | None:
    """A symbol or a few words stand in far more answers than at first."""
    row = _latest(rows, "ngrams/rising")
    if row is None:
        return None
    rises = [rise for rise in row["ngrams/rising"] if rise["before"] <= RARE * rise["now"]]
    most = max(rises, key=lambda rise: rise["now"] - rise["before"], default=None)
    if most is None:
        return "ok", "no word, phrase or symbol has become much more common"
    others = [repr(rise["text"]) for rise in rises if rise is not most][:2]
    return most["now"] - most["before"], (
        f"{most['text']!r} is in {most['now']:.0%} of the held-out answers ({most['before']:.0%} at the start)"
        + (f" (also {', '.join(others)})" if others else "")
    )


def answers_repeat(rows: Rows, patience: int) -> tuple[float, str] | None:
    """The answers to a prompt become the same text."""
    series = _series(rows, "diversity/same_text")
    if not series:
        return None
    now, first = series[-1]["diversity/same_text"], series[0]["diversity/same_text"]
    return now - first, f"two answers to a prompt are identical with probability {now:.0%} ({first:.0%} at the start)"


def gold_disagrees(rows: Rows, patience: int) -> tuple[float, str] | None:
    """Reward and gold disagree on which of two answers is better."""
    row = _latest(rows, "agreement/within", "agreement/within_se")
    if row is None:
        return None
    tau, error = row["agreement/within"], row["agreement/within_se"]
    return tau + 2 * error, (
        f"within prompts reward and gold agree with {tau:+.2f} (±{NORMAL_95 * error:.2f}), that is on "
        f"{(1 + tau) / 2:.0%} of pairs"
    )


def rewards_missing(rows: Rows, patience: int) -> tuple[float, str] | None:
    """Answers have no reward, so the means are of those that are left."""
    names = {"reward/eval": "reward", "gold/eval": "gold reward"}
    latest = {key: row for key in names if (row := _latest(rows, f"{key}_failed")) is not None}
    if not latest:
        return None
    key = max(latest, key=lambda key: latest[key][f"{key}_failed"])
    failed, prompts = latest[key][f"{key}_failed"], latest[key][f"{key}_n"]
    return failed, f"{failed:.1%} of the held-out answers have no {names[key]}; its mean is over {prompts} prompts"


def _softened(alert: Alert) -> Alert:
    if alert.level != "warning":
        return alert
    return replace(alert, level="watch", message=f"{alert.message} (gold has risen too, so this may be intended)")


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
