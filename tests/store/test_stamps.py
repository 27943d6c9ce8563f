"""A stamp knows what it stands for: whatever was done to an artifact since, it is said and not used."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from raft.core import atomic
from raft.core.errors import UserError
from raft.store import stamps
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact
from raft.store.runs import Run
from raft.store.stamps import damage, read_stamp, require_all, stamp_path

ROWS = [{"prompt_id": str(number), "scores": [{"reward": number / 7}]} for number in range(9)]


def rows(section: None, output: ArtifactWriter) -> None:
    output.write(ROWS)


def model(section: None, output: ArtifactWriter) -> None:
    output.path.mkdir()
    (output.path / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (output.path / "config.json").write_text("{}")


def copied(section: None, output: ArtifactWriter, source: Artifact) -> None:
    output.write(source.read())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path, 0)
    made.once("a.jsonl", rows)
    made.once("policy", model)
    return made


def flip(file: Path) -> None:
    """Turns one bit, and leaves size and time as they were."""
    content, time = bytearray(file.read_bytes()), file.stat().st_mtime_ns
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(time, time))


def swap(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: os.truncate(file, file.stat().st_size - 5),
    "emptied": lambda file: os.truncate(file, 0),
    "one bit": flip,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "swapped rows": swap,
    "last row gone": lambda file: file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1])),
    "a row more": lambda file: file.write_bytes(file.read_bytes() + b"{}\n"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_no_damaged_rows_are_read_nor_found_finished(run, tmp_path, how):
    source, stamp = tmp_path / "a.jsonl", stamp_path(tmp_path / "a.jsonl").read_bytes()
    DAMAGES[how](source)
    atomic._digests.clear()  # as in the next process
    for read in (
        lambda: Run(tmp_path, 0).once("a.jsonl", rows),
        lambda: list(Artifact(source, json.loads(stamp)).read()),
        lambda: require_all(tmp_path),
    ):
        with pytest.raises(UserError, match=r"a\.jsonl is damaged: .*Delete it; then give the same command again"):
            read()
    assert stamp_path(source).read_bytes() == stamp
    shutil.rmtree(source) if source.is_dir() else source.unlink()
    assert list(Run(tmp_path, 0).once("a.jsonl", rows).read()) == ROWS


@pytest.mark.parametrize("how", ["cut", "emptied", "one bit", "zeros"])
def test_no_damaged_weights_are_read(run, tmp_path, how):
    policy = Artifact(tmp_path / "policy", read_stamp(tmp_path / "policy"))
    assert policy.path == tmp_path / "policy"
    DAMAGES[how](tmp_path / "policy" / "model.safetensors")
    atomic._digests.clear()
    with pytest.raises(UserError, match=r"policy is damaged: model\.safetensors has"):
        _ = policy.path


def test_the_weights_of_another_policy_are_not_those_of_this_one(run, tmp_path):
    def other(section: None, output: ArtifactWriter) -> None:
        model(section, output)
        (output.path / "model.safetensors").write_bytes(bytes(range(255, -1, -1)) * 40)

    run.once("other", other)
    run.disk.settle()
    shutil.copyfile(tmp_path / "other" / "model.safetensors", tmp_path / "policy" / "model.safetensors")
    with pytest.raises(UserError, match=r"policy is damaged: model\.safetensors has as many bytes"):
        run.once("policy", model)


def test_a_file_that_changes_what_a_model_is_cannot_be_added_and_its_card_can_be_edited(run, tmp_path):
    (tmp_path / "policy" / "README.md").write_text("mine")
    (tmp_path / "policy" / ".DS_Store").touch()
    run.once("policy", model)
    (tmp_path / "policy" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"policy is damaged: adapter_config\.json was added"):
        run.once("policy", model)


def test_what_changes_between_two_stages_of_one_process_is_seen(run, tmp_path):
    source = run.once("a.jsonl", rows)
    assert list(source.read()) == ROWS
    swap(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"a\.jsonl is damaged"):
        run.once("b.jsonl", copied, source=source)
    assert not run.is_done("b.jsonl")


def test_a_stamp_has_size_and_sha_256_of_every_file(run, tmp_path):
    weights = bytes(range(256)) * 40
    content = json.loads(stamp_path(tmp_path / "policy").read_text())["content"]
    assert content == {
        "config.json": [2, sha256(b"{}").hexdigest()],
        "model.safetensors": [len(weights), sha256(weights).hexdigest()],
    }
    whole = (tmp_path / "a.jsonl").read_bytes()
    content = json.loads(stamp_path(tmp_path / "a.jsonl").read_text())["content"]
    assert content == {"": [len(whole), sha256(whole).hexdigest()]}


def test_large_files_are_read_when_they_are_used_and_not_when_a_run_is_opened(run, tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "SMALL", 1000)
    flip(tmp_path / "policy" / "model.safetensors")
    atomic._digests.clear()
    policy = Run(tmp_path, 0).once("policy", model)
    require_all(tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        _ = policy.path
    os.truncate(policy.place / "model.safetensors", 7)
    with pytest.raises(UserError, match=r"model\.safetensors has 7 bytes"):
        require_all(tmp_path)


def test_a_file_is_read_once_in_a_process(run, tmp_path, monkeypatch):
    stamp = read_stamp(tmp_path / "policy")
    assert damage(tmp_path / "policy", stamp) is None
    monkeypatch.setattr(stamps.hashlib, "file_digest", None)
    assert damage(tmp_path / "policy", stamp) is None


BROKEN = {
    "empty": b"", "cut": b'{"hash": "', "zeros": bytes(90), "a list": b"[1]", "not UTF-8": b'{"hash": "\xff"}',
    "deep": b"[" * 100_000, "no stamp": b"{}",
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_stamp_is_named(run, tmp_path, how):
    stamp_path(tmp_path / "a.jsonl").write_bytes(BROKEN[how])
    for read in (lambda: run.once("a.jsonl", rows), lambda: require_all(tmp_path)):
        with pytest.raises(UserError, match=r"a\.jsonl\.stamp\.json is damaged: .*delete"):
            read()
    stamp_path(tmp_path / "a.jsonl").unlink()
    assert list(run.once("a.jsonl", rows).read()) == ROWS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("began", "yesterday"), ("began", float("nan")), ("seconds", None), ("rows", True), ("parts", {"load": "1"}),
        ("key", {}), ("key", []), ("content", None), ("content", {"": "abc"}), ("measured", 5), ("hash", 1),
    ],
)  # fmt: skip
def test_a_stamp_with_a_field_of_another_type_is_named(run, tmp_path, field, value):
    file = stamp_path(tmp_path / "a.jsonl")
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(UserError, match=rf"a\.jsonl\.stamp\.json is damaged: .*{field}"):
        run.once("a.jsonl", rows)


def test_what_was_read_is_known_until_the_file_or_its_stamp_changes(tmp_path):
    file = tmp_path / "scores.jsonl"
    assert stamps.state(file) is None
    file.write_text("1\n")
    assert stamps.state(file) is None
    stamps.stamp_path(file).write_text("{}")
    states = [stamps.state(file), stamps.state(file)]
    file.write_text("22\n")
    states.append(stamps.state(file))
    stamps.stamp_path(file).write_text('{"a": 1}')
    states.append(stamps.state(file))
    file.unlink()
    states.append(stamps.state(file))
    assert states[0] == states[1] and len(set(states)) == 4
