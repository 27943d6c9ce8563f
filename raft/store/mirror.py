"""The mirror of a run (`store: {mirror: URL}`): what is finished is uploaded, and `pull` brings it back.

An artifact's stamp is uploaded after all its files, and deleted before any of them is replaced, so what is stamped in
the mirror is whole. What is there already is known by its stamp, so uploading again sends only what is missing.
"""

import errno
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from raft.core import compressed, given, signals
from raft.core.atomic import commit, file_digest, files_of, fsync, remove, write_json
from raft.core.errors import UserError
from raft.core.progress import Progress
from raft.core.remote_folder import RemoteFolder, fault_of_url, told
from raft.core.resume_command import to_resume
from raft.core.run_paths import DEPTH, OUTPUTS, RUN, RunPaths
from raft.store import stamps
from raft.store.runs import Run, about, locked, refuse_foreign
from raft.store.stamps import WIDE, Stamp, stamp_path

LOG = logging.getLogger(__name__)
PAUSES = (1.0, 5.0, 20.0)  # seconds before a failed upload is tried again
READERS = 8  # stamps that are read at once
SAME = ("hash", "content", "drops")  # fields of a stamp that say which artifact it is of
ID = "id"  # in run.json: which run a mirror holds
SUFFIX = ".stamp.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SILENCE = 300.0  # seconds in which nothing arrives before an upload is not waited for any more
ENDING = 1.0  # seconds that are left of a signal's grace when nothing is waited for any more


class Unreadable(UserError):
    """A mirror, or a file of it, cannot be read."""


