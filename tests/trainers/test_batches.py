"""What an optimiser step reads: the order of examples and their tokens. Numpy alone."""

from pathlib import Path

import numpy as np

from raft.trainers.batches import Order, Texts


def test_each_epoch_learns_every_example_once_in_an_order_of_its_own():
    order = Order(count=10, batch_size=4, num_train_epochs=3, seed=1)
    epochs = [np.concatenate([order.step(3 * epoch + place) for place in range(3)]) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_step_is_exactly_the_batch_size_and_the_last_of_an_epoch_is_what_is_left():
    order = Order(count=10, batch_size=4, num_train_epochs=2, seed=1)
    assert [len(order.step(number)) for number in range(len(order))] == [4, 4, 2, 4, 4, 2]


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    one, same, other = (Order(50, 50, 1, seed).step(0).tolist() for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_texts_come_back_as_they_were_and_leave_no_file(tmp_path: Path):
    texts = Texts(tmp_path)
    written = [[1, 2, 3], [], [2**31 - 1], list(range(1000))]
    for ids in written:
        texts.append(ids)
    assert [texts[index].tolist() for index in range(len(texts))] == written
    assert texts.lengths([3, 0]) == [1000, 3]
    assert list(tmp_path.iterdir()) == []
