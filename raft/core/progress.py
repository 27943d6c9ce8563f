"""What is shown while a run works: a line that is redrawn on a terminal, and plain lines elsewhere.

A `Progress` knows how far one stage is; it is written into the run's folder, so that `raft status` can show it in
another terminal. The `screen` shows the stage that is at work, from the start of the command on. A thread draws it, so
it moves while libraries are loaded, and a stage that counts fast does not wait for it.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from raft.core import terminal
from raft.core.pace import Pace
from raft.core.timing import words

DRAW_EVERY = 0.2  # seconds between two frames on a terminal
PLAIN_FIRST = 5.0  # seconds after which a stage is told in a plain line
PLAIN_EVERY = 15.0  # seconds between two plain lines
WRITE_EVERY = 0.5  # seconds between two writes of the file
SLOW = 20.0  # seconds of work after which a busy machine is worth a line
ROOM = 768  # bytes of the file: always as many, in one write, so that a reader sees an old or a new state and no other
MOST = 1e12  # of any number in the file: it is more than seconds since 1970, and than the steps of a training
BAR = 24  # columns of the bar
ERASE = "\x1b[K"  # to the end of the line


@dataclass(frozen=True)
class State:
    """How far a stage is at the time `at`: what progress.json holds. What is not known is None."""

    artifact: str
    stage: str  # in words
    unit: str
    iteration: int  # 0 before the first one
    iterations: int  # of the whole run; 0 for a job without any
    before: int  # units that an earlier attempt has done
    done: int
    total: int  # 0 until the first unit is done
    seconds: float
    rate: float | None
    left: float | None
    run_left: float | None
    at: float

    def aged(self, now: float) -> "State":
        """The same later, if nothing was finished in the meantime."""
        age = max(0.0, now - self.at)
        left, run_left = (None if one is None else max(0.0, one - age) for one in (self.left, self.run_left))
        return replace(self, seconds=self.seconds + age, left=left, run_left=_known(run_left, left), at=now)

    @property
    def where(self) -> str:
        """The iteration, in words."""
        return f"iteration {self.iteration} of {self.iterations}" if self.iteration and self.iterations else ""

    @property
    def share(self) -> str:
        """How much of the stage is done, or that it starts; nothing of a stage that does not count."""
        return f"{self.done / self.total:.0%}".replace("%", " %") if self.total else "starting" if self.unit else ""

    @property
    def remaining(self) -> list[str]:
        """How long the stage and the run will still take, as far as that is known."""
        left = [] if self.left is None else [f"about {words(round(self.left))} left"]
        return left if self.run_left is None else [*left, f"about {words(round(self.run_left))} for the whole run"]

    def sentence(self) -> str:
        """All of it in a line."""
        counted = [f"{self.done} of {self.total} {self.unit}"] if self.total else []
        rate = [] if self.rate is None else [f"{self.rate:.3g} a second"]
        head = ", ".join(filter(None, (self.where, self.stage, self.share)))
        return terminal.safe(", ".join([head, *counted, *rate, *self.remaining]).replace("\n", " "))


def _known(run_left: float | None, left: float | None) -> float | None:
    """The rest of the run, None where it is used up while a stage is at work of which nothing is known."""
    return run_left if run_left is None or run_left >= 1 or left is not None else None


KINDS: dict[str, Any] = {
    **dict.fromkeys(("artifact", "stage", "unit"), str),
    **dict.fromkeys(("iteration", "iterations", "before", "done", "total"), int),
    **dict.fromkeys(("seconds", "at"), int | float),
    **dict.fromkeys(("rate", "left", "run_left"), int | float | None),
}


class Progress:
    """The progress of one stage, and the file with it for others. The screen shows it inside `with progress:`.

    `stage` and `unit` are words for a person; `unit` is empty for a stage that does not count. `rest` is how many
    seconds the run will take from here, and `after` how many of them come after this iteration.
    """

    def __init__(
        self,
        artifact: str,
        unit: str,
        file: Path | None = None,
        stage: str = "",
        iteration: int = 0,
        iterations: int = 0,
        rest: float | None = None,
        after: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.artifact, self.unit, self.file, self.stage = artifact, unit, file, stage or artifact
        self.iteration, self.iterations, self.rest, self.after, self.clock = iteration, iterations, rest, after, clock
        self.began, self.pace = clock(), Pace()
        self.written: float | None = None
        self.before = self.done = self.total = 0
        self._write()

    def __enter__(self) -> "Progress":
        if _screen is not None:
            _screen.begin(self)
        return self

    def __exit__(self, kind: type | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        if _screen is not None:
            _screen.end(self)

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` units are finished."""
        self.done, self.total = done, total
        if done > self.before:  # what was there already has no pace, and an engine may start before more comes
            self.pace.see(done, self.clock())
        self._write()

    def state(self) -> State:
        """How far it is now."""
        now = self.clock()
        seconds = now - self.began
        done, total = self.done, self.total
        left = self.pace.left(total, now, self.before) if done < total else None
        run_left = None if self.rest is None else max(self.rest - seconds, self.after + (left or 0.0))
        return State(
            self.artifact, self.stage, self.unit, self.iteration, self.iterations, self.before, done, total,
            seconds, self.pace.rate(), left, _known(run_left, left), time.time(),
        )  # fmt: skip

    def _write(self) -> None:
        now = self.clock()
        if self.file is None or (self.written is not None and now - self.written < WRITE_EVERY):
            return
        self.written = now
        rounded = {name: round(one, 3) if isinstance(one, float) else one for name, one in asdict(self.state()).items()}
        line = json.dumps(rounded, ensure_ascii=False).encode()[: ROOM - 1]
        if self.file.is_symlink():
            self.file.unlink()
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.pwrite(descriptor, line.ljust(ROOM - 1) + b"\n", 0)
        finally:
            os.close(descriptor)