class Mirror:
    """Uploads what is finished in a run, in a thread of its own.

    One upload is under way at a time. It takes everything that is finished when it begins, the oldest first; what is
    finished meanwhile is the next one. The run waits for an upload only at the end of an iteration, for what was
    finished at the end of the one before, and at its own end.
    """

    def __init__(self, run: Run, url: str, tell: Callable[[str], None]):
        self.folder, self.url, self.tell = run.folder.absolute(), url.rstrip("/"), tell
        self.place = f"{self.url}/{run.folder.name}"
        self.remote: RemoteFolder | None = None
        self.known: dict[str, Stamp] = {}  # stamps in the mirror, by the names of their artifacts
        self.names: set[str] = set()  # files in the mirror
        self.sent: dict[Path, tuple[int, ...]] = {}  # files as they were when they were uploaded
        self.turn, self.over = threading.Condition(), threading.Event()
        self.asked = self.tried = self.last_end = self.rest_asked = 0  # numbers of uploads
        self.fault: str | None = None  # why the last attempt failed
        self.unsaid: list[str] = []
        self.moved = self.size = self.uploaded = 0  # bytes of this upload, and of all of it; artifacts of this process
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def ask(self, rest: bool = False) -> int:
        """Asks for an upload of what is finished now, with `rest` also of the recipe, metrics and logs; its number."""
        self._tell()
        with self.turn:
            self.asked += 1
            self.rest_asked = self.asked if rest else self.rest_asked
            self.turn.notify_all()
            return self.asked

    def iteration_ended(self) -> None:
        """Asks for an upload of everything, and waits for the one that the iteration before asked for."""
        before, self.last_end = self.last_end, self.ask(rest=True)
        self._wait(before, patient=False)

    def close(self) -> None:
        """Waits until everything is uploaded, or until that has failed; of a process that is to stop, while it may."""
        self._wait(self.ask(rest=True), patient=True)
        done = self.tried == self.asked
        self.over.set()
        with self.turn:
            self.turn.notify_all()
        if self.fault is not None or not done:
            why = f" ({self.fault})" if self.fault else ""
            self.unsaid = [
                f"the mirror {self.place} {self._lack()}{why}; the run itself is whole, and the next raft run or "
                "raft resume uploads what is missing"
            ]
        elif self.uploaded:
            self.unsaid.append(f"all of it is in {self.place}; elsewhere, raft pull {self.place} brings it back")
        self._tell()

    def _lack(self) -> str:
        """What the mirror does not have."""
        if self.remote is None:
            return "has got nothing from this process"
        names = [self._name(path) for path in self._unsent()]
        more = f" and {len(names) - WIDE} more" if len(names) > WIDE else ""
        return f"lacks {', '.join(names[:WIDE]) or 'the newest metrics and logs'}{more}"

    def _tell(self) -> None:
        """What the thread has to say, said by the caller's."""
        while self.unsaid:
            self.tell(self.unsaid.pop(0))

    def _wait(self, number: int, patient: bool) -> None:
        """Waits until an upload was tried; without patience not for one that has failed and is tried again."""

        def enough() -> bool:
            failed = self.fault is not None
            stopped = signals.asked() and (not patient or failed or signals.left() < ENDING)
            return self.tried >= number or stopped or (failed and not patient)

        with self.turn:
            if self.turn.wait_for(enough, 0.05):
                return
        with Progress("mirror", "MB", RunPaths(self.folder).progress, "uploading to the mirror") as progress:
            moved, since = self.moved, time.monotonic()
            while not enough() and time.monotonic() - since < SILENCE:
                progress.advance(self.moved >> 20, self.size >> 20)
                with self.turn:
                    self.turn.wait_for(enough, 0.2)
                if self.moved != moved:
                    moved, since = self.moved, time.monotonic()

    def _work(self) -> None:
        said = None
        while True:
            with self.turn:
                self.turn.wait_for(lambda: self.asked > self.tried or self.over.is_set())
                if self.over.is_set():
                    return
                number, rest = self.asked, self.rest_asked > self.tried
            for pause in (*PAUSES, None):
                fault, again = self._attempt(rest)
                with self.turn:
                    self.fault = fault
                    self.turn.notify_all()
                if fault is None or not again or pause is None or self.over.wait(pause):
                    break
            if fault is not None and fault != said:
                self.unsaid.append(f"the mirror is behind: {fault}; the next upload tries again, and the run goes on")
            said = fault
            with self.turn:
                self.tried = number
                self.turn.notify_all()

    def _attempt(self, rest: bool) -> tuple[str | None, bool]:
        """Why an upload failed, None if it did not; and whether another attempt may not."""
        try:
            self._upload(rest)
        except UserError as fault:
            return str(fault), False
        except Exception as fault:  # of the library of any protocol; the run goes on
            said = f"{self.place} cannot be written ({told(fault)})"
            if said != self.fault:
                LOG.warning(said, exc_info=fault)
            return said, True
        return None, False

    def _upload(self, rest: bool) -> None:
        if self.remote is None:
            self.remote = self._met()
        if rest:
            for file in _rest(self.folder):
                self._send_newer(file)
        unsent = [(path, stamps.read_stamp(path)) for path in self._unsent()]
        made = sorted(((path, stamp) for path, stamp in unsent if stamp is not None), key=lambda one: one[1]["began"])
        kept = [(path, stamp) for path, stamp in made if not stamp.get("pruned")]
        self.moved, self.size = 0, sum(size for _, stamp in kept for size, _ in stamp["content"].values())
        damaged = [fault for path, stamp in kept if (fault := self._send(path, stamp)) is not None]
        if damaged:
            raise UserError("; ".join(damaged))
        for path, stamp in made:  # what the run has deleted is deleted after what it was deleted for is there
            if stamp.get("pruned"):
                self._delete(path, stamp)

    def _met(self) -> RemoteFolder:
        """The mirror as it is found. UserError if it holds another run."""
        remote = RemoteFolder(self.url, self.folder.name)
        self.names = remote.names()
        self.known = _stamps_in(remote, self.names)
        held = _read_object(remote, RUN).get(ID) if RUN in self.names else None
        if not self._is_ours(held):
            raise UserError(
                f"{self.place} holds another run, so nothing is uploaded; delete it there, or give this run another "
                "store.mirror"
            )
        return remote

    def _is_ours(self, held: Any) -> bool:
        """Whether the mirror holds this run: by the id in its run.json, or, where that is torn, by its stamps."""
        if held is not None:
            return held == about(self.folder).get(ID)
        here = {self._name(path): stamp for path, stamp in stamps.stamped(self.folder)}
        return all(_same(stamp, here[name]) for name, stamp in self.known.items() if name in here)

    def _unsent(self) -> Iterator[Path]:
        """The finished artifacts whose stamps have not been uploaded as they are."""
        for file in RunPaths(self.folder).files(f"*{SUFFIX}"):
            path = file.with_name(file.name.removesuffix(SUFFIX))
            if file.exists() and self.sent.get(file) != (state := _state(file)):
                known, stamp = self.known.get(self._name(path)), stamps.read_stamp(path)
                if stamp is None or "content" not in stamp:  # gone meanwhile, or of a run too old to go on
                    continue
                if known is not None and _same(known, stamp) and self._has(path, known, stamp):
                    self.sent[file] = state
                else:
                    yield path

    def _has(self, path: Path, known: Stamp, stamp: Stamp) -> bool:
        """Whether the mirror holds of an artifact what it should, which of a deleted one is the stamp alone."""
        if not stamp.get("pruned"):
            return True
        return bool(known.get("pruned")) and not any(name.startswith(f"{self._name(path)}/") for name in self.names)

    def _send(self, path: Path, stamp: Stamp) -> str | None:
        """Uploads an artifact, its stamp last; or why that is not done, if it is damaged."""
        name, state, held = self._name(path), _state(stamp_path(path)), compressed.stored(path)
        try:
            if (fault := stamps.damage(path, stamp)) is not None and held == compressed.stored(path):
                return None if _is_gone(path) else f"{path} is not uploaded: {fault}"
            self._remove(f"{name}{SUFFIX}")
            for form in {path, compressed.beside(path)} - {held}:
                self._remove(self._name(form))
            for file in [*(held / one for one in stamp["content"]), *sorted(path.rglob("*.md"))]:
                self._put(file)
            self._send_newer(RunPaths(path.parent).dropped)
        except FileNotFoundError:
            if held != compressed.stored(path):  # compressed meanwhile
                return self._send(path, stamp)
            if not _is_gone(path):
                raise
            return None
        self._stamp(path, stamp)
        self.sent[stamp_path(path)] = state
        self.uploaded += 1
        return None

    def _delete(self, path: Path, stamp: Stamp) -> None:
        """Says in the mirror that an artifact was deleted, and deletes it."""
        state = _state(stamp_path(path))
        self._stamp(path, stamp)
        for name in [name for name in self.names if name.startswith(f"{self._name(path)}/")]:
            self._remove(name)
        self.sent[stamp_path(path)] = state

    def _stamp(self, path: Path, stamp: Stamp) -> None:
        self._go_on()
        name = self._name(path)
        assert self.remote is not None
        self.remote.write(f"{name}{SUFFIX}", json.dumps(stamp, indent=1, ensure_ascii=False).encode() + b"\n")
        self.known[name] = stamp
        self.names.add(f"{name}{SUFFIX}")

    def _send_newer(self, file: Path) -> None:
        """Uploads a file that is no artifact if it has changed since."""
        if file.is_file() and self.sent.get(file) != (state := _state(file)):
            self._put(file)
            self.sent[file] = state

    def _put(self, file: Path) -> None:
        self._go_on()
        assert self.remote is not None
        after = self.moved + file.stat().st_size
        self.remote.put(file, self._name(file), self._count)
        self.moved = after
        self.names.add(self._name(file))

    def _remove(self, name: str) -> None:
        self._go_on()
        assert self.remote is not None
        if name in self.names:
            self.remote.remove(name)
            self.names.discard(name)

    def _count(self, size: int) -> None:
        self.moved += size

    def _go_on(self) -> None:
        if self.over.is_set():
            raise UserError("the run has ended, and nobody waits for the upload")

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


