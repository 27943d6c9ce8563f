"""Where raw rows come from: a file, a data set of the hub, or the recipe itself.

A source gives each row with its place ("prompts.jsonl:17"), one at a time, so that a file may be larger than
memory; `raft.data.prompts` and `raft.data.examples` make records of the rows. Blank lines of a text file are not rows.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from raft.core import compressed
from raft.core.errors import UserError
from raft.core.options import fault_of_file, source
from raft.models import hub

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]  # the place of a row, and the row

BLOCK = 1 << 16  # characters of a JSON list that are read at a time
LONGEST = 1 << 27  # bytes of a line, and characters of a row: a file that unpacks to more would fill the memory
BATCH = 1024  # rows of a Parquet file that are held at a time
PACKED = (".gz", compressed.SUFFIX)  # endings behind the ending of a file
BLANKS = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows that can be read repeatedly: the same rows in the same order."""

    def rows(self) -> Rows:
        """Each row with its place. UserError names the place of what cannot be read."""
        raise NotImplementedError

    def parts(self) -> list[tuple[float, Any]]:
        """The sources of this mixture, each with its weight."""
        return [(1.0, self)]

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from ()


@dataclass(frozen=True, kw_only=True)
class FileRows(Source):
    """JSONL, JSON (a list), CSV, TSV or plain text (each also as .gz or .zst), or Parquet, by the file's ending.

    A line of a .txt file is a row with the single column `text`; with `pattern`, a regular expression that has to match
    the whole line, it has a column for each named group.
    """

    path: str = source("file")
    pattern: str | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        """An ending that is not known, a pattern that is of no use."""
        yield from super().faults()
        if _ending(self.path) not in READERS:
            allowed = ", ".join(f".{ending}" for ending in READERS)
            yield (
                "path",
                f"{self.path}: unknown ending; allowed: {allowed}, each but .parquet also with .gz or .zst behind it",
            )
        if self.pattern is not None:
            example = r"named groups, such as (?P<label>\d) (?P<text>.*)"
            yield from pattern_faults("pattern", self.pattern, example, "groupindex")
            if _ending(self.path) != "txt":
                yield "pattern", f"is for the lines of a .txt file, which {self.path} is not; leave it out"

    def rows(self) -> Rows:
        if (fault := fault_of_file(self.path)) is not None:
            raise UserError(fault)
        rows = READERS[_ending(self.path)](Path(self.path))
        return rows if self.pattern is None else _matched(rows, self.pattern)

    def identify(self) -> str:
        """The hash of the file."""
        return hub.identity(Path(self.path))


@dataclass(frozen=True, kw_only=True)
class HubRows(Source):
    """A split of a data set of the hub, `name` being its configuration; or of a folder that is laid out like one.

    `folder` is one of the data set's own folders, where it has several (harmless-base of Anthropic/hh-rlhf).
    """

    dataset: str
    name: str | None = None
    folder: str | None = None
    split: str = "train"
    revision: str | None = None

    def rows(self) -> Rows:
        rows = hub.load_dataset(self.dataset, self.name, self.split, self.revision, self.folder)
        where, index = f"{self.dataset}/{self.split}", 0
        try:
            for row in rows:
                yield f"{where}[{index}]", row
                index += 1
        except Exception as fault:
            raise UserError(f"{where}[{index}]: cannot be read ({fault}); fetch the data set again") from None

    def identify(self) -> str:
        """The commit."""
        return hub.dataset_identity(self.dataset, self.revision)


