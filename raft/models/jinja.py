"""Jinja templates, rendered in a separate process with limits of memory and time; and the date that they write.

A template that writes today's date writes that of the run, which `dated` sets; without it, today's.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from raft.core.errors import RowError, UserError
from raft.core.terminal import is_unicode

WORKER = Path(__file__).with_name("jinja_worker.py")
LIMITS = {"memory": "more than 1 GB of memory", "length": "more than 33 million characters"}
CLOCK = "strftime_now"  # the only clock that a template has

_day: str | None = None


def today() -> str:
    """The day that templates write, as 2026-01-31."""
    return _day or date.today().isoformat()


def is_day(text: str) -> bool:
    """Whether a text names a day in the form of `today`."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def has_clock(path: Path) -> bool:
    """Whether a template writes today's date: a file, or those of a model's folder."""
    files = [path] if path.is_file() else [*path.glob("*.jinja"), *path.glob("*/*.jinja"), *path.glob("*e*.json")]
    named = [
        file for file in files if file.suffix != ".json" or file.name in ("tokenizer_config.json", "chat_template.json")
    ]
    return any(CLOCK.encode() in file.read_bytes() for file in named if file.is_file())


@contextmanager
def dated(day: str) -> Iterator[None]:
    """Templates write this day until the block ends."""
    global _day
    before, _day = _day, day
    try:
        yield
    finally:
        _day = before


def write(template: str, whose: str, values: dict[str, Any], *, strict: bool = False) -> str:
    """What the template writes with the values; messages name it as `whose`.

    RowError if it refuses the values, UserError if it cannot be rendered, or exceeds the limits.
    """
    answer = _asked(template, whose, values, strict)
    if "refused" in answer:
        raise Refused(answer["refused"], answer["kind"])
    if not is_unicode(answer["text"]):
        raise RowError(f"{whose} writes half a character (a lone surrogate), which no tokenizer reads; fix it")
    return answer["text"]


def variables(template: str, whose: str, *, strict: bool = False) -> set[str]:
    """The variables that a template reads and does not set itself."""
    return set(_asked(template, whose, None, strict)["variables"])


def _asked(template: str, whose: str, values: dict[str, Any] | None, strict: bool) -> dict[str, Any]:
    request = {"template": template, "values": values, "strict": strict, "day": today()}
    answer = _worker.ask(json.dumps(request, default=str).encode() + b"\n")
    if "limit" in answer:
        taken = LIMITS.get(answer["limit"], answer["limit"])
        raise UserError(f"{whose} takes {taken} for one text; such a template is not used: fix it, or remove it")
    if "broken" in answer:
        raise UserError(f"{whose} is not a readable template ({answer['broken']}); fix it")
    return answer


class Refused(RowError):
    """The error that a template raised, and the `kind` of the exception."""

    def __init__(self, reason: str, kind: str):
        super().__init__(reason)
        self.kind = kind


class Worker:
    """The process; started when it is first needed, and again after it was ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.lock = threading.Lock()

    def ask(self, request: bytes) -> dict[str, Any]:
        """Its answer. An interrupted request ends the process, so that the next request does not get this answer."""
        with self.lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(request)
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = b""
            except BaseException:
                self.end()
                raise
            return json.loads(line) if line.endswith(b"\n") else {"limit": self._ended()}

    def end(self) -> None:
        """Ends it, if this process started it."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.communicate()

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self.end()
            self.owner, self.process = os.getpid(), subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return self.process

    def _ended(self) -> str:
        assert self.process is not None
        status = self.process.wait()
        self.end()
        return "more than 5 seconds" if status == -signal.SIGPROF else "memory"


_worker = Worker()
atexit.register(_worker.end)
