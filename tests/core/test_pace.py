"""The pace of a stage: what is finished, and when, tells how long the rest will take."""

import pytest

from raft.core.pace import Pace


def seen(moments: list[tuple[float, int]]) -> Pace:
    pace = Pace()
    for now, done in moments:
        pace.see(done, now)
    return pace


def test_starting_up_does_not_count_as_work():
    """25 s until the first prompt, and then ten a second: 1 of 16 is no reason to expect six minutes."""
    assert seen([(25.0, 1)]).left(160, 25.0) is None
    pace = seen([(25.0 + n / 10, 1 + n) for n in range(40)])
    assert pace.left(160, 28.9) == pytest.approx(12.0, rel=0.05)


def test_blocks_that_end_together_are_counted_whole():
    """Blocks of eight, each 10 s after the one before: a block that has just begun to end is not a slow prompt."""
    blocks = [(25.0 + 10 * block + n / 1000, 8 * block + n + 1) for block in range(3) for n in range(8)]
    assert seen(blocks[:8]).left(32, 25.1) is None and seen(blocks[:9]).left(32, 35.0) is None
    assert seen(blocks[:17]).left(32, 45.0) == pytest.approx(10.0, abs=0.1)
    assert seen(blocks).left(32, 50.0) == pytest.approx(5.0, abs=0.1)


def test_a_pause_that_is_over_does_not_count_for_ever():
    steady = [(n / 10, n) for n in range(100)]
    later = [(40 + n / 10, 100 + n) for n in range(1000)]
    assert seen([*steady, *later]).left(2000, 139.9) == pytest.approx(90.0, rel=0.5)


def test_units_of_an_earlier_attempt_say_nothing_of_the_pace():
    pace = seen([(30.0 + n, 1000 + n) for n in range(1, 21)])
    assert pace.left(1100, 50.0, before=1000) == pytest.approx(80.0, rel=0.05)


def test_nothing_is_said_before_a_twentieth_is_done():
    pace = seen([(float(n), n) for n in range(1, 6)])
    assert pace.left(1000, 5.0) is None and pace.left(40, 5.0) is not None


def test_what_is_left_shrinks_while_nothing_ends_and_never_below_nothing():
    pace = seen([(float(n), n) for n in range(11)])
    assert [pace.left(20, now) for now in (10.0, 12.0, 60.0)] == [pytest.approx(10.0), pytest.approx(8.0), 0.0]