@dataclass(frozen=True, kw_only=True)
class InlineRows(Source):
    """Rows written in the recipe: mappings, or texts, each of which is a row with the single column `prompt`."""

    items: list

    def faults(self) -> Iterator[tuple[str, str]]:
        """Items that are not rows."""
        yield from super().faults()
        if not self.items:
            yield "items", "is empty; give at least one text or mapping"
        for index, item in enumerate(self.items):
            if not isinstance(item, str | dict):
                yield f"items[{index}]", f"expected a text or a mapping, found {item!r}"
                continue
            try:
                json.dumps(item, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
            except (TypeError, ValueError, RecursionError) as fault:
                yield (
                    f"items[{index}]",
                    f"cannot be written as JSON ({fault}); write names and dates as text, in quotes",
                )

    def rows(self) -> Rows:
        for index, item in enumerate(self.items):
            yield f"items[{index}]", {"prompt": item} if isinstance(item, str) else item

    def identify(self) -> str:
        """The hash of the items."""
        return f"sha256:{hashlib.sha256(json.dumps(self.items, sort_keys=True).encode()).hexdigest()}"


def pattern_faults(option: str, pattern: str, need: str, groups: str = "groups") -> Iterator[tuple[str, str]]:
    """Why a regular expression extracts nothing: it is invalid, or lacks `groups` (or, named ones, `groupindex`)."""
    try:
        if not getattr(re.compile(pattern), groups):
            yield option, f"{pattern!r} takes nothing; it needs {need}"
    except re.error as fault:
        yield option, f"{pattern!r} is not a regular expression ({fault})"


def _ending(path: str) -> str:
    packed = next((end for end in PACKED if path.lower().endswith(end)), "")
    ending = Path(path.lower().removesuffix(packed)).suffix[1:]
    return f"parquet{packed}" if ending == "parquet" else ending


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object. ValueError for a duplicate key: readers differ in which value they take."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears twice in an object")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def jsonl(path: Path) -> Rows:
    """The objects of a JSON Lines file, plain or compressed, each with its place; blank lines are not rows."""
    if (fault := fault_of_file(str(path))) is not None:
        raise UserError(fault)
    yield from _jsonl(path)


def _jsonl(path: Path) -> Rows:
    for number, line in _lines(path):
        place = f"{path}:{number}"
        if line.strip():
            yield place, _object(line, place)


def _object(line: str, place: str) -> Row:
    try:
        row = DECODER.decode(line)
    except (ValueError, RecursionError) as fault:
        raise UserError(f"{place}: not a line of JSON ({fault})") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected an object such as {{...}}, found {type(row).__name__}")
    return row


def _json(path: Path) -> Rows:
    with _opened(path) as file:
        scan = _Scan(path, io.TextIOWrapper(file, encoding="utf-8-sig"))
        with _explained(path, lambda: scan.line):
            scan.expect("[")
            if scan.next() != "]":
                yield from scan.objects()
            scan.expect("]")
            scan.expect("")


