"""A command that lives no longer than the process that wants it: `python guard.py PARENT COMMAND...`.

Whatever ends the parent, SIGKILL included, or a SIGTERM to this process, ends the command and all that it has started.
It runs as a file of its own, on nothing but Python's library.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

GRACE = 15.0  # seconds that the command has to end by itself
GONE = 5.0  # seconds that a killed process has to disappear
BETWEEN = 0.2  # seconds between two looks


def main(parent: int, command: list[str]) -> int:
    """Runs the command in a session of its own, and returns its status."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(128 + signal.SIGTERM))
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=follow)
    try:
        while child.poll() is None and os.getppid() == parent:
            time.sleep(BETWEEN)
    finally:
        end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def follow() -> None:
    """Asks this process to end if even the guard is killed, where the system knows how."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end(child: "subprocess.Popen[bytes]") -> None:
    """Asks the command to end, then kills what is left of its session."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
    last = time.monotonic() + GONE
    while time.monotonic() < last:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        child.poll()
        time.sleep(0.05)
    child.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