def read(file: Path) -> State | None:
    """The state that a run last wrote, or None."""
    if not file.is_file():
        return None
    try:
        state = json.loads(file.read_bytes()[: 2 * ROOM])
    except (ValueError, RecursionError):
        return None
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in KINDS.items()):
        return None
    if not all(0 <= one < MOST for one in state.values() if isinstance(one, int | float)):
        return None
    return State(**{name: state[name] for name in KINDS})


class Screen:
    """Where the stage at work is shown; this one writes plain lines, now and then."""

    every = 1.0  # seconds between two looks

    def __init__(self, stream: TextIO, words: str, clock: Callable[[], float] = time.monotonic):
        self.stream, self.words, self.clock = stream, words, clock
        self.began = self.since = clock()
        self.told: float | None = None  # when a line was last told of what is at work
        self.said, self.changed = "", self.began  # that line, and since when it has been the same
        self.busy = False  # whether it was said that other work uses the cores
        self.progress: Progress | None = None
        self.waits = ""  # for what, where that takes long
        self.lock, self.over = threading.RLock(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="screen", daemon=True)

    def begin(self, progress: Progress) -> None:
        """Shows another stage."""
        with self.lock:
            self.progress, self.since, self.told = progress, self.clock(), None

    def end(self, progress: Progress) -> None:
        """The stage is over; what comes between two stages is known by the iteration alone."""
        with self.lock:
            if self.progress is progress:
                self.words = ", ".join(filter(None, (progress.state().where, "between stages")))
                self.progress, self.since, self.told = None, self.clock(), None

    def look(self) -> None:
        """Shows what there is to show now."""
        now = self.clock()
        if not self.busy and now - self.began > SLOW and (load := other_work()) is not None:
            self.busy = True
            with suppress(OSError):  # whoever read it may be gone
                terminal.complain(load)
        self.show(now)

    def show(self, now: float) -> None:
        """A line, when it is time for one."""
        due = now - self.since >= PLAIN_FIRST if self.told is None else now - self.told >= PLAIN_EVERY
        if due:
            self.told = now
            said = self.progress.state().sentence() if self.progress else terminal.safe(self.words)
            said = f"{said.removesuffix(', starting')}: {self.waits}" if self.waits else said
            if said != self.said:
                self.said, self.changed = said, now
            held = now - self.changed
            self.write(f"{said} (for {words(round(held))})\n" if held else f"{said}\n")

    def write(self, text: str) -> None:
        """Writes to the stream, which may be gone."""
        with suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside the block a message can be written."""
        with self.lock:
            self.clear()
            yield

    def clear(self) -> None:
        """Takes away what is drawn."""

    def close(self) -> None:
        """Ends the thread, and takes away what is drawn."""
        self.over.set()
        self.thread.join()
        self.clear()

    def _run(self) -> None:
        while True:
            with self.lock:
                self.look()
            if self.over.wait(self.every):
                return


class Line(Screen):
    """One line at the cursor of a terminal, redrawn in place.

    It is one line, and the cursor stays visible at its end: then a process that is killed leaves nothing to repair,
    and what other code prints beside it stays on the screen.
    """

    every = DRAW_EVERY

    def __init__(self, stream: TextIO, words: str, clock: Callable[[], float] = time.monotonic):
        from rich.console import Console
        from rich.spinner import Spinner

        super().__init__(stream, words, clock)
        self.console = Console(file=stream, force_terminal=True, highlight=False, emoji=False, markup=False)
        plain = not (stream.encoding or "").lower().startswith("utf")
        self.spinner, self.stroke = Spinner("line" if plain else "dots"), "-" if plain else "━"
        self.drawn = False

    def show(self, now: float) -> None:
        """A frame."""
        from rich.console import ConsoleDimensions

        with suppress(OSError):
            width, height = terminal.size(self.stream)
            self.console.size = ConsoleDimensions(width, height)
            with self.console.capture() as frame:
                self.console.print(self.line(width - 1, now), end="", no_wrap=True, overflow="crop", crop=False)
            self.write(f"\r{frame.get()}{ERASE}")
            self.drawn = True

    def clear(self) -> None:
        """Empties the line."""
        if self.drawn:
            self.write(f"\r{ERASE}")
            self.drawn = False

    def line(self, width: int, now: float) -> Any:
        """The line as rich text. What matters least goes first where there is no room."""
        from rich.text import Text

        state = self.progress.state() if self.progress else None
        head = ", ".join(filter(None, (state.where, state.stage))) if state else self.words
        share, tail = (state.share, _tail(state)) if state else ("", [])
        if self.waits or share == "starting":
            head, share = f"{head}: {self.waits or share}", "" if share == "starting" else share
        bar = BAR if state and state.total else 0
        for priority, part in sorted(tail, reverse=True):
            least = bar if priority > 2 else min(bar, BAR // 3)
            if _columns(head, share, least, [text for _, text in tail]) <= width:
                break
            tail = [one for one in tail if one[1] != part]
        texts = [text for _, text in tail]
        bar = max(0, bar - max(0, _columns(head, share, bar, texts) - width))
        text = Text(no_wrap=True)
        text.append_text(Text(str(self.spinner.render(now)), style="cyan"))
        text.append(f" {terminal.safe(head)}".replace("\n", " "))
        if state and bar >= 4:
            full = round(bar * min(1.0, state.done / state.total))
            text.append(" ").append(self.stroke * full, "green").append(self.stroke * (bar - full), "bright_black")
        if rest := ", ".join(filter(None, (share, *texts))):
            text.append(f"{' ' if bar >= 4 else ', '}{rest}")
        text.truncate(max(1, width), overflow="ellipsis")
        return text


def _tail(state: State) -> list[tuple[int, str]]:
    """What follows the bar, in order, each with a number: the highest goes first where there is no room."""
    counted = [(4, f"{state.done} of {state.total} {state.unit}")] if state.total else []
    rate = [] if state.rate is None else [(3, f"{state.rate:.3g} a second")]
    left = [] if state.left is None else [(1, f"{words(round(state.left))} left")]
    run = [] if state.run_left is None else [(2, f"whole run: {words(round(state.run_left))}")]
    return [*counted, *rate, *left, *run]


def _columns(head: str, share: str, bar: int, texts: list[str]) -> int:
    """The columns of a line with these parts."""
    return 2 + len(head) + (bar + 1 if bar else 0) + len(share) + 1 + sum(len(text) + 2 for text in texts)


def other_work() -> str | None:
    """A line that says so if the processor has clearly more to do than it has cores; a run keeps them busy alone."""
    cores = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except OSError:
        return None
    if load <= 1.5 * cores + 1:
        return None
    fewer = (
        "" if os.environ.get("OMP_NUM_THREADS") == "1" else "; OMP_NUM_THREADS=1 raft ... can be ten times as fast then"
    )
    return f"slow? other work uses these cores (load {load:.1f} on {cores}){fewer}"


_screen: Screen | None = None


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Inside the block the screen says what the work waits for, such as an engine that starts."""
    shown = _screen
    if shown is None:
        yield
        return
    before, shown.waits = shown.waits, what
    try:
        yield
    finally:
        shown.waits = before


def _forget() -> None:
    """In a child of this process nothing is shown: it has no thread that draws, and perhaps a lock that is held."""
    global _screen
    _screen, terminal.aside = None, nullcontext


os.register_at_fork(after_in_child=_forget)


@contextmanager
def screen(words: str) -> Iterator[None]:
    """Inside the block the stage at work is shown on standard error; `words` say what comes before the first one."""
    global _screen
    if _screen is not None or sys.stderr is None:
        yield
        return
    own = sys.stderr is sys.__stderr__  # libraries' words may later be sent elsewhere
    stream = open(os.dup(2), "w", encoding=sys.stderr.encoding, errors="replace") if own else sys.stderr  # noqa: SIM115
    shown = (Line if terminal.draws(stream) else Screen)(stream, words)
    _screen, terminal.aside = shown, shown.aside
    shown.thread.start()
    try:
        yield
    finally:
        shown.close()
        _screen, terminal.aside = None, nullcontext
        if own:
            stream.close()
