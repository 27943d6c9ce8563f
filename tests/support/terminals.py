"""Programs on a pseudo-terminal, and what they write to it."""

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable

ROWS, COLUMNS = 24, 100


def on_terminal(
    arguments: list[str], rows: int = ROWS, columns: int = COLUMNS, look: Callable[[bytes], None] = lambda written: None
) -> tuple[int, bytes]:
    """The exit status of Python with these arguments, and all that it wrote; `look` sees what there is so far."""
    child, master = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        os.execv(sys.executable, [sys.executable, *arguments])
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    written = b""
    while True:
        look(written)
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        written += part
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), written
