"""Where texts lie in one input of a model: numpy alone."""

from collections import Counter

import numpy as np
import pytest

from raft.models import packing
from raft.models.packing import batches, bins, common, pack, pad, rows, size


def arrays(*lengths: int) -> list[np.ndarray]:
    return [np.arange(1, length + 1, dtype=np.int32) for length in lengths]


def lengths(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 100, count).tolist()


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


@pytest.fixture
def always(monkeypatch):
    """Beginnings are shared however short they are."""
    monkeypatch.setattr(packing, "MIN_SHARED_PREFIX", 1)


FAMILIES = [[(1, 2, 3, 4), (1, 2, 3, 5, 6), (1, 2, 9)], [(7, 8)], [(4, 4), (4, 4, 4)], [(1, 2), (3, 4)]]


def test_positions_start_again_with_each_packed_text():
    inputs, row, places = pack([[text] for text in arrays(3, 1, 1, 2)])
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 1, 1, 1, 2]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 0, 0, 1]]
    assert inputs["attention_mask"].tolist() == [[[[0, 3, 0, 0], [3, 1, 0, 0], [4, 1, 0, 0], [5, 2, 0, 0]]]]
    assert row.tolist() == [0, 0, 0, 0]
    assert [place.tolist() for place in places] == [[0, 1, 2], [3], [4], [5, 6]]


def test_what_the_texts_of_a_family_begin_with_stands_once(always):
    inputs, _, places = pack(FAMILIES)
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 3, 5, 6, 9, 7, 8, 4, 4, 4, 4, 1, 2, 3, 4]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4, 2, 0, 1, 0, 1, 1, 2, 0, 1, 0, 1]]
    assert inputs["attention_mask"][0, 0].tolist() == [
        [0, 2, 0, 0], [2, 2, 0, 2], [4, 3, 0, 2], [7, 1, 0, 2], [8, 2, 0, 0],
        [10, 1, 0, 0], [11, 1, 10, 1], [12, 2, 10, 1], [14, 2, 0, 0], [16, 2, 0, 0],
    ]  # fmt: skip
    assert places[1].tolist() == [0, 1, 4, 5, 6]


def test_the_size_of_a_family_is_what_it_takes_in_a_row(always):
    assert [size(group) for group in FAMILIES] == [8, 2, 4, 4]
    assert sum(map(size, FAMILIES)) == pack(FAMILIES).inputs["input_ids"].size


def test_every_text_keeps_a_token_of_its_own(always):
    assert common([(1, 2, 3), (1, 2, 3)]) == common([(1, 2, 3), (1, 2, 3, 4)]) == 2
    assert common([(1,), (1, 2)]) == common([(1, 2), (3, 2)]) == common([(1, 2)]) == 0


def test_a_beginning_is_shared_only_where_that_saves_enough():
    prompt = list(range(10))
    assert common([[*prompt, 1], [*prompt, 2]]) == 0  # 10 tokens saved
    assert common([[*prompt, 1], [*prompt, 2], [*prompt, 3]]) == 10  # 20


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("capacity", [1, 30, 64, 1000])
def test_every_text_is_in_one_pass_and_no_pass_is_too_large(packed, capacity):
    random = np.random.default_rng(0)
    prompts = [random.integers(9, size=length).tolist() for length in (1, 12, 20)]
    rests = random.integers(1, 20, size=(3, 8))
    groups = [
        [[*prompt, *random.integers(9, size=rest).tolist()] for rest in row]
        for prompt, row in zip(prompts, rests, strict=True)
    ]
    found = batches(groups, capacity, packed)
    places = [place for batch in found for part in batch for place in part]
    assert sorted(places) == [(number, at) for number in range(3) for at in range(8)]
    for batch in found:
        texts = [[groups[number][at] for number, at in part] for part in batch]
        layout = pack(texts) if packed else pad([text for part in texts for text in part])
        assert layout.inputs["input_ids"].size <= capacity or sum(map(len, texts)) == 1


def test_padding_is_on_the_right_and_masked():
    inputs, row, places = pad(arrays(3, 1), padding=9)
    assert inputs["input_ids"].tolist() == [[1, 2, 3], [1, 9, 9]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert row.tolist() == [0, 1]
    assert [place.tolist() for place in places] == [[0, 1, 2], [0]]


@pytest.mark.parametrize("lay", [lambda texts: pack([texts]), lambda texts: pack([[one] for one in texts]), pad])
def test_a_layout_says_where_each_token_lies(lay):
    texts = arrays(3, 1, 5, 2)
    inputs, row, places = lay(texts)
    for number, text in enumerate(texts):
        assert inputs["input_ids"][row[number], places[number]].tolist() == text.tolist()
