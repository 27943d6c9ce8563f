"""Mathematics compared by the package math-verify, in a process of its own that can be ended.

math-verify reads LaTeX and lets sympy compare. A response decides what sympy computes, and 9^{9^{9^9}} is enough to
keep it busy for ever and to fill the memory; its own time limit is a signal, which waits for such a computation. So it
runs as a child with a bound of memory, which is killed when its time is over. The child runs this file alone.
"""

import json
import os
import select
import subprocess
import sys
import weakref
from functools import cache
from typing import IO

MEMORY = 4 << 30  # bytes that the child may take, its libraries among them
START = 60.0  # seconds that it may take to import sympy


@cache
def checker() -> "Checker":
    """The one of this process."""
    return Checker()


class Checker:
    """Says whether answers equal references; the child is started when it is first asked, and after it was killed."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None

    def equal(self, reference: str, response: str, seconds: float) -> bool:
        """Whether the response comes to the reference, a text in LaTeX.

        What cannot be read is equal to nothing, and so is what cannot be decided in so many seconds and that memory.
        """
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps([reference, response]).encode() + b"\n")
            child.stdin.flush()
            said = _line(child.stdout, seconds)
        except BrokenPipeError:
            said = b""
        if not said.endswith(b"\n"):
            self._end()
            return False
        return json.loads(said)

    def _started(self) -> "subprocess.Popen[bytes]":
        if self.child is not None and self.child.poll() is None:
            return self.child
        self.child = subprocess.Popen(
            [sys.executable, "-I", __file__], bufsize=0, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        weakref.finalize(self, self.child.kill)
        assert self.child.stdout is not None
        if _line(self.child.stdout, START) != b"ready\n":
            self._end()
            raise ValueError("the child of the rule math_verify does not start; see that math-verify can be imported")
        return self.child

    def _end(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None


def _line(pipe: IO[bytes], seconds: float) -> bytes:
    """A short line, what there is of it when the time is over or the pipe ends."""
    said = b""
    while not said.endswith(b"\n") and select.select([pipe], [], [], seconds)[0]:
        if not (more := os.read(pipe.fileno(), 64)):
            break
        said += more
    return said


def _serve() -> None:
    import logging
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    from math_verify import parse, verify

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        reference, response = json.loads(line)
        known, found = (
            parse(text, parsing_timeout=None)
            for text in (reference if "$" in reference else f"${reference}$", response)
        )
        print(json.dumps(bool(verify(known, found, timeout_seconds=None))), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
