"""Files that are kept compressed: `responses.jsonl.zst` in place of `responses.jsonl`, with the same bytes inside.

Whoever reads such a file by its own name gets its bytes, so no reader of rows knows in which form they are kept.
"""

import io
import mmap
from pathlib import Path
from typing import Any

from raft.core.errors import UserError

SUFFIX = ".zst"
LEVEL = 9  # of zstd's 19: on responses 16 % smaller than by level 1, and 25 times as fast as level 19


class Broken(UserError):
    """Bytes that are no whole zstd data."""


def beside(path: Path) -> Path:
    """Where a file is when it is compressed."""
    return path.with_name(f"{path.name}{SUFFIX}")


def stored(path: Path) -> Path:
    """The file that holds what `path` names: itself, or the compressed one where there is only that."""
    return beside(path) if not path.exists() and beside(path).exists() else path


def exists(path: Path) -> bool:
    """Whether there is such a file or folder, in either form."""
    return stored(path).exists()


def opened(path: Path) -> io.BufferedReader:
    """The bytes of a file that `path` names, whatever its form. Broken, while it is read, if they end too early."""
    file = stored(path)
    return io.BufferedReader(_Unpacked(file)) if file.suffix == SUFFIX else open(file, "rb")


def packed(path: Path) -> Any:
    """The bytes of a file, which is not empty, compressed: one frame, as every reader of zstd takes it."""
    import pyarrow

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return pyarrow.Codec("zstd", compression_level=LEVEL).compress(content)


class _Unpacked(io.RawIOBase):
    """What a compressed file holds."""

    def __init__(self, path: Path):
        import pyarrow

        self.path, self.file = path, open(path, "rb")  # noqa: SIM115 - `close` closes it
        self.stream = pyarrow.CompressedInputStream(self.file, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            read = self.stream.read(len(buffer))
        except OSError as fault:
            if fault.errno is not None:  # of the disk
                raise
            raise Broken(f"{self.path}: broken zstd data ({fault})") from None
        buffer[: len(read)] = read
        return len(read)

    def close(self) -> None:
        self.file.close()
        super().close()
