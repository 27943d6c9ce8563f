"""The simulator of a cluster keeps the laws of queues, whatever its constants are."""

import math
import random
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import cluster_simulator as simulator  # noqa: E402
from cluster_simulator import CONSTANTS, DEVICES, Rates, Work  # noqa: E402

OF = {name: value for name, (value, _) in CONSTANTS.items()}
FREE = {name: 0.0 if name.startswith(("ray", "append", "read")) else value for name, value in OF.items()}
NO_PROMPT = Work(prompt_tokens=0)


def equal(prompts: int, k: int, tokens: int) -> np.ndarray:
    return np.full((prompts, k), tokens)


@cache
def made() -> dict[str, list[str]]:
    return simulator.tables(Work(), OF)[0]


def test_steps_of_decoding_take_the_longer_of_reading_and_computing_each():
    rng = random.Random(0)
    for _ in range(200):
        one = Rates(*(rng.choice([0.0, rng.random()]) for _ in range(5)))
        sequences, context, steps = rng.randint(1, 9), rng.randint(0, 50), rng.randint(0, 40)
        expected = 0.0
        for step in range(steps):
            read = one.weights + (context + step * sequences) * one.cached
            expected += one.step + sequences * one.sequence + max(read, sequences * one.compute)
        assert one.decode(sequences, context, steps) == pytest.approx(expected)


def test_one_engine_takes_as_many_rounds_as_its_room_asks_for():
    engine = Rates(step=2.0, sequence=0.5, slots=4)
    assert simulator.generate(NO_PROMPT, equal(12, 1, 10), 1, engine, FREE).seconds == 3 * 10 * (2.0 + 4 * 0.5)


def test_the_cache_of_a_response_grows_by_a_token_at_each_step():
    work, engine = Work(prompt_tokens=7), Rates(cached=1.0, slots=100)
    expected = sum(5 * (7 + step) for step in range(10))
    assert simulator.generate(work, equal(5, 1, 10), 1, engine, FREE).seconds == pytest.approx(expected)


def test_a_response_that_ends_leaves_the_cache():
    work, engine = Work(prompt_tokens=7), Rates(cached=1.0, slots=100)
    expected = sum(2 * (7 + step) for step in range(3)) + sum(7 + step for step in range(3, 5))
    assert simulator.generate(work, np.array([[3], [5]]), 1, engine, FREE).seconds == pytest.approx(expected)


def test_no_engine_has_more_than_its_share_of_few_prompts():
    engine = Rates(step=1.0, sequence=1.0)
    assert simulator.generate(NO_PROMPT, equal(8, 1, 10), 4, engine, FREE).seconds == 10 * (1.0 + 2 * 1.0)


@pytest.mark.parametrize("engines", [2, 4, 8])
def test_engines_share_equal_responses_equally(engines: int):
    engine = Rates(step=1.0, sequence=0.1, slots=8)
    alone = simulator.generate(NO_PROMPT, equal(64, 8, 20), 1, engine, FREE).seconds
    assert simulator.generate(NO_PROMPT, equal(64, 8, 20), engines, engine, FREE).seconds == pytest.approx(
        alone / engines
    )


def test_no_number_of_engines_beats_the_longest_response_or_the_driver_and_more_are_never_slower():
    engine = Rates(step=1.0, sequence=0.05, compute=0.01, cached=1e-4, weights=0.5, slots=16)
    for seed in range(5):
        work = Work(prompts=64, k=4, seed=seed)
        lengths = work.lengths(work.prompts, work.k)
        floor = engine.decode(1, work.prompt_tokens, int(lengths.max()))
        seconds = [simulator.generate(work, lengths, engines, engine, FREE).seconds for engines in (1, 2, 4, 16, 64)]
        assert seconds == sorted(seconds, reverse=True)
        assert min(seconds) >= floor
        slow = FREE | {"ray_group": 100.0}
        assert simulator.generate(work, lengths, 64, engine, slow).seconds >= 64 * 100.0


