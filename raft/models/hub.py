"""Models and data sets by name: a folder here, or `owner/name` on the model hub. The only file that talks to the hub.

Downloads go through huggingface_hub into its own cache, which is used unchanged when the hub cannot be reached.
Only weights, tokenizers and configurations are fetched: never Python files, never free pickles.
"""

import errno
import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from raft.core.atomic import file_digest, files_of
from raft.core.errors import UserError
from raft.core.run_paths import OUTPUTS
from raft.models import model_folder

DESCRIPTION = ["*.json", "*.jinja", "*.model", "*.txt"]  # config, tokenizer and template
FILES = ["*.safetensors", *DESCRIPTION]
OLD_WEIGHTS = "pytorch_model*.bin"  # read as tensors alone, and only where there is nothing better
NESTED = "*/*"  # exports for other programs, original weights once more

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
PATIENCE = 5.0  # seconds in which the hub answers whether it has a name
COMMIT = re.compile(r"[0-9a-f]{40}")
REFUSALS = {
    401: "the hub does not know the token",
    403: "the token may not write there",
    404: "the hub shows the token no such repository or owner",
}
_LOCAL = ContextVar("only what is in the local cache", default=False)


class Absent(UserError):
    """A model, a data set or a file that is not on this machine and cannot be brought here."""


def is_name(name: str) -> bool:
    """Whether a word can be the name of a model or a data set on the hub; what begins as a run's folder does not."""
    return NAME.fullmatch(name) is not None and not name.startswith(f"{OUTPUTS}/")