@contextmanager
def mirrored(run: Run, store: Any, tell: Callable[[str], None]) -> Iterator[None]:
    """Inside the block what the run finishes is uploaded to its mirror, if it has one; `tell` hears of what is not."""
    if store.mirror is None:
        yield
        return
    _refuse_place(run.folder, store.mirror)
    if ID not in (known := about(run.folder)):
        write_json(RunPaths(run.folder).about, {**known, ID: secrets.token_hex(8)})
    run.mirror = mirror = Mirror(run, store.mirror, tell)
    mirror.ask(rest=True)
    try:
        yield
    finally:
        run.mirror = None
        mirror.close()


def _refuse_place(folder: Path, url: str) -> None:
    """UserError if the mirror of a run lies in the run itself, or the other way round."""
    place = RemoteFolder(url, folder.name).path
    here = folder.resolve()
    if place is not None and ((there := place.resolve()) in (here, *here.parents) or here in there.parents):
        raise UserError(f"store.mirror: {url} would put the mirror of {folder} in its own place; name another")


def pull(url: str, to: Path | None = None) -> tuple[Path, int, int]:
    """Brings what is stamped in a mirror into a folder, and goes on where an earlier call was ended.

    Returns the folder (outputs/NAME if `to` is None), how many artifacts were fetched, and how many were there. Each is
    compared with its stamp before it gets its name. UserError if the folder holds anything that the mirror does not
    have, before anything is written; or, after all others are here, if an artifact is damaged in the mirror.
    """
    if (fault := fault_of_url(url)) is not None:
        raise UserError(f"the url {fault}")
    remote = RemoteFolder(url)
    folder = to or OUTPUTS / PurePosixPath(remote.root).name
    with _reaching(url):
        names = remote.names()
        known = _stamps_in(remote, names)
        identity = _read_object(remote, RUN).get(ID) if RUN in names else None
    if RUN not in names:
        listed = sorted(f"{remote.url}/{PurePosixPath(name).parent}" for name in names if name.endswith(f"/{RUN}"))
        found = f"; runs in it: {', '.join(listed[:8])}" if listed else "; is it spelled rightly?"
        raise UserError(f"{url} is not the mirror of a run (it has no {RUN}){found}")
    if strange := [name for name in sorted(names) if not _is_plain(name)]:
        raise UserError(f"{url} has a file named {strange[0]!r}, which raft did not write; nothing was fetched")
    _refuse_folder(folder, url)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"{folder}", "pull into another folder (--to)"):
        _refuse_other(folder, url, known, identity)
        pulling = _Pull(remote, folder, names)
        pulling.all_of(known)
    if pulling.damaged:
        damaged = "".join(f"  {fault}\n" for fault in pulling.damaged)
        raise UserError(
            f"{len(pulling.damaged)} artifacts of {url} are not what their stamps say, and were left out:\n{damaged}"
            "If the run is at work, pull again later. If not, delete their stamps in the mirror, and raft resume where "
            f"the run is uploads them again; or {to_resume(folder)} makes them again here"
        )
    return folder, pulling.fetched, len(known) - pulling.fetched


