"""Laws of raft.metrics.reward_accuracy: each figure beside the same one counted pair by pair."""

import json
import math

import numpy as np
import pytest

from raft.metrics.reward_accuracy import (
    SECTIONS,
    accuracy,
    calibration_error,
    figures,
    fit,
    length_bias,
    reward_bench,
    table,
    wilson,
)

NAN = float("nan")


def drawn(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards on a coarse grid, so that some are equal; some are missing; and the lengths of the responses."""
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.normal(0.5, 1, count).round(1), rng.normal(0, 1, count).round(1)
    chosen[::29], rejected[::31] = NAN, NAN
    return chosen, rejected, rng.integers(1, 12, (count, 2))


def scored(chosen: np.ndarray, rejected: np.ndarray) -> list[tuple[float, float]]:
    both = zip(chosen.tolist(), rejected.tolist(), strict=True)
    return [(one, other) for one, other in both if not (math.isnan(one) or math.isnan(other))]


def test_a_strictly_higher_reward_is_right_an_equal_one_is_not_and_a_missing_one_is_counted():
    found = accuracy(np.array([1.0, 2.0, 0.0, -1.0, NAN]))
    assert {name: found[name] for name in ("pairs", "unscored", "tied", "right", "accuracy")} == {
        "pairs": 5, "unscored": 1, "tied": 1, "right": 2, "accuracy": 0.5,
    }  # fmt: skip


def test_accuracy_is_what_counting_finds():
    chosen, rejected, lengths = drawn()
    found, pairs = figures(chosen, rejected, lengths), scored(chosen, rejected)
    right = sum(1 for one, other in pairs if one > other)
    assert (found["right"], found["tied"]) == (right, sum(1 for one, other in pairs if one == other))
    assert found["tied"] > 0 and found["unscored"] == 400 - len(pairs) > 0
    assert found["accuracy"] == pytest.approx(right / len(pairs))


def test_without_a_scored_pair_there_is_no_figure_and_no_made_up_one():
    found = figures(np.array([NAN, 1.0]), np.array([1.0, NAN]), np.ones((2, 2)), ["a", "a"])
    assert found["accuracy"] is found["low"] is found["high"] is found["margin"] is found["loss"] is None
    assert found["calibration_error"] is None and found["length"]["longer_preferred"] is None
    assert (found["pairs"], found["unscored"]) == (2, 2) and found["subsets"]["a"]["unscored"] == 2
    assert "no pairs, 2 unscored" in table({"set": {"reward": found}})


@pytest.mark.parametrize("right, count", [(0, 10), (10, 10), (7, 10), (263, 448), (1, 1)])
def test_the_ends_of_wilsons_interval_are_1_96_of_their_own_errors_away(right: int, count: int):
    low, high = wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            errors = abs(right / count - end) / math.sqrt(end * (1 - end) / count)
            assert errors == pytest.approx(1.959964, abs=1e-5)
    assert (low, high) != (0.0, 0.0) and (low, high) != (1.0, 1.0)


def test_wilsons_interval_holds_the_truth_19_times_in_20():
    ends = [wilson(right, 60) for right in range(61)]
    held = [
        sum(
            math.comb(60, right) * truth**right * (1 - truth) ** (60 - right)
            for right, (low, high) in enumerate(ends)
            if low <= truth <= high
        )
        for truth in np.linspace(0.05, 0.95, 181).tolist()
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.005) and min(held) > 0.9


def test_loss_and_margin_are_those_of_bradley_and_terry():
    chosen, rejected, _ = drawn()
    found, pairs = fit(chosen - rejected), scored(chosen, rejected)
    losses = [-math.log(1 / (1 + math.exp(-(one - other)))) for one, other in pairs]
    assert found["loss"] == pytest.approx(sum(losses) / len(pairs))
    assert found["margin"] == pytest.approx(sum(one - other for one, other in pairs) / len(pairs))
    assert fit(np.array([-1000.0]))["loss"] == 1000.0


def test_calibration_error_is_the_gap_of_each_bin_by_its_share_of_pairs():
    chosen, rejected, _ = drawn()
    pairs = scored(chosen, rejected)
    total = 0.0
    for low in range(50, 100, 5):
        inside = []
        for one, other in pairs:
            sure = 1 / (1 + math.exp(-abs(one - other)))
            if low <= 100 * sure < low + 5:
                inside.append((sure, one > other))
        if inside:
            confidence = sum(sure for sure, _ in inside) / len(inside)
            right = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(confidence - right)
    assert calibration_error(chosen - rejected) == pytest.approx(total)


def test_a_reward_that_is_as_sure_as_it_is_right_has_no_calibration_error():
    margins = np.repeat(math.log(3), 4) * [1, 1, 1, -1]  # three of four, and sigmoid(log 3) = 3/4
    assert calibration_error(margins) == pytest.approx(0)
    assert calibration_error(np.array([800.0, 800.0])) == pytest.approx(0)
    assert calibration_error(np.array([-800.0])) == pytest.approx(1)
    assert calibration_error(np.array([0.0])) == pytest.approx(0.5)


def test_length_bias_is_what_counting_finds():
    chosen, rejected, lengths = drawn()
    found = length_bias(chosen - rejected, lengths)
    preferred = longer_chosen = total = 0
    sides: dict[bool, list[bool]] = {True: [], False: []}
    for one, other, (a, b) in zip(chosen, rejected, lengths, strict=True):
        if a != b and not math.isnan(one - other):
            total += 1
            longer_chosen += a > b
            preferred += one > other if a > b else other > one
            sides[bool(a > b)].append(bool(one > other))
    assert found["pairs"] == total < 400
    assert found["longer_preferred"] == pytest.approx(preferred / total)
    assert found["longer_chosen"] == pytest.approx(longer_chosen / total)
    assert found["chosen_longer"]["accuracy"] == pytest.approx(np.mean(sides[True]))
    assert found["chosen_shorter"]["accuracy"] == pytest.approx(np.mean(sides[False]))
    assert found["chosen_longer"]["unscored"] + found["chosen_shorter"]["unscored"] > 0


def test_length_itself_as_a_reward_always_prefers_the_longer():
    _, _, lengths = drawn()
    found = length_bias((lengths[:, 0] - lengths[:, 1]).astype(float), lengths)
    assert (found["longer_preferred"], found["chosen_longer"]["accuracy"]) == (1.0, 1.0)
    assert found["chosen_shorter"]["accuracy"] == 0.0


def test_subsets_are_counted_each_for_itself_and_their_pairs_add_up():
    chosen, rejected, lengths = drawn()
    names = [("a", "b|c\n", None)[index % 3] for index in range(400)]
    found = figures(chosen, rejected, lengths, names)["subsets"]
    assert list(found) == ["a", "b|c\n"]
    for name, one in found.items():
        members = [index for index, other in enumerate(names) if other == name]
        assert one == accuracy((chosen - rejected)[members])
    assert "| b\\|c |" in table({"set": {"reward": figures(chosen, rejected, lengths, names)}})


# --- RewardBench

COUNTS = {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}


def benched(without: str = "") -> tuple[np.ndarray, list[str]]:
    """Margins of all subsets, each of its own size and share, and the subset of each."""
    rng, margins, names = np.random.default_rng(1), [], []
    for weights in SECTIONS.values():
        for place, (name, count) in enumerate(weights.items()):
            size = 447 if name == "math-prm" else count
            if name != without:
                margins.append(np.where(rng.random(size) < 0.6 + 0.05 * place, 1.0, -1.0))
                names += [name] * size
    return np.concatenate(margins), names


def of_bench(margins: np.ndarray, names: list[str]) -> dict:
    return figures(margins, np.zeros(len(margins)), np.ones((len(margins), 2)), names)


def test_the_weights_of_rewardbench_are_those_that_were_published():
    assert {name: sum(weights.values()) for name, weights in SECTIONS.items()} == COUNTS
    assert sum(map(len, SECTIONS.values())) == 23
    pairs = sum(COUNTS.values()) - 984 + 447
    assert pairs == 2985  # the rows of its split "filtered"
    code = sum(count for name, count in SECTIONS["Reasoning"].items() if name.startswith("hep-"))
    assert code == SECTIONS["Reasoning"]["math-prm"] == 984


def test_a_section_is_its_subsets_by_weight_and_the_whole_is_the_plain_mean_of_four():
    margins, names = benched()
    found = of_bench(margins, names)["reward_bench"]
    shares = {name: np.mean([m > 0 for m, n in zip(margins, names, strict=True) if n == name]) for name in set(names)}
    by_hand = {
        section: sum(count * shares[name] for name, count in weights.items()) / COUNTS[section]
        for section, weights in SECTIONS.items()
    }
    assert {name: one["accuracy"] for name, one in found["sections"].items()} == pytest.approx(by_hand)
    assert found["overall"]["accuracy"] == pytest.approx(sum(by_hand.values()) / 4)
    pooled = np.mean([m > 0 for m, n in zip(margins, names, strict=True) if n in SECTIONS["Reasoning"]])
    assert abs(by_hand["Reasoning"] - pooled) > 1e-3  # the weight of math-prm matters


def test_a_published_row_of_rewardbench_has_the_published_mean():
    shares = {"Chat": 0.9665, "Chat Hard": 0.9101, "Safety": 0.9365, "Reasoning": 0.9912}  # INF-ORM-Llama3.1-70B
    parts = {
        name: {"accuracy": shares[section], "low": 0.0, "high": 1.0}
        for section, weights in SECTIONS.items()
        for name in weights
    }
    assert round(100 * reward_bench(parts)["overall"]["accuracy"], 1) == 95.1


def test_a_section_without_one_of_its_subsets_says_which_and_there_is_no_whole():
    margins, names = benched(without="donotanswer")
    found = of_bench(margins, names)
    assert found["reward_bench"]["sections"]["Safety"] == {"missing": ["donotanswer"]}
    assert found["reward_bench"]["overall"] == {"missing": ["Safety"]}
    assert found["reward_bench"]["sections"]["Chat"]["accuracy"] > 0
    unscored, names = benched()
    unscored[[name == "donotanswer" for name in names]] = NAN
    assert of_bench(unscored, names)["reward_bench"]["sections"]["Safety"] == {"missing": ["donotanswer"]}
    text = table({"bench": {"reward": found}})
    assert "| bench: Safety | no pairs of donotanswer |" in text and "no pairs of Safety" in text


def test_of_subsets_of_one_size_the_interval_of_a_section_is_about_that_of_their_pool():
    rng = np.random.default_rng(2)
    names = [name for name in SECTIONS["Reasoning"] for _ in range(984 if name == "math-prm" else 164)]
    margins = np.where(rng.random(len(names)) < 0.8, 1.0, -1.0)
    section = of_bench(margins, names)["reward_bench"]["sections"]["Reasoning"]
    low, high = wilson(int((margins > 0).sum()), len(margins))
    assert section["accuracy"] == pytest.approx(float((margins > 0).mean()))
    assert (section["low"], section["high"]) == pytest.approx((low, high), abs=2e-3)


# --- what is shown


def test_figures_are_json_and_the_table_shows_every_set_and_reward():
    margins, names = benched()
    chosen, rejected, lengths = drawn()
    results = {
        "bench": {"large": of_bench(margins, names), "small": of_bench(-margins, names)},
        "hh": {"large": figures(chosen, rejected, lengths)},
    }
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    text = table(results)
    share = results["hh"]["large"]
    shown = f"{100 * share['accuracy']:.1f} ({100 * share['low']:.1f}–{100 * share['high']:.1f})"
    assert f"| hh | {shown}, {share['unscored']} unscored |  |" in text
    assert "| set | large | small |" in text and "## bench, by subset" in text and "| hep-rust |" in text
    assert "| bench: mean of sections |" in text and "## hh, by subset" not in text
    widths = [line.count(" | ") for line in text.splitlines() if line.startswith("|")]
    assert set(widths) == {2, 11}
