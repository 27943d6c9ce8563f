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


def test_each_worker_has_a_block_before_any_has_two():
    engine, blocks = Rates(score_text=1.0), simulator.parted(equal(8 * 64, 1, 1), 64)
    seconds = [simulator.score(NO_PROMPT, blocks, workers, engine, FREE) for workers in (1, 2, 4, 8, 16)]
    assert seconds == [8 * 64, 4 * 64, 2 * 64, 64, 64]


def test_a_worker_that_scores_one_block_is_handed_the_next_before_it_is_done():
    """Handing out takes 1 s a block, scoring it 3 s: after the first, nobody waits for the driver."""
    engine, slow = Rates(score_text=3 / 64), FREE | {"ray_call": 1.0}
    blocks = simulator.parted(equal(4 * 64, 1, 1), 64)
    assert simulator.score(NO_PROMPT, blocks, 1, engine, slow) == pytest.approx(1 + 4 * 3)


def test_reward_workers_score_one_block_at_a_time_while_others_generate_and_what_is_left_all_together():
    texts, engine = equal(4 * 64, 1, 1), Rates(score_text=1.0)
    made = simulator.Generated(100.0, [], 0.0, [0.0] * len(texts))  # written at once; others generate for 100 s
    expected = {(1, 1): 28 + 2 * 64, (1, 2): 28 + 64, (2, 2): 28}  # begun at 0 and 64 s, so the last ends at 128 s
    for (at_once, workers), seconds in expected.items():
        work = replace(NO_PROMPT, streamed=at_once, reward_workers=workers)
        assert simulator.followed(work, texts, made, engine, FREE) == seconds
    late = made._replace(written=[100.0] * len(texts))
    assert simulator.followed(replace(NO_PROMPT, reward_workers=2), texts, late, engine, FREE) == 2 * 64


@pytest.mark.nightly
def test_workers_that_only_score_neither_generate_nor_train():
    six, eight = (
        simulator.rates("Qwen2.5-7B", "full", devices, Work(reward_workers=two), OF)
        for devices, two in ((6, 0), (8, 2))
    )
    assert replace(eight, score_load=six.score_load) == six
    stages, apart = (
        simulator.iteration(work, devices, one, OF)
        for work, devices, one in ((Work(), 6, six), (Work(reward_workers=2), 8, eight))
    )
    for stage in ("train", "handover", "likelihoods"):
        assert apart[stage] == stages[stage]


