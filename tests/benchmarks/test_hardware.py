"""The tables of docs/hardware.md are those of the memory plan, and their models have the sizes that are published."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import hardware  # noqa: E402

PUBLISHED = {  # parameters, as the models' own pages and files have them
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Llama-3.1-8B": 8_030_261_248,
    "Qwen2.5-14B": 14_770_033_664,
    "Gemma-2-27B": 27_227_128_320,
    "Qwen2.5-32B": 32_763_876_352,
    "Llama-3.1-70B": 70_553_706_496,
}


def test_models_have_as_many_parameters_as_is_published():
    assert {name: hardware.model(name).parameters() for name in hardware.MODELS} == PUBLISHED


def test_the_arithmetic_of_a_policy_by_hand():
    """Qwen2.5-7B: 28 layers of width 3,584 with an inner layer of 18,944; 152,064 tokens; four heads of 128 cached."""
    train = hardware.turns("Qwen2.5-7B", hardware.REWARDS[0], False, 141)["train"]
    count, layer = PUBLISHED["Qwen2.5-7B"], 4 * 4 * 3584 + 2 * (7 * 3584 + 4 * 18944)
    assert list(train.terms.values()) == [
        16 * count,
        2 * count,
        2048 * (28 * 4 * 3584 + layer),
        2048 * 3 * 4 * 152064,
    ]
    assert hardware.model("Qwen2.5-7B").cached(2) == 2 * 28 * 4 * 128 * 2
    matrices = [(3584, 3584), (512, 3584), (512, 3584), (3584, 3584), (18944, 3584), (18944, 3584), (3584, 18944)]
    adapters = 28 * 32 * sum(rows + columns for rows, columns in matrices)
    lora = hardware.turns("Qwen2.5-7B", hardware.REWARDS[0], True, 141)["train"]
    assert list(lora.terms.values())[:2] == [4 * count, 16 * adapters]


def test_the_arithmetic_of_sharding_by_hand():
    """Qwen2.5-7B over eight ranks: an eighth of its state; two layers, embeddings and output with their gradients."""
    train = hardware.turns("Qwen2.5-7B", hardware.REWARDS[0], False, 80, 8)["train"]
    layer = 2 * 3584 * 3584 + 2 * 512 * 3584 + 3 * 3584 * 18944 + (3584 + 2 * 512) + 2 * 3584
    together = 2 * 152064 * 3584 + 3584 + 2 * layer
    assert list(train.terms.values())[:2] == [2 * PUBLISHED["Qwen2.5-7B"], 8 * together]
    assert hardware.sharded(train) and train.total < 0.25 * 142.2e9
    assert not hardware.sharded(hardware.turns("Qwen2.5-3B", hardware.REWARDS[0], False, 80, 8)["train"])


def test_sharded_training_fits_from_as_many_gpus_as_the_page_says():
    """Of each rank: 16 bytes of a parameter's share, and what is gathered, whatever the number of ranks."""
    for policy, gpu, fewest in (("Qwen2.5-32B", 80, 10), ("Llama-3.1-70B", 80, 27), ("Llama-3.1-70B", 141, 11)):
        others = hardware.turns(policy, hardware.REWARDS[0], False, gpu, 8, "fsdp")["train"].terms
        fixed = sum(value or 0 for value in list(others.values())[1:])
        room = hardware.CARDS[gpu] - 3e9 - fixed
        assert -(-16 * PUBLISHED[policy] // int(room)) == fewest
        for devices, expected in ((fewest - 1, False), (fewest, True)):
            assert hardware.fits("train", policy, gpu=gpu, devices=devices) == expected


def test_an_engine_that_one_gpu_does_not_hold_fits_two():
    for gpu in (80, 141):
        for split, expected in ((1, False), (2, True)):
            assert (2 * PUBLISHED["Llama-3.1-70B"] / split < 0.92 * hardware.CARDS[gpu]) == expected
            assert hardware.fits("generate", "Llama-3.1-70B", gpu=gpu, split=split) == expected


def test_what_fits_a_gpu_fits_every_larger_one():
    for policy in hardware.POLICIES:
        for turn in ("generate", "train", "likelihoods"):
            found = [hardware.fits(turn, policy, gpu=gpu) for gpu in hardware.CARDS]
            assert found == sorted(found)


@pytest.mark.parametrize("place", range(4))
def test_the_page_has_the_tables_of_the_memory_plan(place: int):
    assert hardware.tables()[place] in (ROOT / "docs" / "hardware.md").read_text()
