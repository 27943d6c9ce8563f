"""Stamps: what an artifact was made from, and what its files hold. A stamp beside an artifact means that it is done.

`content` of a stamp has the size and SHA-256 of every file. An artifact is compared with it before it is read, once per
process (`keys.Artifact.path`); sizes, and small files, are compared whenever its run is opened or looked at.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from raft.core import compressed, records
from raft.core.atomic import file_digest, files_of, read_object
from raft.core.errors import UserError
from raft.core.resume_command import to_resume
from raft.core.run_paths import DEPTH, RunPaths, run_of, stamp_path

CONTENT_SINCE = 4  # the format from which on stamps hold the content
GONE = "it is gone"
SMALL = 8 * 2**20  # bytes of a file that is hashed even where its artifact is not read: a few milliseconds
READERS = 4  # files that are hashed at once
WIDE = 12  # lines of a list in a message
FIELDS: dict[str, type | tuple[type, ...]] = {
    "hash": str, "key": dict, "rows": int, "dropped": int, "measured": dict, "began": (int, float),
    "seconds": (int, float), "parts": dict,
}  # fmt: skip

T = TypeVar("T")
Stamp = dict[str, Any]
Content = dict[str, list[Any]]  # [size in bytes, SHA-256] of each file by its name in the folder; "" is a single file


def checkpoints_path(path: Path) -> Path:
    """Where the trainings of a model keep what they go on from."""
    return path.with_name(f"{path.name}.checkpoints")


def partial_path(path: Path) -> Path:
    """Where an artifact that is made group by group grows."""
    return path.with_name(f"{path.name}.partial")


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of an artifact, None if it has none. UserError, which names the file, if it is damaged."""
    file = stamp_path(path)
    if not file.exists():
        return None
    stamp = read_object(file, f"delete {file}; then {again(path)}")
    if (fault := fault_of(stamp)) is not None:
        raise UserError(f"{file} is damaged: {fault}; delete it; then {again(path)}")
    return stamp