class _Scan:
    """The objects of a JSON list, one at a time; what has been read is let go."""

    def __init__(self, path: Path, file: IO[str]):
        self.path, self.file = path, file
        self.text, self.at, self.line = "", 0, 1

    def next(self) -> str:
        """The next character that is not blank, which is not read yet; "" at the end of the file."""
        while True:
            self._pass(BLANKS.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def expect(self, wanted: str) -> None:
        """Reads the next character. UserError if it is not the one expected; "" is the end of the file."""
        token = self.next()
        if token != wanted:
            reason = f"expected {wanted or 'nothing more'}, found {token or 'the end of the file'}"
            raise UserError(f"{self.path}:{self.line}: {reason}; a .json file is one list of objects")
        self.at += len(token)

    def objects(self) -> Rows:
        """The next object, and those that follow it after a comma, each with its place."""
        while True:
            if self.next() != "{":
                self.expect("{")
            yield f"{self.path}:{self.line}", self._object()
            if self.next() != ",":
                return
            self.expect(",")

    def _object(self) -> Row:
        while True:
            try:
                row, end = DECODER.raw_decode(self.text, self.at)
                self._pass(end)
                return row
            except (ValueError, RecursionError) as fault:
                self._bound()
                if not isinstance(fault, json.JSONDecodeError) or not self._more():
                    raise UserError(f"{self.path}:{self.line}: not JSON ({fault})") from None

    def _bound(self) -> None:
        if len(self.text) - self.at > LONGEST:
            raise UserError(f"{self.path}:{self.line}: an object of more than {LONGEST} characters; leave it out")

    def _pass(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def _more(self) -> bool:
        """Reads on. As much again as is not understood yet, so that a long object is tried only a few times."""
        rest = self.text[self.at :]
        block = self.file.read(max(BLOCK, len(rest)))
        self.text, self.at = rest + block, 0
        return bool(block)


def _csv(path: Path, delimiter: str) -> Rows:
    csv.field_size_limit(LONGEST)  # the module's own limit is 128 KiB, and a text may be longer
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] = []
    start = 1
    try:
        for fields in reader:
            place, start = f"{path}:{start}", reader.line_num + 1
            if not header:
                header = _header(fields, place)
            elif fields:
                yield place, _columns(header, fields, place)
    except csv.Error as fault:
        raise UserError(f"{path}:{start}: not a row of a {path.name} ({fault})") from None


def _header(fields: list[str], place: str) -> list[str]:
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise UserError(
            f"{place}: two columns are named {', '.join(twice)}; the first line has to name each column once"
        )
    return fields


def _columns(header: list[str], fields: list[str], place: str) -> Row:
    if len(fields) != len(header):
        raise UserError(f"{place}: {len(fields)} fields for {len(header)} columns ({', '.join(header)}); fix the row")
    return dict(zip(header, fields, strict=True))


def _text(path: Path) -> Rows:
    for number, line in _lines(path):
        if line.strip():
            yield f"{path}:{number}", {"text": line.rstrip("\r\n")}


def _matched(rows: Rows, pattern: str) -> Rows:
    compiled = re.compile(pattern)
    for place, row in rows:
        match = compiled.fullmatch(row["text"])
        if match is None:
            start = row["text"][:80]
            raise UserError(f"{place}: the pattern {pattern!r} does not match; fix it or the line: {start!r}")
        yield place, match.groupdict()


def _parquet(path: Path) -> Rows:
    from pyarrow.parquet import ParquetFile

    index = 0
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(BATCH):
                for row in _batch_rows(batch):
                    yield f"{path}[{index}]", row
                    index += 1
    except _Unreadable as fault:
        raise UserError(f"{path}[{index}]: {fault}; fix that value, or leave its column out") from None
    except Exception as fault:  # of Arrow, of the system, of bytes that say what cannot be
        raise UserError(f"{path}[{index}]: cannot be read as Parquet ({fault}); fetch the file again") from None


class _Unreadable(Exception):
    """A value that Python cannot hold, such as a text that is not UTF-8 or a date after the year 9999."""


def _batch_rows(batch: Any) -> Iterator[Row]:
    """The rows of a batch; _Unreadable once the first is reached that has a bad value."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass
    for row in range(batch.num_rows):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column[row].as_py()
            except (ValueError, OverflowError) as fault:
                raise _Unreadable(f"the value of column {name} cannot be read ({fault})") from None
        yield from batch.slice(row, 1).to_pylist()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, plain or compressed, with their numbers from 1."""
    number = 0
    with _opened(path) as file, _explained(path, lambda: number + 1):
        while line := file.readline(LONGEST + 1):
            if len(line) > LONGEST:
                raise UserError(f"{path}:{number + 1}: a line of more than {LONGEST} bytes; leave that row out")
            text = line.decode("utf-8" if number else "utf-8-sig")
            number += 1
            yield number, text


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else compressed.opened(path)  # type: ignore[return-value]


@contextmanager
def _explained(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """What the bytes of a file may be found to be, as the user's fault."""
    try:
        yield
    except UnicodeDecodeError as fault:
        raise UserError(f"{path}:{line()}: not UTF-8 ({fault.reason}); save the file as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise UserError(f"{path}:{line()}: broken gzip data ({fault}); fetch the file again") from None
    except OSError as fault:
        raise UserError(f"{path}:{line()}: cannot be read ({fault.strerror})") from None


READERS: dict[str, Callable[[Path], Rows]] = {
    "jsonl": _jsonl,
    "ndjson": _jsonl,
    "json": _json,
    "csv": partial(_csv, delimiter=","),
    "tsv": partial(_csv, delimiter="\t"),
    "txt": _text,
    "parquet": _parquet,
}