def locate_model(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a model: `name` itself if it is one, else the snapshot of a hub model, downloaded if need be.

    `revision` is a branch, tag or commit of the hub model. Without `weights` a folder need not hold them, and of the
    hub's none are fetched. UserError if it does not exist, or cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return model_folder.whole(path)
    if not is_name(name):
        raise Absent(f"{name}: no folder at {path.absolute()}; give a model folder, or owner/name of a hub model")
    if not weights:
        return model_folder.whole(_snapshot(name, revision, DESCRIPTION, "model"))
    folder = _snapshot(name, revision, FILES, "model")
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(name, revision, [*FILES, OLD_WEIGHTS], "model")
    return model_folder.whole(folder)


def fetched(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub model in the local cache, None if it is not there; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    if not is_name(name):
        return None
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def described(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub model with its config.json, tokenizer and template; None where the hub does not give them."""
    from huggingface_hub import constants

    if (folder := fetched(name, revision)) is not None or constants.HF_HUB_OFFLINE or not is_name(name):
        return folder
    return _fetched_description(name, revision)


@cache
def _fetched_description(name: str, revision: str | None) -> Path | None:
    with suppress(UserError):
        return locate_model(name, revision, weights=False)
    return None


def locate_file(name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """The first of these files that a model folder or hub model has. UserError if it has none of them."""
    folder = Path(name) if Path(name).is_dir() else _snapshot(name, revision, list(files), "model")
    for file in files:
        if (folder / file).is_file():
            return folder / file
    raise UserError(f"{name} has none of {', '.join(files)}")


def dataset_commit(name: str, revision: str | None = None) -> str:
    """The commit of a branch or tag of a hub data set now; without the hub, when it was last fetched."""
    return _snapshot(name, revision, ["README.md"], "dataset").name


def dataset_identity(name: str, revision: str | None = None) -> str:
    """What identifies the content of a data set, of the hub or a folder."""
    return identity(Path(name)) if Path(name).is_dir() else f"commit:{dataset_commit(name, revision)}"


def load_dataset(
    name: str, config: str | None, split: str, revision: str | None = None, folder: str | None = None
) -> Any:
    """The rows of a split, kept on disk, at the commit that `dataset_identity` names. No code of it is run.

    `folder` is the folder inside the data set that is read; None reads all of it. A folder here may also be what
    save_to_disk wrote.
    """
    import datasets

    if is_saved(Path(name)):
        return _saved(name, split, {"name": config, "revision": revision, "folder": folder})
    commit = None if Path(name).is_dir() else dataset_commit(name, revision)
    try:
        rows = datasets.load_dataset(name, config, data_dir=folder, split=split, revision=commit)
    except Exception as fault:
        if _is_full(fault):
            raise
        reason = str(fault) if isinstance(fault, ValueError) else type(fault).__name__
        raise UserError(f"data set {name}, config {config}, split {split}: cannot be loaded ({reason})") from None
    cached = Path(rows.cache_files[0]["filename"]).parent.name if rows.cache_files else None
    if commit and cached and COMMIT.fullmatch(cached) and cached != commit:
        # without the hub `datasets` takes the commit that was loaded last
        raise UserError(f"data set {name}: the local cache holds commit {cached}, not {commit}; connect to a network")
    return rows


def is_saved(folder: Path) -> bool:
    """Whether a folder is what save_to_disk of the datasets library wrote: one data set, or several splits."""
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _saved(name: str, split: str, others: dict[str, str | None]) -> Any:
    """The rows of a data set that save_to_disk wrote. UserError if it has no such split, or cannot be read."""
    import datasets

    for option, value in others.items():
        if value is not None:
            raise UserError(f"{name} was written by save_to_disk, which knows no {option}; leave it out ({value})")
    try:
        loaded = datasets.load_from_disk(name)
        splits = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
        if split not in splits:
            raise UserError(f"{name} has no split {split}; say split: {' or '.join(splits) or '(it has none)'}")
        return splits[split].with_format(None)
    except UserError:
        raise
    except Exception as fault:
        raise UserError(
            f"data set {name}: what save_to_disk wrote cannot be read ({fault}); save it again, "
            "or write it with to_parquet and give kind: file"
        ) from None


def identity(path: Path) -> str:
    """What a file or folder holds, whatever its name: "commit:<sha>" for a snapshot of the hub, else "sha256:<digest>".

    The digest of a file is that of its bytes; that of a folder covers the names and bytes of all its files but hidden
    ones and *.md. A file is read once per process, and again only if its size or time changes.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.is_file():
        return f"sha256:{file_digest(path)}"
    if not path.is_dir():
        raise Absent(f"no file or folder at {path.absolute()}")
    if path.absolute().parent.name == "snapshots" and COMMIT.fullmatch(path.name):
        return f"commit:{path.name}"
    listing = "".join(f"{file_digest(path / name)}  {name}\n" for name in files_of(path))
    return f"sha256:{hashlib.sha256(listing.encode(errors='surrogateescape')).hexdigest()}"


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Inside the block what is not in the local cache is Absent, and nothing is downloaded."""
    token = _LOCAL.set(True)
    try:
        yield
    finally:
        _LOCAL.reset(token)


def _snapshot(name: str, revision: str | None, patterns: list[str], kind: str) -> Path:
    """The folder of one commit, which is its name. The hub's own words are not passed on: they quote addresses."""
    from huggingface_hub import snapshot_download

    try:
        options: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": [NESTED]}
        return Path(
            snapshot_download(name, repo_type=kind, revision=revision, local_files_only=_LOCAL.get(), **options)
        )
    except Exception as fault:
        if _is_full(fault):
            raise
        if (refusal := _refusal(fault, name, revision, kind)) is not None:
            raise Absent(refusal) from None
        raise Absent(
            f"{_wanted(name, revision, kind)}: no such folder here, not whole in the local cache, and the hub could "
            f"not be reached ({_why(fault)}); fetch it where there is a network (hf download {name} --repo-type "
            f"{kind}), or {_instead(kind)}"
        ) from None


class Unanswered(Exception):
    """The hub did not answer; says what was not looked up."""


def fault_of_name(name: str, revision: str | None, kind: str) -> str | None:
    """Why the hub does not give a model or data set; None if it does, if it is here, or if no hub may be asked.

    Unanswered, which is no fault of the name: the hub does not answer.
    """
    from huggingface_hub import HfApi, constants

    here = Path(name).exists() if kind == "dataset" else fetched(name, revision) is not None
    if constants.HF_HUB_OFFLINE or here or not is_name(name):
        return None
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=PATIENCE)
    except Exception as fault:
        if (refused := _refusal(fault, name, revision, kind)) is None:
            raise Unanswered(f"{_wanted(name, revision, kind)} was not checked: the hub did not answer") from None
        return refused
    return None


def _refusal(fault: Exception, name: str, revision: str | None, kind: str) -> str | None:
    """What the hub refuses, None for any other fault."""
    from huggingface_hub import errors

    wanted, local = _wanted(name, revision, kind), _instead(kind)
    if isinstance(fault, errors.GatedRepoError):
        return f"{wanted} is gated: accept its terms on its page and set HF_TOKEN, or {local}"
    if isinstance(fault, errors.RevisionNotFoundError):
        return f"{wanted}: the hub has no such revision; give a branch, tag or commit that it has"
    if isinstance(fault, errors.RepositoryNotFoundError):
        return (
            f"{wanted}: no such folder here, and the hub shows none of that name; "
            f"check the spelling, set HF_TOKEN if it is private, or {local}"
        )
    return None


def _wanted(name: str, revision: str | None, kind: str) -> str:
    return f"{kind} {name}" + (f" at revision {revision}" if revision else "")


def _instead(kind: str) -> str:
    return f"give a {'model folder' if kind == 'model' else 'file or folder'} instead"


def require_upload(name: str) -> None:
    """UserError if nothing can be uploaded under a name: no repository can have it, or nobody is logged in."""
    from huggingface_hub import constants, get_token

    if not is_name(name):
        raise UserError(f"{name!r} is not a name of the hub; write it as OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{name} cannot be uploaded while HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise UserError(f"{name}: nobody is logged in to the hub; give: hf auth login, or set HF_TOKEN")


def upload(folder: Path, name: str) -> str:
    """Uploads a model folder as one commit, into a private repository unless there is one already; returns its address.

    The token is that of the environment or of the login. The hub's own words are not passed on.
    """
    from huggingface_hub import HfApi, errors

    again = f"{folder} is whole here; correct that, then: hf upload {name} {shlex.quote(str(folder))} ."
    try:
        api = HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a policy trained with raft")
        return str(address)
    except errors.HfHubHTTPError as fault:
        status = fault.response.status_code
        reason = REFUSALS.get(status, "the hub refused it")
        raise UserError(f"{name} was not uploaded: {reason} (status {status}). {again}") from None
    except Exception as fault:
        raise UserError(f"{name} was not uploaded: the hub could not be reached ({_why(fault)}). {again}") from None


def _is_full(fault: Exception) -> bool:
    return getattr(fault, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _why(fault: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    cause = fault.__cause__ or fault
    return "HF_HUB_OFFLINE is set" if isinstance(cause, OfflineModeIsEnabled) else type(cause).__name__
