"""A folder behind an fsspec URL, such as s3://bucket/prefix: why a URL is refused, its files, a trial of writing.

Credentials are those of the environment and of fsspec's own configuration. A URL that holds one is refused: recipes and
runs keep it.
"""

import secrets
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raft.core.errors import UserError, install_extra
from raft.core.options import suggest

NAMED = ("abfs", "abfss", "ftp", "hdfs", "sftp", "smb", "ssh", "webhdfs")  # whose URLs have a name before an @
EXTRAS = {"s3fs": "s3"}  # packages that an extra of raft installs
TRIAL = 20.0  # seconds in which a trial has to end


def fault_of_url(url: str) -> str | None:
    """Why this is no URL of a folder that can be opened here, None if it is one. A secret in it is not repeated."""
    scheme, found, rest = url.partition("://")
    name, at, _ = rest.rpartition("@")
    if any(sign in rest for sign in "?#") or (at and (":" in name or scheme not in NAMED)):
        return (
            "holds a name, a key or a query, which the run's folder would keep; leave credentials to the environment "
            "(docs/mirror.md), and write only the place, such as s3://bucket/prefix"
        )
    if not found or "::" in url or not rest.strip("/"):
        return f"{url!r} is no place for a folder; it must be like s3://bucket/prefix, or file:///folder"
    from fsspec.registry import available_protocols, known_implementations

    if scheme not in available_protocols():
        return f"{scheme}:// is unknown; {suggest(scheme, available_protocols())}"
    package = known_implementations.get(scheme, {"class": "fsspec"})["class"].partition(".")[0]
    if find_spec(package) is None:
        how = install_extra(EXTRAS[package]) if package in EXTRAS else f"pip install {package}"
        return f"{scheme}:// needs {package}, which is not installed here: {how}"
    return None


def told(fault: BaseException) -> str:
    """What a library or a server said, on one line."""
    return f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}"


class RemoteFolder:
    """The files of such a folder by their names in it. Its methods raise whatever the library of the protocol does."""

    def __init__(self, url: str, *below: str):
        from fsspec.core import url_to_fs

        if (fault := fault_of_url(url)) is not None:
            raise UserError(f"the url {fault}")
        local = url.startswith(("file:", "local:"))
        try:
            self.fs, root = url_to_fs(url, **({"auto_mkdir": True} if local else {}))  # others would make the bucket
        except ImportError as fault:
            raise UserError(f"{url}: {fault}; install it") from None
        self.url = "/".join([url.rstrip("/"), *below])
        self.root = "/".join([root.rstrip("/"), *below])
        self.path = Path(self.root) if local else None  # of a folder of this machine

    def names(self) -> set[str]:
        """All files in it, at any depth; none where there is no such folder."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self.root)
        except FileNotFoundError:
            return set()
        start = len(self.root) + 1
        return {path[start:] for path in found if path.startswith(f"{self.root}/") and not path.endswith("/")}

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        return self.fs.cat_file(f"{self.root}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file."""
        self.fs.pipe_file(f"{self.root}/{name}", content)

    def put(self, file: Path, name: str, moved: Callable[[int], None]) -> None:
        """Uploads a file; `moved` is told of bytes, as they go, where the library counts them."""
        self.fs.put_file(str(file), f"{self.root}/{name}", callback=_callback(moved))

    def get(self, name: str, file: Path, moved: Callable[[int], None]) -> None:
        """Downloads a file."""
        self.fs.get_file(f"{self.root}/{name}", str(file), callback=_callback(moved))

    def remove(self, name: str) -> None:
        """Deletes a file."""
        self.fs.rm_file(f"{self.root}/{name}")


def _callback(moved: Callable[[int], None]) -> Any:
    from fsspec.callbacks import Callback

    class Counted(Callback):
        def relative_update(self, inc: int = 1) -> None:
            moved(inc)

    return Counted()


def fault_of_trial(url: str, seconds: float = TRIAL) -> str | None:
    """Why a small file cannot be written, read and deleted there, None if it can."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(_tried(url)), name="trial of the mirror", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"{url} did not answer within {seconds:g} s; see whether it can be reached from here"


def _tried(url: str) -> str | None:
    name, nonce = f".raft-{secrets.token_hex(8)}", secrets.token_bytes(32)
    try:
        folder = RemoteFolder(url)
        folder.write(name, nonce)
        read = folder.read(name)
        folder.remove(name)
    except Exception as fault:  # of the library of any protocol
        return (
            f"{url} cannot be written, read and cleared from here ({told(fault)}); see whether it exists, and whether "
            "the environment has credentials for it (docs/mirror.md)"
        )
    return None if read == nonce else f"{url} gave back other bytes than were written to it; use another place"