class _Pull:
    """A mirror that is brought into a folder."""

    def __init__(self, remote: RemoteFolder, folder: Path, names: set[str]):
        self.remote, self.folder, self.names, self.run = remote, folder, names, Run(folder, 0)
        self.fetched = self.moved = 0
        self.damaged: list[str] = []
        self.progress = Progress("pull", "MB", None, f"fetching {folder.name}")
        self.size = 0

    def all_of(self, known: dict[str, Stamp]) -> None:
        """Fetches the recipe, metrics and logs, then the artifacts, the oldest first."""
        wanted = sorted(known.items(), key=lambda one: one[1]["began"])
        self.size = sum(size for _, stamp in wanted for size, _ in _content(stamp).values())
        with self.progress:
            for name in sorted((name for name in self.names if _is_rest(name)), key=lambda name: (name != RUN, name)):
                self.run.refuse_links(self.folder / name)
                temporary = self._temporary(self.folder / name)
                temporary.parent.mkdir(parents=True, exist_ok=True)
                self._get(name, temporary)
                commit(temporary, self.folder / name)
            for name, stamp in wanted:
                self._artifact(self.folder / name, name, stamp)

    def _artifact(self, path: Path, name: str, stamp: Stamp) -> None:
        own = stamps.read_stamp(path)
        if own is not None and (own.get("pruned") or stamps.damage(path, own, whole=False) != stamps.GONE):
            stamps.require(path, own, whole=False)
            return
        self.run.refuse_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not stamp.get("pruned"):
            temporary = self._temporary(path)
            try:
                self._files(temporary, name, stamp)
                fault = stamps.damage(temporary, stamp)
            except Unreadable as unread:
                with _reaching(self.remote.url):
                    self.remote.read(RUN)  # where that can be read, the fault is the artifact's
                fault = str(unread)
            fetched = compressed.stored(temporary)
            if fault is not None:
                remove(fetched)
                self.damaged.append(f"{name}: {fault}")
                return
            stamp_path(path).unlink(missing_ok=True)
            fsync(path.parent)
            for torn in (path, compressed.beside(path)):  # without a stamp they may be
                remove(torn)
            commit(fetched, compressed.beside(path) if fetched != temporary else path)
        write_json(stamp_path(path), stamp)
        self.fetched += 1

    def _files(self, temporary: Path, name: str, stamp: Stamp) -> None:
        """Fetches the files of an artifact, but for those that an earlier call has fetched."""
        content = _content(stamp)
        if temporary.is_dir() and not set(files_of(temporary)) <= content.keys():
            remove(temporary)
        notes = [file for file in self.names if file.startswith(f"{name}/") and file.endswith(".md")]
        for below in [*content, *(file.removeprefix(f"{name}/") for file in notes)]:
            file, place = temporary / below, f"{name}/{below}".rstrip("/")
            if not below and place not in self.names:  # compressed in the mirror, if it is there
                remove(file)
                file, place = compressed.beside(file), f"{place}{compressed.SUFFIX}"
            here = [file.stat().st_size, file_digest(file)] if file.is_file() else None
            if place not in self.names or (here is not None and here == content.get(below)):
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            self._get(place, file)

    def _get(self, name: str, file: Path) -> None:
        signals.check()
        remove(file)
        with _reaching(self.remote.url):
            self.remote.get(name, file, self._count)

    def _count(self, size: int) -> None:
        self.moved += size
        self.progress.advance(self.moved >> 20, max(self.moved, self.size) >> 20)

    @staticmethod
    def _temporary(path: Path) -> Path:
        return path.with_name(f".{path.name}.tmp")


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """What a library raises in the block, as a UserError; a full disk of this machine is left to the command."""
    try:
        yield
    except UserError:
        raise
    except Exception as fault:  # of the library of any protocol
        if isinstance(fault, OSError) and fault.errno in FULL:
            raise
        raise Unreadable(
            f"{url} cannot be read ({told(fault)}); see whether it exists, and whether the environment has credentials "
            "for it (docs/mirror.md). What was fetched is kept, and the same command goes on"
        ) from fault


