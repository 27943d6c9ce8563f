"""Each figure against hand computation; what estimates something, against simulation with a planted truth."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from raft.metrics import reward_metrics, text_metrics

NAN = math.nan


def test_words_are_runs_of_letters_in_lower_case_and_each_character_of_chinese_and_japanese():
    assert text_metrics.words("The cat's 2nd #1, über_all!") == ["the", "cat", "s", "2nd", "1", "über_all"]
    assert text_metrics.words("吾輩は猫。Raftデーﾀだ、OK") == [*"吾輩は猫", "raft", *"デーﾀだ", "ok"]
    assert text_metrics.words("한국어 문장") == ["한국어", "문장"]  # Korean writes spaces
    assert text_metrics.words(" \n!? ・") == []


def test_the_table_of_the_paper_by_hand():
    # words: a b a b | a c; pairs: ab ba ab | ac
    figures = text_metrics.diversity(["A b, a b!", "a c"])
    assert figures == pytest.approx({"distinct_1": 3 / 6, "unique_1": 1, "distinct_2": 3 / 4, "unique_2": 2})
    assert text_metrics.diversity(["one"]) == {"distinct_1": 1.0, "unique_1": 1.0}
    assert text_metrics.diversity(["", "!"]) == {}


def test_msttr_is_the_mean_share_of_different_words_in_whole_segments_of_100():
    hundred = " ".join(f"w{n}" for n in range(100))
    fifty = " ".join(["x", "y"] * 25)
    # segments: 100 different; 2 different of x y, then w0 to w49: 52; the last 50 words are no segment
    assert text_metrics.diversity([hundred, fifty, hundred])["msttr_100"] == pytest.approx((1.0 + 0.52) / 2)
    assert "msttr_100" not in text_metrics.diversity([fifty])


@pytest.mark.parametrize("drawn", range(7))
def test_the_expected_number_of_kinds_is_the_mean_over_all_subsets(drawn):
    things = ["a", "a", "a", "b", "b", "c"]
    subsets = [len(set(subset)) for subset in itertools.combinations(things, drawn)]
    expected = sum(subsets) / len(subsets)
    assert text_metrics.expected_distinct(Counter(things).values(), drawn) == pytest.approx(expected, abs=1e-12)


def test_the_expected_number_of_kinds_survives_large_counts():
    assert text_metrics.expected_distinct([10**6] * 50, 10**4) == pytest.approx(50)
    assert text_metrics.expected_distinct([1] * 10**6, 10**5) == pytest.approx(10**5)


def drawn_texts(rng: np.random.Generator, count: int, length: int, vocabulary: int) -> list[str]:
    return [" ".join(f"w{n}" for n in rng.integers(vocabulary, size=length)) for _ in range(count)]


def test_diversity_kept_does_not_fall_where_answers_only_grow_and_falls_where_their_words_get_fewer():
    rng = np.random.default_rng(0)
    first = drawn_texts(rng, 200, 20, 40)
    longer, poorer = drawn_texts(rng, 200, 60, 40), drawn_texts(rng, 200, 20, 20)
    plain = [text_metrics.diversity(texts)["distinct_2"] for texts in (first, longer)]
    assert plain[1] < 0.6 * plain[0]  # the paper's figure alone would warn of length
    assert text_metrics.distinct_kept(longer, first) == pytest.approx(1.0, abs=0.03)
    assert text_metrics.distinct_kept(poorer, first) < 0.5
    assert text_metrics.distinct_kept(first, first) == pytest.approx(1.0)
    assert math.isnan(text_metrics.distinct_kept(["a"], first))


def test_repeats_are_what_selection_drops_and_twins_are_all_of_a_kind():
    assert text_metrics.repeats(["a", "b", "a", "a"]) == [False, False, True, True]
    assert text_metrics.twins(["a", "b", "a", "a"]) == [True, False, True, True]


def test_repeats_are_the_duplicates_of_selection():
    from raft.core.records import Response
    from raft.pipeline.selection import filtered

    texts = ["a", "", "a", " ", "b", "", "b"]
    reasons = filtered([Response(text, [], None, "stop") for text in texts], ["duplicate"])
    assert [reason is not None for reason in reasons] == text_metrics.repeats(texts)


def test_the_chance_of_the_same_text_counts_pairs_and_each_prompt_once():
    # a a b: 1 of 3 pairs; c c: 1 of 1; a single answer has no pair
    assert text_metrics.same_text([["a", "a", "b"], ["c", "c"], ["d"]]) == pytest.approx((1 / 3 + 1) / 2)
    assert math.isnan(text_metrics.same_text([["a"], ["b"]]))


@pytest.mark.parametrize("k", [2, 8])
def test_the_chance_of_the_same_text_is_unbiased_for_any_k(k):
    probabilities = [0.6, 0.3, 0.1]
    groups = np.random.default_rng(1).choice(["a", "b", "c"], p=probabilities, size=(20_000, k)).tolist()
    assert text_metrics.same_text(groups) == pytest.approx(0.36 + 0.09 + 0.01, abs=4 * 0.5 / math.sqrt(20_000))


@pytest.mark.parametrize("seed", range(40))
def test_kendalls_tau_is_that_of_all_pairs_one_by_one(seed: int):
    """Few different values, so ties in one, in both and in all; some unknown; a length that is no power of two."""
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, kinds, size=(5, rng.integers(0, 13))).astype(float) for kinds in (3, 5))
    b = rng.integers(0, 5, size=a.shape).astype(float)
    a[rng.random(a.shape) < 0.15] = NAN
    expected = []
    for x, y in zip(a, b, strict=True):
        pairs = [
            (x[i] - x[j], y[i] - y[j]) for i, j in itertools.combinations(range(len(x)), 2) if not np.isnan(x[i] + x[j])
        ]
        agree = sum(np.sign(p * q) for p, q in pairs)
        untied = [sum(pair[side] != 0 for pair in pairs) for side in (0, 1)]
        expected.append(agree / math.sqrt(math.prod(untied)) if math.prod(untied) else NAN)
        assert text_metrics.kendall(x, y) == pytest.approx(expected[-1], nan_ok=True)
    assert text_metrics.within_prompts(a, b) == pytest.approx(np.array(expected), nan_ok=True)


def test_kendalls_tau_by_hand_with_ties():
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert text_metrics.kendall(a, b) == pytest.approx((5 - 1) / 6)
    assert text_metrics.kendall(a, -a) == -1.0
    # pairs of (1,1) (1,2) (2,3): the first is tied in a; 2 agree, untied are 2 in a and 3 in b
    assert text_metrics.kendall(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / math.sqrt(6))
    assert text_metrics.kendall(np.array([1.0, NAN, 2.0]), np.array([5.0, 9.0, 7.0])) == 1.0
    assert math.isnan(text_metrics.kendall(np.array([1.0, 1.0]), np.array([1.0, 2.0])))


def test_within_prompts_leaves_out_what_has_no_spread():
    rewards = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [NAN, 1.0]])
    lengths = np.array([[5.0, 6.0], [5.0, 6.0], [5.0, 6.0], [5.0, 6.0]])
    found = text_metrics.within_prompts(rewards, lengths)
    assert found == pytest.approx([1.0, -1.0, NAN, NAN], nan_ok=True)


@pytest.mark.parametrize("planted", [0.0, 0.8])
def test_a_planted_correlation_of_reward_and_length_is_found_for_any_k_and_differences_of_prompts_are_not(planted):
    rng = np.random.default_rng(2)
    truth = 2 / math.pi * math.asin(planted)  # Kendall's tau of two normals
    for k in (2, 8):
        lengths = rng.normal(size=(2000, k))
        rewards = planted * lengths + math.sqrt(1 - planted**2) * rng.normal(size=lengths.shape)
        hard = 9 * rng.normal(size=(2000, 1))  # long answers to hard prompts: between prompts, not within
        found = text_metrics.within_prompts(rewards + hard, lengths + hard)
        assert abs(found.mean() - truth) < 4 * reward_metrics.standard_error(found)


def test_longest_winners_beside_chance_by_hand():
    lengths = np.array([[1, 3, 2, 2], [4, 4, 1, 1], [5, 5, 5, 5]])  # the third group has no longest
    found = text_metrics.longest(lengths, np.array([0, 1, 2]), np.array([1, 2, 0]))
    chance = (1 / 4 + 2 / 4) / 2
    z = (1 - 3 / 4) / math.sqrt(1 / 4 * 3 / 4 + 1 / 2 * 1 / 2)
    assert (found.share, found.chance, found.z) == pytest.approx((1 / 2, chance, z))
    nothing = text_metrics.longest(lengths[2:], np.array([0]), np.array([0]))
    assert all(map(math.isnan, (nothing.share, nothing.chance, nothing.z)))


def test_winners_picked_blindly_are_the_longest_by_chance_and_a_reward_for_length_is_not_chance():
    rng = np.random.default_rng(3)
    rows = np.arange(400)
    zs = []
    for _ in range(200):
        lengths = rng.integers(1, 12, size=(400, 4))
        zs.append(text_metrics.longest(lengths, rows, rng.integers(4, size=400)).z)
    assert abs(np.mean(zs)) < 4 / math.sqrt(200) and np.std(zs) == pytest.approx(1.0, abs=0.2)
    assert text_metrics.longest(lengths, rows, lengths.argmax(axis=1)).z > 20


def test_winners_against_a_random_response_of_the_same_group_by_hand():
    values = np.array([[1.0, 3.0], [10.0, 20.0], [7.0, 9.0]])
    chosen, by_chance = text_metrics.against_random(values, np.array([0, 1]), np.array([1, 0]))
    assert (chosen, by_chance) == pytest.approx(((3 + 10) / 2, (2 + 15) / 2))
    none = np.array([], dtype=int)
    assert all(map(math.isnan, text_metrics.against_random(values, none, none)))


def test_a_symbol_and_a_phrase_that_rose_are_listed_with_their_shares_and_z():
    before = ["a b", "b c", "c d", "d e"] * 25
    now = ["once upon a b #", "once upon b c #", "once upon c d #", "d e"] * 25
    rises = {one.text: one for one in text_metrics.rising(now, before, prompts=100)}
    assert list(rises) == ["once upon", "#"]
    mean = 0.75 / 2
    z = 0.75 / math.sqrt(2 * mean * (1 - mean) / 100)
    assert (rises["#"].now, rises["#"].before, rises["#"].z) == pytest.approx((0.75, 0.0, z))
    assert rises["once upon"].z == pytest.approx(z)


def test_what_is_not_words_rises_too():
    rises = text_metrics.rising(["はい🙂"] * 50, ["はい"] * 50, prompts=50)
    assert [one.text for one in rises] == ["🙂"]
    rises = text_metrics.rising(["本当に"] * 50, ["良い"] * 50, prompts=50)
    assert [one.text for one in rises] == ["本当に"]


def test_texts_of_the_same_kind_hardly_ever_have_a_rise():
    rng = np.random.default_rng(4)
    found = [
        text_metrics.rising(drawn_texts(rng, 128, 15, 60), drawn_texts(rng, 128, 15, 60), prompts=128)
        for _ in range(20)
    ]
    assert sum(map(bool, found)) <= 1


def test_answers_to_one_prompt_that_resemble_each_other_do_not_look_like_a_rise():
    # four answers to a prompt are the same text: as many answers as prompts would claim twice the z
    rng = np.random.default_rng(5)
    first, now = ([text for text in drawn_texts(rng, 32, 15, 60) for _ in range(4)] for _ in range(2))
    by_prompts = max((one.z for one in text_metrics.rising(now, first, prompts=32)), default=0.0)
    by_answers = max((one.z for one in text_metrics.rising(now, first, prompts=128)), default=0.0)
    assert by_prompts == 0.0 and by_answers > text_metrics.RISEN


def test_nothing_rises_from_nothing():
    assert text_metrics.rising([], ["a"], 1) == [] and text_metrics.rising(["a"], [], 1) == []
    assert text_metrics.rising(["a"] * 9, ["a"] * 9, 9) == []


def test_a_ratio_and_its_error_by_hand():
    sums, counts = np.array([[1.0, 3.0], [8.0, NAN]]), np.array([[2, 2], [4, 9]])
    # 12 over 8; the residuals are 4 - 1.5 * 4 and 8 - 1.5 * 4
    assert text_metrics.ratio(sums, counts) == pytest.approx((1.5, math.sqrt((4 + 4) * 2) / 8))
    assert all(map(math.isnan, text_metrics.ratio(np.full((2, 2), NAN), np.ones((2, 2)))))
    assert text_metrics.ratio(np.array([[2.0]]), np.array([[4]])) == pytest.approx((0.5, NAN), nan_ok=True)


def markov(rng: np.random.Generator, answers: int, table: np.ndarray, longest: int) -> tuple[list[int], list[float]]:
    """Answers of a chain of tokens, the last of which ends one: their lengths, and minus their log-probabilities."""
    lengths, surprises = [], []
    end = len(table) - 1
    for _ in range(answers):
        state, surprise, length = 0, 0.0, 0
        while length < longest and (state != end or not length):
            token = rng.choice(len(table), p=table[state])
            surprise -= math.log(table[state][token])
            state, length = token, length + 1
        lengths.append(length)
        surprises.append(surprise)
    return lengths, surprises


@pytest.mark.nightly
def test_surprise_is_the_entropy_of_the_tokens_where_answers_are_drawn_as_they_are():
    table = np.array([[0.5, 0.4, 0.1], [0.05, 0.9, 0.05], [1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore", invalid="ignore"):
        entropies = -np.nansum(table * np.log(table), axis=1)
    # how often each state is asked for its next token, exactly, for at most 6 tokens
    asked, state = np.zeros(3), np.array([1.0, 0.0, 0.0])
    for _ in range(6):
        asked += state
        state = np.append(state[:2], 0.0) @ table
        state[2] = 0.0
    truth = asked @ entropies / asked.sum()
    lengths, surprises = markov(np.random.default_rng(6), 8000, table, 6)
    found, error = text_metrics.ratio(np.array(surprises).reshape(-1, 2), np.array(lengths).reshape(-1, 2))
    assert abs(found - truth) < 4 * error and error < 0.01
    sharp = table**2 / (table**2).sum(axis=1, keepdims=True)  # temperature 1/2 draws what the policy is sure of
    lengths, surprises = markov(np.random.default_rng(7), 8000, sharp, 6)
    assert text_metrics.ratio(np.array(surprises)[:, None], np.array(lengths)[:, None])[0] < truth - 4 * error


def test_the_errors_of_ratios_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(8)
    inside = 0
    for _ in range(400):
        counts = rng.integers(1, 20, size=(60, 2))
        level = rng.gamma(4.0, 0.25, size=(60, 1))  # answers to one prompt resemble each other
        found, error = text_metrics.ratio(rng.poisson(level * counts).astype(float), counts)
        inside += abs(found - 1.0) < 1.96 * error
    assert 0.9 < inside / 400 < 0.98


def test_the_mean_log_ratio_is_the_kl_and_the_estimator_that_is_never_negative_misses_it():
    # 40 tokens, each Bernoulli(0.9) now and Bernoulli(0.5) at first: exact in closed form
    rng = np.random.default_rng(9)
    ones = (rng.random((500, 4, 40)) < 0.9).sum(axis=-1)
    policy = ones * math.log(0.9) + (40 - ones) * math.log(0.1)
    first = np.full(policy.shape, 40 * math.log(0.5))
    exact = 40 * (0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))
    figures = reward_metrics.evaluated(text_metrics.log_ratios(policy, first), "kl")
    assert exact > 10 and abs(figures["kl"] - exact) < 4 * figures["kl_se"]
    ratio = np.exp(first - policy)
    never_negative = ratio - 1 - np.log(ratio)
    error = reward_metrics.standard_error(reward_metrics.prompt_means(never_negative))
    assert exact - never_negative.mean() > 4 * error  # and its own error does not show it


def test_perplexity_by_hand_is_that_of_all_tokens_together():
    logprobs, tokens = np.array([-math.log(8), -math.log(4)]), np.array([1, 4])
    assert text_metrics.perplexity(logprobs, tokens) == pytest.approx(32 ** (1 / 5))
    assert math.isnan(text_metrics.perplexity(np.array([0.0]), np.array([0])))


def test_the_share_of_the_headroom_that_was_absorbed_by_hand():
    before = np.array([[0.0, 4.0], [2.0, 2.0], [NAN, NAN]])  # means 2, 2; best 4, 2: from 2 to 3
    assert text_metrics.absorbed(before, np.array([[2.0, 3.0], [2.5, 2.5]])) == pytest.approx(0.5)
    assert text_metrics.absorbed(before, np.array([[3.0]])) == pytest.approx(1.0)
    assert math.isnan(text_metrics.absorbed(np.array([[1.0, 1.0]]), np.array([[2.0]])))
    assert math.isnan(text_metrics.absorbed(before, np.array([[NAN]])))
