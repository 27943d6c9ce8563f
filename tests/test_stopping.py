"""A signal while a server is asked ends the run in order: it is neither lost in asyncio nor taken for a fault."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from raft.errors import Stopped
from raft.server import stoppable


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    """As the command line handles it."""

    def stop(signum: int, frame: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    yield
    assert signal.getsignal(signal.SIGTERM) is stop
    signal.signal(signal.SIGTERM, before)


def soon(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


def test_a_signal_cancels_what_is_under_way_and_stops_the_run():
    began, cancelled = time.monotonic(), []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    soon(0.1)
    with pytest.raises(Stopped), stoppable() as run:
        run(wait())
    assert cancelled and time.monotonic() - began < 10


def test_a_signal_in_a_busy_loop_of_callbacks_is_not_lost():
    """Where most of the time is spent in callbacks, which is where an exception would vanish."""

    async def busy() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
            loop.call_soon(again)

        loop.call_soon(again)
        await asyncio.sleep(60)

    soon(0.1)
    with pytest.raises(Stopped), stoppable() as run:
        run(busy())


def test_a_signal_between_two_calls_stops_at_the_next():
    async def one() -> int:
        return 1

    with pytest.raises(Stopped), stoppable() as run:
        assert run(one()) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(3):
            run(asyncio.sleep(0.1))