def test_likelihoods_go_to_as_many_workers_as_there_are_blocks():
    engine = Rates(likely_token=1.0)
    seconds = {
        workers: simulator.likelihoods(NO_PROMPT, equal(256, 4, 1), workers, engine, FREE) for workers in (1, 2, 16, 64)
    }
    assert seconds == {workers: 2 * (16 // min(16, workers)) * 64 for workers in (1, 2, 16, 64)}  # of 16 x 4 tokens


def test_the_driver_looks_at_every_engine_for_each_thing_that_comes():
    looked = simulator.generate(NO_PROMPT, equal(8, 1, 3), 4, Rates(step=1.0), FREE | {"ray_wait": 1.0})
    assert looked.driver == 4 * (4 + 8)  # four engines take their prompts, and eight groups come back


def test_ranks_beyond_the_passes_of_a_step_gain_nothing():
    work = Work(prompts=64, prompt_tokens=100, batch_size=32, num_train_epochs=3, max_tokens_per_microbatch=400)
    engine, lengths = Rates(train_token=1.0, update=7.0), equal(64, 1, 100)
    steps, passes = 2 * 3, 16  # two texts of 200 tokens in a pass of 400
    seconds = {devices: simulator.train(work, lengths, devices, engine, OF) for devices in (1, 2, 16, 64)}
    assert seconds == {devices: steps * (7 + math.ceil(passes / devices) * 400) for devices in (1, 2, 16, 64)}


def test_ranks_of_sharded_weights_compute_together_and_each_pass_moves_all_weights_three_times():
    work = Work(prompts=64, prompt_tokens=100, batch_size=32, num_train_epochs=3, max_tokens_per_microbatch=400)
    steps, probes, lengths = 2 * 3, 4 * 8, equal(64, 1, 100)  # eight texts, rounded and not, before and after
    for moving, longest in ((10.0, 400.0), (500.0, 1500.0)):
        engine = Rates(train_token=1.0, update=7.0, gathered=moving)
        for ranks in (2, 3, 16, 64):
            expected = steps * (7 + math.ceil(16 / ranks) * longest) + probes * moving
            assert simulator.train(work, lengths, ranks, engine, OF) == pytest.approx(expected)


def test_putting_weights_together_moves_all_but_a_ranks_own_part_over_a_ring():
    one = simulator.rates("Qwen2.5-7B", "full", 8, Work(), OF)
    assert isinstance(one, Rates)
    expected = 4 * 7_615_616_512 * 7 / 8 / OF["nvlink"] + (28 + 1) * 7 * OF["hop"]  # 28 layers, and what is in none
    assert one.gathered == pytest.approx(expected) and one.gradients == 0
    alone = simulator.rates("Qwen2.5-7B", "full", 1, Work(), OF)
    assert isinstance(alone, Rates) and alone.gathered == 0 and alone.update == pytest.approx(8 * one.update)


def test_rank_0_alone_loads_sharded_weights_and_every_node_loads_those_that_are_not():
    still = FREE | {"load": 1e99, "files_write": 1e99, "files": 10.0, "files_node": 5.0, "node": 8}
    whole = simulator.handover(Rates(load=100.0), 64, still)
    apart = simulator.handover(Rates(load=100.0, gathered=1e-9), 64, still)
    assert whole == pytest.approx(2 * 8 * 100 / 10) and apart == pytest.approx(100 / 5 + 8 * 100 / 10)


def test_adding_up_gradients_moves_each_byte_nearly_twice_through_every_device():
    still = OF | {"hop": 0.0}
    assert simulator.added_up(1e9, 1, still) == 0
    assert simulator.added_up(1e9, 8, still) == pytest.approx(2 * 7 / 8 * 1e9 / still["nvlink"])
    assert simulator.added_up(1e9, 64, still) == pytest.approx(2 * 63 / 64 * 1e9 / (8 * still["network"]))


def test_a_policy_that_does_not_fit_has_no_seconds():
    assert 2 * 70.5e9 > 0.92 * 150.7e9 and 4 * 70.5e9 > 150.7e9  # its weights in an engine, and for likelihoods
    assert 16 * 70.5e9 / 8 + 8 * 2 * 128256 * 8192 > 147.7e9  # a rank's part, and embeddings and output gathered
    for devices in DEVICES:
        told = simulator.rates("Llama-3.1-70B", "full", devices, Work(), OF)
        assert isinstance(told, str) and "generate 141.1" in told and "likelihoods 294.8" in told
        assert ("train" in told) == (devices <= 8)
        lora = simulator.rates("Llama-3.1-70B", "lora", devices, Work(), OF)
        assert isinstance(lora, str) and "generate 141.1" in lora and "train 298.3" in lora
        split = simulator.rates("Llama-3.1-70B", "split", devices, Work(), OF)
        assert isinstance(split, str) and ("likelihoods 294.8" in split) == (devices > 1)
        fits = isinstance(simulator.rates("Llama-3.1-70B", "split", devices, Work(kl=0), OF), Rates)
        assert fits == (devices > 8)


def test_a_worker_with_two_gpus_is_one_engine_and_two_ranks():
    work = Work(kl=0)
    split, whole = (simulator.rates("Qwen2.5-7B", variant, 16, work, OF) for variant in ("split", "full"))
    assert isinstance(split, Rates) and isinstance(whole, Rates)
    assert split.weights == pytest.approx(whole.weights / (2 * OF["tensor"]))
    assert split.gathered == whole.gathered and split.update == whole.update
    stages, sixteen = (simulator.iteration(work, 16, one, OF) for one in (split, whole))
    eight = simulator.iteration(work, 8, replace(whole, gathered=0.0), OF)
    assert stages["score"] == eight["score"] > sixteen["score"]
    assert stages["train"] == pytest.approx(sixteen["train"] + OF["spawn"] - 8 * OF["ray_rank"])


def test_what_one_gpu_cannot_train_is_sharded():
    assert 16 * 14.77e9 > 150.7e9
    assert isinstance(simulator.rates("Qwen2.5-14B", "full", 1, Work(), OF), str)
    sharded = simulator.rates("Qwen2.5-14B", "full", 8, Work(), OF)
    lora = simulator.rates("Qwen2.5-14B", "lora", 8, Work(), OF)
    assert isinstance(sharded, Rates) and sharded.gathered > 0
    assert isinstance(lora, Rates) and lora.gathered == 0 and lora.gradients > 0


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
@pytest.mark.nightly
def test_the_page_has_the_tables_that_the_simulator_prints(name: str):
    assert "\n".join(made()[name]) in (ROOT / "docs" / "scaling.md").read_text()
