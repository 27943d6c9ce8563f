"""A model is done only when all its files are on the disk."""

import os
import sys
from pathlib import Path

import pytest

from raft.core import atomic
from raft.store.artifact_writer import ArtifactWriter
from raft.store.runs import Run, stamp_path

FAULT: BaseException | None = None  # what ends the stage before it writes anything


def trains(section: None, output: ArtifactWriter) -> None:
    if FAULT:
        raise FAULT
    output.path.mkdir()
    (output.path / "weights").write_text("1 2 3")


def test_every_file_of_a_model_is_on_the_disk_before_its_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", watched)
    Run(tmp_path, 0).once("policy", trains)
    stamp = f".{stamp_path(tmp_path / 'policy').name}.tmp"
    assert synced.index("weights") < synced.index(tmp_path.name) < synced.index(stamp), synced


def test_a_model_that_the_disk_refuses_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    run = Run(tmp_path, 0)
    monkeypatch.setattr(atomic.os, "fsync", full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            run.once("policy", trains)
    assert not run.is_done("policy") and not (tmp_path / "policy").exists()


def test_a_model_that_is_made_again_is_not_done_by_its_old_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(tmp_path, 0)
    path = run.once("policy", trains).path
    (path / "weights").unlink()
    path.rmdir()

    monkeypatch.setattr(sys.modules[__name__], "FAULT", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run.once("policy", trains)
    assert not stamp_path(path).exists()


def test_a_torn_model_is_gone_before_it_is_made_again(tmp_path: Path):
    def stage(section: None, output: ArtifactWriter) -> None:
        assert not (tmp_path / "policy").exists(), "it may be read, and takes the room of the new one"
        trains(section, output)

    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "weights").write_text("1 2")
    policy = Run(tmp_path, 0).once("policy", stage)
    assert (policy.path / "weights").read_text() == "1 2 3"
