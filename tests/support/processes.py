"""What runs on this machine below a process, and whether it has ended."""

import time
from pathlib import Path


def processes() -> dict[int, tuple[str, int, int]]:
    """State, parent and session of every process."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session = file.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        found[int(file.parent.name)] = (state, int(parent), int(session))
    return found


def family(pid: int) -> set[int]:
    """All living processes that a process has started, and those that they have."""
    table, found = processes(), {pid}
    while more := {one for one, (_, parent, _) in table.items() if parent in found} - found:
        found |= more
    return found - {pid}


def gone(pids: set[int], seconds: float = 30) -> bool:
    """Whether the processes end, a zombie being one that has."""
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        table = processes()
        if all(pid not in table or table[pid][0] == "Z" for pid in pids):
            return True
        time.sleep(0.05)
    return False


def session(pid: int) -> int:
    """The session of the one child of a process."""
    (found,) = [session for _, parent, session in processes().values() if parent == pid]
    return found
