"""Signals that stop the process in order: SIGTERM, SIGUSR1 (Slurm's warning), SIGINT (Ctrl-C) and SIGHUP.

An exception raised by a handler can be lost: in the callback of a weak reference, or in a finaliser, Python prints it
and goes on. So the handler here only notes the signal. The code checks the note where it is safe to end: no new
artifact, group or step begins, and running work has some seconds to finish (`RAFT_GRACE`). A thread counts them, also
while the main thread is in a library's code, and then ends the process; a second signal ends it at once. Files on disk
are as valid as after any other end: the same command resumes.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from raft.core.errors import Stopped, UserError

VARIABLE = "RAFT_GRACE"
GRACE = 20.0  # seconds; Slurm kills 30 seconds after its SIGTERM
AT_ONCE = 2.0  # seconds at most after Ctrl-C
TOGETHER = 0.1  # seconds in which several signals count once: a process group and its parent often both get them
STATUS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130, signal.SIGHUP: 129}  # 75: EX_TEMPFAIL, try again

T = TypeVar("T")


class _Note:
    """What is known of the first signal: its number, how long running work may go on, and how to report it."""

    def __init__(self) -> None:
        self.signum: signal.Signals | None = None
        self.last, self.grace = 0.0, GRACE
        self.screen, self.again = 2, ""
        self.arrived, self.told = threading.Event(), threading.Lock()


_note = _Note()


def begin(again: str) -> None:
    """Takes charge of the signals of this process; `again` is the command that goes on with its work.

    SIGHUP stays ignored where it is (nohup). Called by the command line alone, in the main thread.
    """
    _note.again, _note.screen = again, os.dup(2)  # libraries' words may later be sent elsewhere
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    handled: list[float] = []
    for number in STATUS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda signum, frame: _receive(signum, handled))
    os.register_at_fork(after_in_child=_leave)
    threading.Thread(target=_listen, args=(ear,), name="signals", daemon=True).start()


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block Ctrl-C stops what is under way in order (Stopped), a second one at once (KeyboardInterrupt).

    For programs that use raft as a library: no process is ended, and afterwards the signal is handled as before.
    """
    global _note
    before, _note, first = _note, _Note(), 0.0

    def interrupt(signum: int, frame: Any) -> None:
        nonlocal first
        if asked() and time.monotonic() - first > TOGETHER:
            raise KeyboardInterrupt
        first = time.monotonic()
        _note.signum, _note.last = signal.Signals(signum), first + AT_ONCE
        _note.arrived.set()

    own = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not None
    handler = signal.signal(signal.SIGINT, interrupt) if own else None
    try:
        yield
    finally:
        if own:
            signal.signal(signal.SIGINT, handler)
        _note = before


def read_grace() -> None:
    """Reads the seconds of grace from the environment. UserError for any other value."""
    text = os.environ.get(VARIABLE, str(GRACE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise UserError(f"{VARIABLE} is {text!r}; give the seconds that a run has to stop, for instance {GRACE:g}")
    _note.grace = seconds


def asked() -> bool:
    """Whether the process was asked to stop: nothing new should begin."""
    return _note.signum is not None


def check() -> None:
    """Raises Stopped if the process was asked to stop."""
    if asked():
        raise Stopped


def left() -> float:
    """Seconds that running work may still take; 0 without a signal."""
    return max(0.0, _note.last - time.monotonic()) if asked() else 0.0


def sleep(seconds: float) -> None:
    """Waits; Stopped as soon as the process is asked to stop."""
    _note.arrived.wait(seconds)
    check()


def watched(items: Iterable[T]) -> Iterator[T]:
    """The items; Stopped before the next one if the process was asked to stop."""
    for item in items:
        check()
        yield item


def resume_with(command: str) -> None:
    """Sets the command that resumes the work: after a restart that is no longer the command that was given."""
    _note.again = command


def command() -> str:
    """The command that goes on with the work."""
    return _note.again


def end() -> None:
    """Ignores signals in a process whose work is done: one during Python's shutdown would change the exit status."""
    for number in STATUS:
        signal.signal(number, signal.SIG_IGN)


def status() -> int:
    """The exit status of a process that was asked to stop."""
    assert _note.signum is not None
    return STATUS[_note.signum]


def tell() -> None:
    """Says, once, that the process stops and how to resume."""
    if _note.told.acquire(blocking=False):
        saved = "all finished work is saved; training in progress is saved up to its last checkpoint"
        _write(f"\nraft: stopped; {saved}. Resume with:\n  {_note.again}\n")


def _receive(signum: int, seen: list[float]) -> None:
    """Notes a signal. `seen` has the times of those before it that came the same way: a second one ends the process."""
    now = time.monotonic()
    if seen and now - seen[0] > TOGETHER:
        _end(128 + signum)
    seen.append(now)
    if not asked():
        _note.last = now + (min(_note.grace, AT_ONCE) if signum == signal.SIGINT else _note.grace)
        _note.signum = signal.Signals(signum)
    _note.arrived.set()


def _listen(ear: int) -> None:
    """The thread: notes signals while the main thread cannot, and ends the process when its time is over."""
    seen: list[float] = []
    while True:
        ready, _, _ = select.select([ear], [], [], left() if seen else None)
        if not ready:
            _end(status())
        first = not seen
        for signum in os.read(ear, 64):
            if signum in STATUS:
                _receive(signum, seen)
        if first and seen and (seconds := left()) > AT_ONCE:
            name = _note.signum.name if _note.signum else ""
            _write(f"\nraft: {name}: {seconds:.0f} s for running work; a second signal ends it at once\n")


def _end(status: int) -> None:
    tell()
    os._exit(status)


def _write(text: str) -> None:
    with suppress(OSError):  # whoever read it may be gone
        os.write(_note.screen, text.encode(errors="replace"))


def _leave() -> None:
    """In a child of this process, a data worker for instance: it ends when its parent asks, not by the terminal."""
    signal.set_wakeup_fd(-1)
    for number in STATUS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN if number in (signal.SIGINT, signal.SIGHUP) else signal.SIG_DFL)