def test_every_response_is_made_once():
    work = Work(prompts=40, k=4)
    lengths = work.lengths(40, 4)
    alone = Rates(sequence=1.0, slots=3)  # a step takes as long as it has sequences: time counts tokens
    assert simulator.generate(work, lengths, 1, alone, FREE).seconds == pytest.approx(lengths.sum())
    assert sum(simulator.generate(work, lengths, 5, alone, FREE).idle) >= lengths.sum()


def test_lengths_are_those_of_the_distribution_cut_at_the_most():
    work = Work(prompts=4000, max_tokens=400)
    lengths = work.lengths(work.prompts, work.k)
    cut = 0.5 * math.erfc(math.log(400 / work.median) / work.sigma / math.sqrt(2))
    assert np.median(lengths) == pytest.approx(work.median, rel=0.02)
    assert (lengths == 400).mean() == pytest.approx(cut, abs=0.01)


def test_a_worker_is_handed_two_blocks_before_the_next_has_one():
    engine, texts = Rates(score_text=1.0), equal(8 * 64, 1, 1)
    seconds = [simulator.score(NO_PROMPT, texts, devices, engine, FREE) for devices in (1, 2, 4, 8)]
    assert seconds == [8 * 64, 4 * 64, 2 * 64, 2 * 64]


def test_ranks_beyond_the_passes_of_a_step_gain_nothing():
    work = Work(prompts=64, prompt_tokens=100, batch_size=32, num_train_epochs=3, max_tokens_per_microbatch=400)
    engine, lengths = Rates(train_token=1.0, update=7.0), equal(64, 1, 100)
    steps, passes = 2 * 3, 16  # two texts of 200 tokens in a pass of 400
    seconds = {devices: simulator.train(work, lengths, devices, engine, OF) for devices in (1, 2, 16, 64)}
    assert seconds == {devices: steps * (7 + math.ceil(passes / devices) * 400) for devices in (1, 2, 16, 64)}


def test_adding_up_gradients_moves_each_byte_nearly_twice_through_every_device():
    still = OF | {"hop": 0.0}
    assert simulator.added_up(1e9, 1, still) == 0
    assert simulator.added_up(1e9, 8, still) == pytest.approx(2 * 7 / 8 * 1e9 / still["nvlink"])
    assert simulator.added_up(1e9, 64, still) == pytest.approx(2 * 63 / 64 * 1e9 / (8 * still["network"]))


def test_a_policy_that_does_not_fit_has_no_seconds():
    assert 16 * 70.5e9 > 150.7e9 and 2 * 70.5e9 > 0.92 * 150.7e9  # its state in training; its weights in an engine
    for devices in DEVICES:
        for variant in ("full", "lora"):
            told = simulator.rates("Llama-3.1-70B", variant, devices, Work(), OF)
            assert isinstance(told, str) and "generate 141.1" in told and "train" in told
    assert isinstance(simulator.rates("Llama-3.1-70B", "sharded", 8, Work(), OF), str)  # 1,129 GB over 8 GPUs
    assert isinstance(simulator.rates("Llama-3.1-70B", "sharded", 64, Work(), OF), Rates)


def test_it_says_what_was_measured_on_one_cpu_within_the_error_that_the_page_tells():
    """The blocks of 2,048 x 8 calibrate it; those of 256 x 8 and the quickstart do not."""
    off = {
        name: sum(simulator.predicted(work)) / sum(measured) - 1
        for name, (work, measured) in simulator.MEASURED.items()
    }
    assert abs(off.pop("the quickstart, another model")) < 0.35
    assert all(abs(error) < 0.05 for error in off.values()), off


def test_evaluation_without_likelihoods_takes_none():
    one = simulator.rates("Qwen2.5-7B", "full", 8, Work(), OF)
    stages = simulator.iteration(Work(), 8, one, OF)
    without = simulator.iteration(replace(Work(), kl=0), 8, one, OF)
    assert without == {**stages, "likelihoods": 0.0}


@pytest.mark.parametrize("name", ["fits", "times", "changes", "validation"])
def test_the_page_has_the_tables_that_the_simulator_prints(name: str):
    assert "\n".join(made()[name]) in (ROOT / "docs" / "scaling.md").read_text()
