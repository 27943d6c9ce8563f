"""The order of examples and where their tokens lie: numpy alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raft.trainers.packing import Order, Texts, bins, pack, pad, rows


def arrays(*lengths: int) -> list[np.ndarray]:
    return [np.arange(1, length + 1, dtype=np.int32) for length in lengths]


def lengths(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 100, count).tolist()


def test_each_epoch_learns_every_example_once_in_an_order_of_its_own():
    order = Order(count=10, batch_size=4, epochs=3, seed=1)
    epochs = [np.concatenate([order.step(3 * epoch + place) for place in range(3)]) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_step_is_exactly_the_batch_size_and_the_last_of_an_epoch_is_what_is_left():
    order = Order(count=10, batch_size=4, epochs=2, seed=1)
    assert [len(order.step(number)) for number in range(len(order))] == [4, 4, 2, 4, 4, 2]


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    one, same, other = (Order(50, 50, 1, seed).step(0).tolist() for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize("split", [bins, rows])
@pytest.mark.parametrize("capacity", [1, 50, 137, 1000, 100_000])
def test_every_text_is_in_exactly_one_forward_pass(split, capacity):
    sizes = lengths(40)
    found = Counter(place for places in split(sizes, capacity) for place in places)
    assert found == Counter(range(40))


@pytest.mark.parametrize("capacity", [1, 50, 137, 1000])
def test_a_bin_holds_no_more_than_its_capacity_unless_one_text_alone_does(capacity):
    sizes = lengths(40)
    for places in bins(sizes, capacity):
        assert sum(sizes[place] for place in places) <= capacity or len(places) == 1


def test_bins_are_even():
    sizes = lengths(200)
    loads = [sum(sizes[place] for place in places) for places in bins(sizes, 2500)]
    assert len(loads) == -(-sum(sizes) // 2500)
    assert max(loads) - min(loads) < 20


def test_a_text_longer_than_the_capacity_has_a_bin_of_its_own():
    assert [3] in bins([10, 10, 10, 500, 10], 40)


@pytest.mark.parametrize("capacity", [1, 50, 137, 1000])
def test_padded_batches_cover_no_more_positions_than_the_capacity(capacity):
    sizes = lengths(40)
    for places in rows(sizes, capacity):
        assert len(places) * max(sizes[place] for place in places) <= capacity or len(places) == 1


def test_positions_start_again_with_each_packed_text():
    inputs, row, start = pack(arrays(3, 1, 1, 2))
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 1, 1, 1, 2]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 0, 0, 1]]
    assert row.tolist() == [0, 0, 0, 0]
    assert start.tolist() == [0, 3, 4, 5]
    assert "attention_mask" not in inputs


def test_padding_is_on_the_right_and_masked():
    inputs, row, start = pad(arrays(3, 1))
    assert inputs["input_ids"].tolist() == [[1, 2, 3], [1, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert row.tolist() == [0, 1]
    assert start.tolist() == [0, 0]


@pytest.mark.parametrize("lay", [pack, pad])
def test_a_layout_says_where_each_token_lies(lay):
    texts = arrays(3, 1, 5, 2)
    inputs, row, start = lay(texts)
    for place, text in enumerate(texts):
        assert inputs["input_ids"][row[place], start[place] : start[place] + len(text)].tolist() == text.tolist()


def test_texts_come_back_as_they_were_and_leave_no_file(tmp_path: Path):
    texts = Texts(tmp_path)
    written = [[1, 2, 3], [], [2**31 - 1], list(range(1000))]
    for ids in written:
        texts.append(ids)
    assert [texts[index].tolist() for index in range(len(texts))] == written
    assert texts.lengths([3, 0]) == [1000, 3]
    assert list(tmp_path.iterdir()) == []
