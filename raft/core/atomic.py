"""Files that are written whole or not at all, and synced to disk."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from raft.core import compressed
from raft.core.errors import UserError

_digests: dict[tuple[int, ...], str] = {}  # of what this process has read: by device, inode, size and time


def write_json(path: Path, content: Any) -> None:
    """Writes a small file of JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is either the old or the new one, whatever happens."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: Any) -> None:
    """The same of bytes."""
    temporary = path.with_name(f".{path.name}.tmp")
    with create(temporary) as file:
        file.write(content)
    commit(temporary, path)


def create(path: Path) -> BinaryIO:
    """A new file in place of whatever has this name; the target of a link is left alone."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


@contextmanager
def disk_faults() -> Iterator[None]:
    """Disk errors of a library in Rust (safetensors, tokenizers), as the OSError that Python raises for them."""
    try:
        yield
    except Exception as fault:
        match = re.search(r"\(os error (\d+)\)", str(fault))
        if match is None or isinstance(fault, OSError):
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1]))) from fault


def commit(temporary: Path, path: Path) -> None:
    """Renames a written file or folder to its name: even after a crash of the machine it is complete or absent."""
    fsync_tree(temporary)
    os.replace(temporary, path)
    fsync(path.parent)


def fsync_tree(path: Path) -> None:
    """Syncs a file, or a folder with all its content, to disk."""
    for entry in [*(path.rglob("*") if path.is_dir() else ()), path]:
        if not entry.is_symlink():
            fsync(entry)


def fsync(path: Path) -> None:
    """Syncs a file to disk, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_readable(folder: Path) -> None:
    """Lets whoever may read a model folder's config read its weights: safetensors (0.8) writes for the owner alone."""
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / "config.json").stat().st_mode)


def remove(path: Path) -> None:
    """Deletes a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_object(file: Path, cure: str) -> dict[str, Any]:
    """A file that is one JSON object. UserError if it is anything else; `cure` says what to do."""
    try:
        if not file.is_file():  # reading a pipe would never return
            raise UserError(f"{file} is not a file; {cure}")
        content = json.loads(file.read_bytes())
    except UserError:
        raise
    except (ValueError, RecursionError) as fault:
        reason = "it is empty" if not file.stat().st_size else f"not JSON ({' '.join(str(fault).split())[:80]})"
        raise UserError(f"{file} is damaged: {reason}; {cure}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{file} is damaged: expected an object such as {{...}}, found {type(content).__name__}; {cure}"
        )
    return content


def files_of(folder: Path) -> list[str]:
    """The names of all files in a folder except hidden files and *.md, which are not part of a model's content."""
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.suffix != ".md")
    return sorted(file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts))


def file_digest(path: Path, unpacked: bool = False) -> str:
    """The SHA-256 of a file, which is read once per process, and again only if its size or time changes.

    `unpacked`: of what a compressed file holds.
    """
    status = path.stat()
    known = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, unpacked)
    if known not in _digests:
        with compressed.opened(path) if unpacked else open(path, "rb") as file:
            _digests[known] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[known]
