"""The rules of alerts by themselves, on rows written by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
from alerts import named

from raft.config.jobs import MUTABLE_KEYS
from raft.core.options import Fault
from raft.core.registry import build
from raft.metrics import alerts
from raft.metrics.diagnostics import DIAGNOSTICS, RULES, Alerts, columns

DOCS = Path(__file__).parents[2] / "docs" / "diagnostics.md"


def rows_of(**series: list[Any]) -> list[dict[str, Any]]:
    length = max(map(len, series.values()))
    return [
        {"iteration": at, **{key: values[at] for key, values in series.items() if at < len(values)}}
        for at in range(length)
    ]


def test_no_gain_for_as_many_evaluations_as_patience_says_is_a_warning():
    flat = {"reward/eval": [0.0, 1.0, 1.05, 0.9, 1.02], "reward/eval_se": [0.1] * 5}
    assert named(rows_of(**flat)) == {"gain": "warning"}
    assert named(rows_of(**flat), patience=4) == {}
    assert named(rows_of(**{**flat, "reward/eval": [0.0, 1.0, 1.05, 0.9, 1.2]})) == {}
    assert named(rows_of(**{key: values[:3] for key, values in flat.items()})) == {}


def test_the_gain_is_of_gold_where_the_reward_says_nothing_between_prompts():
    assert named(rows_of(**{"gold/eval": [1.0, 1.0, 1.0, 1.0], "gold/eval_se": [0.1] * 4})) == {"gain": "warning"}


def test_gold_that_falls_from_its_peak_while_the_reward_rises_is_over_optimisation():
    reward = {"reward/eval": [0.0, 1.0, 2.0], "reward/eval_se": [0.1] * 3, "gold/eval_se": [0.1] * 3}
    assert named(rows_of(**reward, **{"gold/eval": [0.0, 1.0, 0.6]})) == {"gold": "warning"}
    assert named(rows_of(**reward, **{"gold/eval": [0.0, 1.0, 0.8]})) == {"gold": "watch"}
    assert named(rows_of(**reward, **{"gold/eval": [0.0, 1.0, 0.9]})) == {}
    falls = {**reward, "reward/eval": [0.0, 1.0, 0.5]}  # both fall: a bad training, not a hack
    assert named(rows_of(**falls, **{"gold/eval": [0.0, 1.0, 0.6]})) == {}


def test_a_change_of_style_that_gold_rewards_is_watched_and_one_that_it_stops_rewarding_is_a_warning():
    longer = {"eval/tokens": [10.0, 20.0, 30.0], "gold/eval_se": [0.1] * 3}
    assert named(rows_of(**longer)) == {"length": "warning"}
    assert named(rows_of(**longer, **{"gold/eval": [0.0, 1.0, 2.0]})) == {"length": "watch"}
    assert named(rows_of(**longer, **{"gold/eval": [0.0, 2.0, 1.0]})) == {"length": "warning"}
    assert named(rows_of(**longer, **{"gold/eval": [0.0, 0.1, 0.2]})) == {"length": "warning"}
    cut = {"eval/truncated": [0.9] * 3, "gold/eval_se": [0.1] * 3, "gold/eval": [0.0, 1.0, 2.0]}
    assert named(rows_of(**cut)) == {"truncated": "warning"}  # is no matter of style


@pytest.mark.parametrize(
    ("key", "first", "at_limit", "name"),
    [
        ("eval/tokens", 10.0, (15.0, 20.0), "length"),
        ("diversity/distinct_2_kept", 1.0, (0.8, 0.6), "diversity"),
        ("entropy/token", 2.0, (1.0, 0.4), "entropy"),
        ("diversity/same_text", 0.1, (0.35, 0.6), "duplicates"),
        ("reward/tied", 0.1, (0.5, 0.8), "ties"),
        ("eval/truncated", 0.1, (0.2, 0.5), "truncated"),
        ("eval/empty", 0.0, (0.05, 0.2), "empty"),
        ("judge/biased", 0.0, (0.3, 0.6), "position"),
        ("judge/no_verdict", 0.0, (0.05, 0.2), "verdicts"),
        ("train/steps", 8.0, (1.0, 0.0), "steps"),
    ],
)
def test_limits_are_reached_where_they_are_documented(key, first, at_limit, name):
    for value, level in zip(at_limit, ("watch", "warning"), strict=True):
        towards = 1e-6 * (first - value)
        before = {"watch": {}, "warning": {name: "watch"}}[level]
        assert named(rows_of(**{key: [first, value - towards / 10]})) == {name: level}
        assert named(rows_of(**{key: [first, value + towards]})) == before


def test_winners_must_be_the_longest_beyond_chance_and_the_reward_go_with_length():
    row = {"length/winner_longest": [0.9], "length/winner_longest_chance": [0.25]}
    tau, z = "length/reward_correlation", "length/winner_longest_z"
    assert named(rows_of(**row, **{tau: [0.6], z: [9.0]})) == {"length-reward": "warning"}
    assert named(rows_of(**row, **{tau: [0.4], z: [9.0]})) == {"length-reward": "watch"}
    assert named(rows_of(**row, **{tau: [0.6], z: [3.0]})) == {}
    assert named(rows_of(**row, **{tau: [0.1], z: [9.0]})) == {}


def test_a_word_that_was_frequent_before_has_not_risen():
    def rows(before: float, now: float) -> list[dict[str, Any]]:
        return rows_of(**{"ngrams/rising": [[], [{"text": "the", "before": before, "now": now, "z": 9.0}]]})

    assert named(rows(0.6, 0.99)) == {}
    assert named(rows(0.1, 0.4)) == {"n-grams": "watch"}
    assert named(rows(0.3, 0.9)) == {"n-grams": "warning"}


def test_agreement_is_low_only_where_its_error_leaves_no_doubt():
    def rows(tau: float, error: float) -> list[dict[str, Any]]:
        return rows_of(**{"agreement/within": [tau], "agreement/within_se": [error]})

    assert named(rows(0.0, 0.2)) == {} and named(rows(0.1, 0.02)) == {"agreement": "watch"}
    assert named(rows(0.0, 0.02)) == {"agreement": "warning"}


def test_a_reward_that_hardly_agrees_with_gold_is_watched_where_training_on_it_has_raised_gold():
    agreement = {"agreement/within": [0.4, 0.0], "agreement/within_se": [0.02, 0.02]}
    gold = {"gold/eval": [0.1, 0.5], "gold/eval_se": [0.02, 0.02], "reward/eval": [0.1, 0.5]}
    assert named(rows_of(**agreement, **gold)) == {"agreement": "watch"}
    assert named(rows_of(**agreement, **{**gold, "gold/eval": [0.1, 0.11]})) == {"agreement": "warning"}


def test_a_rule_without_its_figures_says_nothing_and_one_that_is_ignored_neither():
    assert Alerts().judge([{"iteration": 0}]) == []
    assert named(rows_of(**{"eval/truncated": [1.0]}), ignore=["truncated"]) == {}


def test_a_run_stops_only_if_it_is_told_to_and_only_at_a_warning():
    cut, some = (Alerts().judge(rows_of(**{"eval/truncated": [share]})) for share in (1.0, 0.3))
    assert Alerts(on_warning="stop").stopping(cut) == cut and Alerts().stopping(cut) == []
    assert Alerts(on_warning="stop").stopping(some) == []


def test_of_all_warnings_only_those_of_the_named_rules_stop_a_run():
    both = Alerts().judge(rows_of(**{"eval/truncated": [1.0], "reward/tied": [1.0]}))
    told = {names: Alerts(on_warning="stop", stop_on=list(names)) for names in (("ties",), ("gold",), ())}
    assert {names: [one.name for one in options.stopping(both)] for names, options in told.items()} == {
        ("ties",): ["ties"],
        ("gold",): [],
        (): [one.name for one in both],
    }
    assert Alerts(stop_on=["ties"]).stopping(both) == []


def test_a_level_is_told_when_it_changes_and_all_is_well_only_after_something_else():
    some = Alerts().judge(rows_of(**{"eval/truncated": [0.3], "reward/tied": [0.9], "eval/empty": [0.0]}))
    assert {one.name for one in alerts.changed(some, {})} == {"truncated", "ties"}
    assert [one.name for one in alerts.changed(some, {"truncated": "ok", "ties": "warning"})] == ["truncated"]
    assert [one.name for one in alerts.changed(some, {"truncated": "warning", "ties": "warning"})] == ["truncated"]
    as_before = {"truncated": "watch", "ties": "warning", "empty": "watch"}
    assert [(one.name, one.level) for one in alerts.changed(some, as_before)] == [("empty", "ok")]


def test_every_rule_can_be_ignored_and_may_change_in_a_run_that_goes_on():
    faults: list[Fault] = []
    for rule in RULES:
        assert build(Alerts, {"ignore": [rule.name]}, "alerts", faults) is not None and not faults
    build(Alerts, {"ignore": ["agrement"]}, "alerts", faults)
    assert "did you mean agreement?" in faults[0].message and faults[0].key == "alerts.ignore[0]"
    assert "alerts" in MUTABLE_KEYS


def test_the_page_has_each_rule_with_its_limits_and_no_other():
    table = DOCS.read_text(encoding="utf-8").split("## Rules")[1].split("**Style")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "| `" in line]
    page = {cells[0].strip("`"): cells[2:4] for cells in lines}
    assert list(page) == [rule.name for rule in RULES]
    for rule in RULES:
        if rule.limits is not None:
            assert [float(cell.removeprefix("at most ")) for cell in page[rule.name]] == list(rule.limits), rule.name
    style = DOCS.read_text(encoding="utf-8").split("**Style and gold.**")[1].split("say watch at most")[0]
    assert {rule.name for rule in RULES if rule.softened} == set(re.findall("`([a-z-]+)`", style))


def test_every_figure_is_on_the_page_and_its_column_says_what_it_means():
    page = DOCS.read_text(encoding="utf-8").split("## Figures")[1].split("## Rules")[0]
    named = {name for line in page.splitlines() for name in re.findall(r"`([a-z0-9_]+/[a-z0-9_]+)`", line)}
    keys = {diagnostic.key for diagnostic in DIAGNOSTICS if "/" in diagnostic.key}
    keys |= {key for group in columns().values() for key in group}
    assert keys - named == set()
    assert all(column.meaning and column.label for group in columns().values() for column in group.values())
