"""Models and data sets by name: a folder here, or `owner/name` on the model hub. The only file that talks to the hub.

Downloads go through huggingface_hub into its own cache, which is used as it stands when the hub cannot be reached.
Only weights, tokenizers and configurations are fetched: never Python files, never free pickles.
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from raft.errors import UserError

FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
OLD_WEIGHTS = "pytorch_model*.bin"  # transformers reads these as tensors alone; fetched only where there is nothing better
NESTED = "*/*"  # exports for other programs, original weights once more

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


def locate_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model: `name` itself if it is one, else the snapshot of a hub model, downloaded if need be.

    `revision` is a branch, tag or commit of the hub model. UserError if there is no such model, or the hub cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return _with_config(path)
    if not NAME.fullmatch(name):
        raise UserError(f"{name}: no folder at {path.absolute()}; give a model folder, or owner/name of a model on the hub")
    folder = _snapshot(name, revision, FILES, "model")
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(name, revision, [*FILES, OLD_WEIGHTS], "model")
    return _with_config(folder)


def dataset_commit(name: str, revision: str | None = None) -> str:
    """The commit that a branch or tag of a hub data set stands for now; without the hub, when it was last fetched."""
    return _snapshot(name, revision, ["README.md"], "dataset").name


def identity(path: Path) -> str:
    """What a file or folder holds, whatever its name: "commit:<sha>" for a snapshot of the hub, else "sha256:<digest>".

    The digest of a file is that of its bytes; that of a folder covers the names and bytes of all its files but hidden
    ones and *.md. A file is read once per process, and again only if its size or time changes.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.is_file():
        return f"sha256:{_file_digest(path)}"
    if not path.is_dir():
        raise UserError(f"no file or folder at {path.absolute()}")
    if path.absolute().parent.name == "snapshots" and COMMIT.fullmatch(path.name):
        return f"commit:{path.name}"
    listing = "".join(f"{_file_digest(path / name)}  {name}\n" for name in _names(path))
    return f"sha256:{hashlib.sha256(listing.encode(errors='surrogateescape')).hexdigest()}"


def _names(folder: Path) -> list[str]:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.suffix != ".md")
    return sorted(file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts))


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _digest(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=None)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_config(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json, so it is no model folder; give the folder that save_pretrained wrote")
    return folder


def _snapshot(name: str, revision: str | None, patterns: list[str], kind: str) -> Path:
    """The cached folder of one commit; its name is the commit. What the hub answers is told without its own words,

    which may repeat an address with a secret in it.
    """
    from huggingface_hub import errors, snapshot_download

    wanted = f"{kind} {name}" + (f" at revision {revision}" if revision else "")
    local = f"give a {'model folder' if kind == 'model' else 'file or folder'} instead"
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns, ignore_patterns=[NESTED]))
    except errors.GatedRepoError:
        raise UserError(f"{wanted} is gated: accept its terms on its page, set HF_TOKEN, and try again; or {local}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{wanted}: the hub has no such revision; give a branch, tag or commit that it has") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{wanted}: no such folder here, and the hub has none of that name that it would show you; "
            f"check the spelling, set HF_TOKEN if it is private, or {local}"
        ) from None
    except (OSError, errors.HfHubHTTPError, ValueError) as fault:
        raise UserError(
            f"{wanted}: no such folder here, it is not in the local cache whole, and the hub could not be reached ({_why(fault)}); "
            f"download it where there is a network (hf download {name}), or {local}"
        ) from None


def _why(fault: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    cause = fault.__cause__ or fault
    return "HF_HUB_OFFLINE is set" if isinstance(cause, OfflineModeIsEnabled) else type(cause).__name__
