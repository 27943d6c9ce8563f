"""Laws of raft.data.sources, on small files written here."""

import csv
import gzip
import json
import os
import tracemalloc
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from raft.core.errors import UserError
from raft.data import sources
from raft.data.sources import FileRows, HubRows, InlineRows

SST2 = Path(__file__).parents[3] / "shared/data/reward/sst2.dev.txt"
ROWS = [
    {"id": "a", "prompt": "One, two\nthree \"four\""},
    {"id": "b", "prompt": "Größe 大きさ"},
    {"id": "c", "prompt": "  "},
]  # fmt: skip


def read(path: Path | str, **options: Any) -> list[tuple[str, dict]]:
    return list(FileRows(path=str(path), **options).rows())


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def write_csv(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


WRITERS = {
    "jsonl": write_jsonl, "ndjson": write_jsonl, "json": write_json, "csv": write_csv, "tsv": write_csv,
    "parquet": write_parquet,
}  # fmt: skip


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_rows_that_were_written(tmp_path: Path, ending: str):
    path = tmp_path / f"rows.{ending}"
    WRITERS[ending](path, ROWS)
    source = FileRows(path=str(path))
    assert [row for _, row in source.rows()] == ROWS
    assert list(source.rows()) == list(source.rows())
    assert list(source.faults()) == []


PACKERS = {"gz": gzip.compress, "zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True)}


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_a_compressed_file_gives_the_same_rows_and_lines(tmp_path: Path, ending: str, packing: str):
    plain, packed = tmp_path / f"rows.{ending}", tmp_path / f"rows.{ending}.{packing}"
    WRITERS[ending](plain, ROWS)
    packed.write_bytes(PACKERS[packing](plain.read_bytes()))
    assert [(place.replace(f".{packing}", ""), row) for place, row in read(packed)] == read(plain)


def test_a_place_is_the_line_where_a_row_begins(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('id,prompt\r\na,"one\r\n\r\ntwo"\r\n\r\nb,three\r\n')
    assert read(path) == [
        (f"{path}:2", {"id": "a", "prompt": "one\r\n\r\ntwo"}),
        (f"{path}:6", {"id": "b", "prompt": "three"}),
    ]
    path = tmp_path / "rows.json"
    path.write_text('\n[{"a": 1},\n\n {"a":\n 2}, {"a": 3}\n]\n')
    assert read(path) == [(f"{path}:2", {"a": 1}), (f"{path}:4", {"a": 2}), (f"{path}:5", {"a": 3})]
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n   \n{"a": 2}')
    assert read(path) == [(f"{path}:2", {"a": 1}), (f"{path}:4", {"a": 2})]


def test_a_json_list_is_read_alike_however_little_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rows.json"
    rows = [{"text": 'ä\\"}],[{' * size, "n": [size, {"x": None}]} for size in range(40)]
    path.write_text(json.dumps(rows, indent=1))
    whole = read(path)
    assert [row for _, row in whole] == rows
    lines = path.read_text().split("\n")
    assert all(lines[int(place.rpartition(":")[2]) - 1] == " {" for place, _ in whole)
    for block in (1, 2, 7):
        monkeypatch.setattr(sources, "BLOCK", block)
        assert read(path) == whole


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path: Path, mark: bytes):
    for name, content in {"a.jsonl": b'{"x": "y"}', "a.json": b'[{"x": "y"}]', "a.csv": b"x\ny", "a.txt": b"y"}.items():
        (tmp_path / name).write_bytes(mark + content)
        assert [row for _, row in read(tmp_path / name)] in ([{"x": "y"}], [{"text": "y"}])


def test_lines_of_a_text_file_are_rows_and_a_pattern_splits_them(tmp_path: Path):
    path = tmp_path / "rows.txt"
    path.write_bytes("1 good film\r\n\n0 bad\u2028film\n".encode())
    assert [row for _, row in read(path)] == [{"text": "1 good film"}, {"text": "0 bad\u2028film"}]
    split = read(path, pattern=r"(?P<label>\d) (?P<sentence>.*)")
    assert split == [
        (f"{path}:1", {"label": "1", "sentence": "good film"}),
        (f"{path}:3", {"label": "0", "sentence": "bad\u2028film"}),
    ]
    for pattern in (r"(?P<label>1) (?P<sentence>.*)", r"(?P<label>\d) (?P<sentence>good film|bad)"):
        with pytest.raises(UserError, match=r"rows\.txt:3: .*does not match"):
            read(path, pattern=pattern)


BROKEN = {
    "a.jsonl": (b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not a line of JSON"),
    "b.jsonl": (b'{"a": 1}\n\n[1]\n', r"b\.jsonl:3: expected an object"),
    "c.jsonl": (b'{"a": 1}\n{"a": "\xff"}\n', r"c\.jsonl:2: not UTF-8"),
    "d.jsonl": (b"[" * 100_000, r"d\.jsonl:1: not a line of JSON"),
    "e.jsonl": (b'{"a": 1}\n{"a": 1, "b": {"c": 2, "d": 3, "c": 2}}\n', r"e\.jsonl:2: .*the key 'c' appears twice"),
    "f.jsonl": (b'{"a": ' + b"9" * 5000 + b"}", r"f\.jsonl:1: not a line of JSON \(Exceeds the limit"),
    "i.json": (b'[{"a": 1},\n {"a": 2, "a": 3}]', r"i\.json:2: not JSON \(the key 'a' appears twice"),
    "a.json": (b'{"a": 1}', r"a\.json:1: expected \[, found {"),
    "b.json": (b'[{"a": 1}\n {"a": 2}]', r"b\.json:2: expected \], found {"),
    "c.json": (b'[{"a": 1},\n ]', r"c\.json:2: expected {, found \]"),
    "d.json": (b'[{"a": 1},\n {"a": 2', r"d\.json:2: not JSON"),
    "e.json": (b'[{"a": 1}', r"e\.json:1: expected \], found the end"),
    "f.json": (b'[1]', r"f\.json:1: expected {, found 1"),
    "g.json": (b'[{"a": 1}] {}', r"g\.json:1: expected nothing more, found {"),
    "h.json": (b"[] []", r"h\.json:1: expected nothing more, found \["),
    "a.csv": (b"x,y\n1,2\n3\n", r"a\.csv:3: 1 fields for 2 columns \(x, y\)"),
    "b.csv": (b'x,y\n1,"2\n3\n', r"b\.csv:2: "),
    "c.csv": (b"x,x\n1,2\n", r"c\.csv:1: two columns are named x"),
    "a.jsonl.gz": (b"nothing", r"a\.jsonl\.gz:1: broken gzip"),
    "b.jsonl.gz": (gzip.compress(b'{"a": 1}\n' * 9)[:-12], r"b\.jsonl\.gz:\d+: broken gzip"),
    "a.jsonl.zst": (b"nothing", r"a\.jsonl\.zst: broken zstd"),
    "b.jsonl.zst": (pyarrow.compress(b'{"a": 1}\n' * 9, "zstd", asbytes=True)[:-3], r"b\.jsonl\.zst: broken zstd"),
    "a.parquet": (b"PAR1 nothing", r"a\.parquet\[0\]: cannot be read as Parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_the_users_fault_at_its_line(tmp_path: Path, name: str):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "csv", "txt"])
def test_a_row_longer_than_the_bound_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
):
    monkeypatch.setattr(sources, "LONGEST", 100)
    monkeypatch.setattr(sources, "BLOCK", 16)
    path, text = tmp_path / f"rows.{ending}", "x" * 10**6
    content = {"json": json.dumps([{"a": 1}, {"a": text}]), "csv": f"a\n1\n{text}\n", "txt": f"1\n{text}\n"}
    lines = content.get(ending, f'{{"a": 1}}\n{{"a": "{text}"}}\n').encode()
    path.write_bytes(PACKERS.get(ending.partition(".")[2], bytes)(lines))
    rows = FileRows(path=str(path)).rows()
    assert next(rows)
    with pytest.raises(UserError, match=r"rows\..*:\d: .* more than 100 (bytes|characters); leave"):
        next(rows)


def unreadable(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Paths that name no file that can be read, each with what is said of it."""
    (tmp_path / "folder.jsonl").mkdir()
    yield str(tmp_path / "folder.jsonl"), r"folder\.jsonl is a folder"
    os.mkfifo(tmp_path / "pipe.jsonl")
    yield str(tmp_path / "pipe.jsonl"), "is no regular file"
    yield str(tmp_path / ("a" * 300 + ".jsonl")), r"cannot be read \(File name too long\)"
    yield "b/" * 3000 + "a.jsonl", r"cannot be read \(File name too long\)"
    yield str(tmp_path / "a\0.jsonl"), "names no file"
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    yield str(tmp_path / "loop.jsonl"), r"cannot be read \(Too many levels"
    yield str(tmp_path / "folder.jsonl" / "none" / "a.jsonl"), "no file at"


def test_a_path_that_cannot_be_read_is_one_sentence(tmp_path: Path):
    for path, message in unreadable(tmp_path):
        with pytest.raises(UserError, match=message) as told:
            list(FileRows(path=path).rows())
        assert len(str(told.value)) < 600


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_one_sentence(tmp_path: Path):
    (tmp_path / "a.jsonl").touch(0o000)
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read \(Permission denied\)"):
        list(FileRows(path=str(tmp_path / "a.jsonl")).rows())


BAD_VALUES = {
    "utf8": (lambda pa: pa.array([b"good", b"\xff"]).view(pa.utf8()), "codec can't decode"),
    "date": (lambda pa: pa.array([0, 2**60]).view(pa.timestamp("us")), "out of range"),
    "day": (
        lambda pa: pa.array([0, 2**31 - 1], pa.int32()).view(pa.date32()),
        "days=",
    ),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_value_of_parquet_that_python_cannot_hold_is_named_by_row_and_column(tmp_path: Path, name: str):
    import pyarrow
    from pyarrow import parquet

    values, message = BAD_VALUES[name]
    table = pyarrow.table({"a": ["x", "y"], "b": values(pyarrow)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    rows = FileRows(path=str(tmp_path / "rows.parquet")).rows()
    assert next(rows)[1]["a"] == "x"
    with pytest.raises(UserError, match=r"rows\.parquet\[1\]: the value of column b cannot be read .*" + message):
        next(rows)


def test_a_flipped_bit_in_parquet_is_found_where_the_file_has_checksums(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"a": [f"row {number}" for number in range(1000)]})
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(b"row 500")] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as Parquet .*checksum"):
        list(FileRows(path=str(path)).rows())


def test_items_that_no_json_can_say_are_faults_of_the_recipe():
    items: list[Any] = [{"a": float("nan")}, {1: "x", "y": 2}, {"a": datetime(2024, 1, 1)}, {"\ud800": 1}, {"a": 1}]
    faults = dict(InlineRows(items=items).faults())
    assert list(faults) == [f"items[{at}]" for at in range(4)]
    assert all("cannot be written as JSON" in message for message in faults.values())


def test_a_missing_file_is_named_in_full(tmp_path: Path):
    with pytest.raises(UserError, match=f"no file at {tmp_path}/none.jsonl"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=f"no file or folder at {tmp_path}/none.jsonl"):
        FileRows(path=str(tmp_path / "none.jsonl")).identify()


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"path": "a.xlsx"}, "unknown ending; allowed: .jsonl, "),
        ({"path": "jsonl"}, "unknown ending"),
        ({"path": "a.parquet.gz"}, "unknown ending"),
        ({"path": "a.parquet.zst"}, "unknown ending"),
        ({"path": "a.jsonl", "pattern": "(?P<x>.)"}, "lines of a .txt file"),
        ({"path": "a.txt", "pattern": "(.)"}, "takes nothing"),
        ({"path": "a.txt", "pattern": "(?P<x>"}, "not a regular expression"),
    ],
)
def test_a_wrong_option_of_a_file_is_explained(options: dict[str, Any], fault: str):
    assert [fault in message for _, message in FileRows(**options).faults()] == [True]


def test_a_text_in_the_recipe_is_a_prompt_and_a_mapping_is_a_row():
    source = InlineRows(items=["Hello", {"question": "Why?"}])
    assert list(source.rows()) == [("items[0]", {"prompt": "Hello"}), ("items[1]", {"question": "Why?"})]
    assert list(source.faults()) == []
    assert [name for name, _ in InlineRows(items=["x", 3]).faults()] == ["items[1]"]
    assert [name for name, _ in InlineRows(items=[]).faults()] == ["items"]


def test_the_identity_of_a_source_is_its_content(tmp_path: Path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    write_jsonl(one, ROWS)
    write_jsonl(other, ROWS)
    assert FileRows(path=str(one)).identify() == FileRows(path=str(other)).identify()
    write_jsonl(other, ROWS[:2])
    assert FileRows(path=str(one)).identify() != FileRows(path=str(other)).identify()
    assert (
        InlineRows(items=["a"]).identify() == InlineRows(items=["a"]).identify() != InlineRows(items=["b"]).identify()
    )


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt", "parquet", "jsonl.gz"])
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path, ending: str):
    peaks = [peak(many_rows(tmp_path / f"{count}.{ending}", count)) for count in (3_000, 20_000)]
    assert peaks[1] < 1.5 * peaks[0] + 100_000


def many_rows(path: Path, count: int) -> Path:
    if path.suffix == ".parquet":
        write_parquet_blocks(path, count)
        return path
    line = {".jsonl": '{"text": "%s"}\n', ".json": '{"text": "%s"},\n'}.get(path.suffixes[0], "%s\n") % ("x" * 60)
    frame = ("[", "{}]") if path.suffix == ".json" else ("", "")
    content = (frame[0] + line * count + frame[1]).encode()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def write_parquet_blocks(path: Path, count: int) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["x" * 60] * count}), path, row_group_size=1000)


def peak(path: Path) -> int:
    for _ in read_lazily(path, 1):
        pass  # what is imported on first use is no memory of the rows
    tracemalloc.start()
    seen = sum(1 for _ in read_lazily(path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen >= 2_999
    return most


def read_lazily(path: Path, most: int | None = None) -> Iterator[tuple[str, dict]]:
    for count, row in enumerate(FileRows(path=str(path)).rows(), start=1):
        yield row
        if count == most:
            return


def test_a_folder_laid_out_as_a_data_set_is_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", ROWS[:1])
    source = HubRows(dataset=str(folder))
    assert list(source.rows()) == [(f"{folder}/train[{index}]", row) for index, row in enumerate(ROWS)]
    assert [row for _, row in HubRows(dataset=str(folder), split="test").rows()] == ROWS[:1]
    assert source.identify().startswith("sha256:")
    with pytest.raises(UserError, match=r"split trian: cannot be loaded .*train"):
        list(HubRows(dataset=str(folder), split="trian").rows())


def test_what_save_to_disk_wrote_is_read_as_one_and_by_its_split(tmp_path: Path):
    import datasets

    train, test = ([{"prompt": f"{name} {number}"} for number in range(3)] for name in ("train", "test"))
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(train), "test": datasets.Dataset.from_list(test)})
    both.save_to_disk(tmp_path / "both")
    both["test"].with_format("numpy").save_to_disk(tmp_path / "alone")
    datasets.Dataset.from_list(test, split="test").save_to_disk(tmp_path / "named")
    found = list(HubRows(dataset=str(tmp_path / "both")).rows())
    assert found == [(f"{tmp_path}/both/train[{number}]", row) for number, row in enumerate(train)]
    assert [row for _, row in HubRows(dataset=str(tmp_path / "both"), split="test").rows()] == test
    assert [row for _, row in HubRows(dataset=str(tmp_path / "alone")).rows()] == test
    assert [row for _, row in HubRows(dataset=str(tmp_path / "named"), split="test").rows()] == test
    assert HubRows(dataset=str(tmp_path / "both")).identify() != HubRows(dataset=str(tmp_path / "alone")).identify()


def test_a_split_that_save_to_disk_did_not_write_is_refused_with_those_that_there_are(tmp_path: Path):
    import datasets

    datasets.Dataset.from_list([{"prompt": "x"}], split="test").save_to_disk(tmp_path / "set")
    for options, message in (
        ({}, "has no split train; say split: test"),
        ({"split": "test", "name": "en"}, r"save_to_disk, which knows no name; leave it out \(en\)"),
        ({"split": "test", "folder": "data"}, "knows no folder"),
    ):
        with pytest.raises(UserError, match=message):
            list(HubRows(dataset=str(tmp_path / "set"), **options).rows())
    (tmp_path / "set" / "state.json").write_text("[]")
    with pytest.raises(UserError, match="what save_to_disk wrote cannot be read"):
        list(HubRows(dataset=str(tmp_path / "set"), split="test").rows())


def test_a_data_set_that_cannot_be_had_is_the_users_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ask in (lambda source: list(source.rows()), lambda source: source.identify()):
        with pytest.raises(UserError, match=r"dataset owner/none: .*HF_HUB_OFFLINE is set.*fetch it"):
            ask(HubRows(dataset="owner/none"))


@pytest.mark.skipif(not SST2.exists(), reason="the real SST-2 file is not there")
def test_sst2_splits_into_labels_and_sentences():
    rows = [row for _, row in read(SST2, pattern=r"(?P<label>[01]) (?P<text>.*)")]
    lines = SST2.read_bytes().decode().split("\n")
    assert len(rows) == 872 and [f"{row['label']} {row['text']}" for row in rows] == [one for one in lines if one]