def _refuse_folder(folder: Path, url: str) -> None:
    try:
        refuse_foreign(folder)
    except UserError:
        raise UserError(f"{folder} exists and is not a run; name another: raft pull {url} --to FOLDER") from None


def _refuse_other(folder: Path, url: str, known: dict[str, Stamp], identity: Any) -> None:
    """UserError if the folder holds another run, or something that the mirror does not have."""
    there = about(folder).get(ID) if RunPaths(folder).about.exists() else None
    elsewhere = f"nothing was fetched. Pull into another folder: raft pull {url} --to FOLDER"
    if None not in (there, identity) and there != identity:
        raise UserError(f"{folder} holds another run than {url}; {elsewhere}")
    for path, stamp in stamps.stamped(folder):
        other = known.get(path.relative_to(folder).as_posix())
        if other is None:
            raise UserError(
                f"{path} is not in {url}; {elsewhere}, or go on here, which uploads it: {to_resume(folder)}"
            )
        if not _same(other, stamp):
            raise UserError(f"{path} is another one than that in {url}; {elsewhere}")


def _rest(folder: Path) -> Iterator[Path]:
    """The files of a run that are no artifacts, but for what only this machine needs."""
    for pattern in (RUN, "*", "logs/*.log", f"{given.ROWS}/*", f"{RunPaths(folder).lm_eval.name}/*.json"):
        yield from (
            file
            for file in sorted(folder.glob(pattern))
            if file.is_file() and not file.is_symlink() and _is_rest(file.relative_to(folder).as_posix())
        )
    yield from RunPaths(folder).files(RunPaths(folder).dropped.name)


def _is_rest(name: str) -> bool:
    run, path = RunPaths(Path()), Path(name)
    known = (run.about, run.recipe, run.resolved, run.rows, run.curve, run.report, run.forecast, run.tracked)
    if path in (*known, run.accuracy.with_suffix(".png")) or path.parent in (Path(given.ROWS), run.lm_eval):
        return True
    return path.name == run.dropped.name or (path.parent == run.log.parent and path.suffix == run.log.suffix)


def _is_plain(name: str) -> bool:
    """Whether it is the name of a file inside the folder, as raft writes them."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and all(part not in ("", ".", "..") for part in parts)


def _stamps_in(remote: RemoteFolder, names: Iterable[str]) -> dict[str, Stamp]:
    """The stamps of a mirror by the names of their artifacts; one that is torn or malformed stamps nothing."""

    def read(name: str) -> Stamp | None:
        stamp = _read_object(remote, name)
        sound = stamps.fault_of(stamp) is None and all(_is_plain(one) for one in _content(stamp) if one)
        return stamp if sound and "content" in stamp else None

    stamped = [name for name in names if name.endswith(SUFFIX) and name.count("/") <= DEPTH]
    with ThreadPoolExecutor(READERS) as readers:
        found = zip(stamped, readers.map(read, stamped), strict=True)
        return {name.removesuffix(SUFFIX): stamp for name, stamp in found if stamp is not None}


def _read_object(remote: RemoteFolder, name: str) -> dict[str, Any]:
    """A file of a mirror that is one JSON object; empty if it is anything else."""
    try:
        content = json.loads(remote.read(name))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_gone(path: Path) -> bool:
    """Whether the run has deleted an artifact, or begun to; the next upload says so in the mirror."""
    stamp = stamps.read_stamp(path)
    return stamp is None or bool(stamp.get("pruned")) or not compressed.exists(path)


def _content(stamp: Stamp) -> stamps.Content:
    return stamp.get("content", {})


def _same(one: Stamp, other: Stamp) -> bool:
    """Whether two stamps are of the same artifact, whenever it was made, and whether or not it was deleted since."""
    return all(one.get(field) == other.get(field) for field in SAME)


def _state(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