def state(path: Path) -> tuple[int, ...] | None:
    """What changes whenever a finished file or its stamp does, without reading either; None if it is not finished."""
    try:
        statuses = [stamp_path(path).stat()]
    except (FileNotFoundError, NotADirectoryError):
        return None
    with suppress(OSError):  # whoever reads it says that it is gone
        statuses.append(path.stat())
    return tuple(
        value for status in statuses for value in (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    )


def complete(folder: Path) -> list[int]:
    """The iterations of a run that are complete, in order: their metrics were made last."""
    return [it.number for it in RunPaths(folder).iterations() if stamp_path(it.metrics).exists()]


def stamped(folder: Path) -> Iterator[tuple[Path, Stamp]]:
    """Every finished artifact of a run with its stamp, also those in folders that are links."""
    for file in RunPaths(folder).files("*.stamp.json"):
        path = file.with_name(file.name.removesuffix(".stamp.json"))
        if (stamp := read_stamp(path)) is not None:  # a link into another run may lead nowhere
            yield path, stamp


def content_of(path: Path) -> Content:
    """What a file or a folder holds."""
    names = files_of(path) if path.is_dir() else [""]
    digests = _of_each(lambda name: file_digest(path / name), names)
    return {name: [(path / name).stat().st_size, digest] for name, digest in zip(names, digests, strict=True)}


def file_of(path: Path, name: str) -> Path:
    """A file of an artifact by its name in the content, as it is kept."""
    return path / name if name else compressed.stored(path)


def damage(path: Path, stamp: Stamp, whole: bool = True) -> str | None:
    """How an artifact differs from its stamp, None if it does not. Large files are read only if `whole`."""
    wanted: Content | None = stamp.get("content")
    if stamp.get("pruned"):
        return None
    if not compressed.exists(path):
        return GONE
    if wanted is None:
        return None
    if path.is_dir() == ("" in wanted):
        return "it is a folder" if path.is_dir() else "it is not a folder"
    if path.is_dir() and (added := [name for name in files_of(path) if name not in wanted]):
        return f"{added[0]} was added to it"
    return next(filter(None, _of_each(lambda name: _difference(path, name, wanted[name], whole), list(wanted))), None)


def _of_each(function: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """What a function that reads a file gives for each name; side by side, as hashlib lets other threads work."""
    if len(names) == 1:
        return [function(names[0])]
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(function, names))


def require(path: Path, stamp: Stamp, whole: bool = True) -> None:
    """UserError if an artifact is not what its stamp says, with what to do."""
    if (fault := damage(path, stamp, whole)) is not None:
        raise _damaged(path, fault)


def require_all(folder: Path, rows: bool = False) -> None:
    """UserError, which lists all artifacts of a run that are not what their stamps say.

    Large files are read only with `rows`, and those of models not even then. What is gone is made again by the next
    launch, so it is a fault only with `rows`, which are read now.
    """
    faults = []
    for path, stamp in stamped(folder):
        fault = damage(path, stamp, rows and not path.is_dir())
        if fault is not None and (fault != GONE or (rows and "" in stamp.get("content", {}))):
            faults.append((path, fault))
    require_drops(folder)
    if len(faults) > 1:
        listed = "".join(f"  {path}: {fault}\n" for path, fault in faults[:WIDE])
        more = f"  and {len(faults) - WIDE} more\n" if len(faults) > WIDE else ""
        raise UserError(
            f"{len(faults)} artifacts of {folder} are damaged:\n{listed}{more}"
            f"nothing was changed. Delete them; then {again(faults[0][0])}"
        )
    for path, fault in faults:
        raise _damaged(path, fault)


def require_drops(folder: Path) -> None:
    """UserError if a dropped.jsonl of a run is damaged: a stage has other rows in it than it dropped."""
    run = RunPaths(folder)
    for file in run.files(run.dropped.name):
        listed: dict[str, list[dict[str, Any]]] = {}
        for place, row in records.placed(file):
            if not all(isinstance(row.get(name), str) for name in ("prompt_id", "stage", "reason")):
                raise UserError(f"{place}: damaged: no prompt_id, stage and reason. {_without(file)}")
            listed.setdefault(row["stage"], []).append(row)
        wanted: dict[str, set[str]] = {}
        for path, stamp in stamped(file.parent):
            if path.parent == file.parent and isinstance(digest := stamp.get("drops"), str):
                wanted.setdefault(stamp["key"]["stage"], set()).add(digest)
        for stage, digests in wanted.items():
            if drops_digest(listed.get(stage, [])) not in digests:
                raise UserError(f"{file} is damaged: its rows of {stage} are not what was dropped. {_without(file)}")


def drops_digest(rows: Iterable[dict[str, Any]]) -> str:
    """The SHA-256 of what a stage dropped."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(records.dump(row))
    return digest.hexdigest()


def _without(file: Path) -> str:
    return f"Delete {file}: the reasons in it are lost then, and how many rows were dropped stays in the stamps"


def again(path: Path) -> str:
    """How a deleted artifact is made again: by its own run, which may be the original run of a branch."""
    run = run_of(path)
    linked = any(part.is_symlink() for part in (path, *path.parents[:DEPTH]) if run is not None and run in part.parents)
    if linked and (other := run_of(path.resolve())) is not None:
        run = other
    if run is None:
        return "give the same command again, which makes it again"
    return f"make it again with: {to_resume(run)}"


def _damaged(path: Path, fault: str) -> UserError:
    if fault == GONE:
        return UserError(f"{path} is gone, and its stamp says that it was finished; {again(path)}")
    path = compressed.stored(path)
    return UserError(f"{path} is damaged: {fault}. Nothing was changed. Delete it; then {again(path)}")


def _difference(path: Path, name: str, entry: list[Any], whole: bool) -> str | None:
    (size, digest), file, what = entry, file_of(path, name), name or "it"
    if not file.is_file():
        return f"{what} is not a file" if file.exists() else f"{what} is missing"
    if file != path / name:  # its size follows from its bytes
        return _difference_unpacked(file, size, digest, whole)
    if (actual := file.stat().st_size) != size:
        return f"{what} has {actual} bytes, and had {size} when it was made"
    if (whole or size <= SMALL) and file_digest(file) != digest:
        return f"{what} has as many bytes as when it was made, but other content"
    return None


def _difference_unpacked(file: Path, size: int, digest: str, whole: bool) -> str | None:
    try:
        same = not (whole or size <= SMALL) or file_digest(file, unpacked=True) == digest
    except compressed.Broken as fault:
        return str(fault)
    return None if same else "it is compressed, and holds other bytes than it had when it was made"


def fault_of(stamp: Stamp) -> str | None:
    """What is wrong with the fields of a stamp."""
    for name, kind in FIELDS.items():
        value = stamp.get(name)
        if isinstance(value, bool) or not isinstance(value, kind) or not _finite(value):
            return f"{name} is {value!r}" if name in stamp else f"it has no {name}"
    if not isinstance(stamp["key"].get("stage"), str):
        return "key names no stage"
    if not all(_is_number(value) for value in stamp["parts"].values()):
        return "parts are not all seconds"
    content = stamp.get("content", None if _format(stamp) >= CONTENT_SINCE else {})
    if not isinstance(content, dict) or not all(_is_entry(entry) for entry in content.values()):
        return "content does not say what was made" if "content" in stamp else "it has no content"
    return None


def _format(stamp: Stamp) -> int:
    number = stamp["key"].get("format", 0)
    return number if isinstance(number, int) else CONTENT_SINCE


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], int) and isinstance(entry[1], str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def differences(
    old: Any, new: Any, key: str = "", say: str = "was {}, is {}", shown: Callable[[Any], str] = repr
) -> Iterator[str]:
    """The dotted keys in which two resolved recipes (or keys of artifacts) differ, each with both values as `shown`."""
    for name, *values in unlike(old, new, key):
        yield f"{name}: {say.format(*('not given' if value is None else shown(value) for value in values))}"


def unlike(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two mappings differ, each with both values; None where one of them lacks it."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from unlike(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield key, old, new
