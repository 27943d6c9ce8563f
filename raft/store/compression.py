"""`store: {compress: true}`: the responses of finished iterations, compressed without losing a bit.

The stamp of an artifact says what its bytes are, and stays true of what is compressed. The compressed file is whole,
and compared with the stamp, before the other one is deleted; while both are there the other one is read. So a kill at
any point loses nothing.
"""

from pathlib import Path

from raft.core import compressed, signals
from raft.core.atomic import file_digest, remove, write_bytes
from raft.core.run_paths import RunPaths
from raft.store import stamps
from raft.store.runs import Run


def compress(run: Run, folder: Path) -> None:
    """Compresses the responses in a folder of a run, but for those behind links, which are another run's."""
    if not run.makes:
        return
    for path, stamp in stamps.stamped(folder):
        if path.name == RunPaths(folder).responses.name and path.exists() and run.owns(path):
            signals.check()
            stamps.require(path, stamp)
            write_bytes(compressed.beside(path), compressed.packed(path))
            if file_digest(compressed.beside(path), unpacked=True) != stamp["content"][""][1]:
                remove(compressed.beside(path))
                raise OSError(f"{path} was not compressed: what was written is not what was read")
            path.unlink()
