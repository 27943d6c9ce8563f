"""A model comes to the disk while the process goes on; nothing that was made from it is kept before."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raft.core.atomic import Disk, fsync_tree
from raft.store import runs
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact
from raft.store.runs import Run, partial_path, stamp_path


class SlowDisk:
    """A disk that takes folders only when it is told to, or never."""

    def __init__(self) -> None:
        self.open, self.asked = threading.Event(), threading.Event()
        self.fault: OSError | None = None

    def fsync_tree(self, path: Path) -> None:
        if path.is_dir() and path.name == "policy":
            self.asked.set()
            assert self.open.wait(30)
            if self.fault:
                raise self.fault
        fsync_tree(path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    slow = SlowDisk()
    monkeypatch.setattr(runs, "fsync_tree", slow.sync)
    yield slow
    slow.open.set()


def trains(section: None, output: ArtifactWriter) -> None:
    output.path.mkdir()
    (output.path / "weights").write_text("1 2 3")


def answers(section: None, output: ArtifactWriter, policy: Artifact) -> None:
    """As the generating stage does: weights are read at once, rows come one by one."""
    assert (policy.path / "weights").read_text() == "1 2 3"
    output.resume()
    output.append({"prompt_id": "a"})
    output.gather("a")


def measures(section: None, output: ArtifactWriter, policy: Artifact) -> None:
    """As stages do that write their artifact whole."""
    output.write([{"weights": (policy.path / "weights").read_text()}])


def partly(path: Path) -> int:
    return len(partial_path(path).read_bytes().splitlines()) if partial_path(path).exists() else 0


@pytest.mark.parametrize("stage", [answers, measures])
def test_a_model_is_used_before_it_is_on_the_disk_and_nothing_made_of_it_is_kept_before(tmp_path, disk, stage):
    run = Run(tmp_path, 0)
    policy = run.once("policy", trains)
    assert disk.asked.wait(30) and not run.is_done("policy")
    follows = threading.Thread(target=lambda: run.once("next.jsonl", stage, policy=policy))
    follows.start()
    follows.join(0.3)
    assert follows.is_alive() and not run.is_done("next.jsonl")
    assert partly(tmp_path / "next.jsonl") <= 1, "a row was kept, though its policy may be made anew after a kill"
    disk.open.set()
    follows.join(30)
    assert run.is_done("policy") and run.is_done("next.jsonl")
    assert stamp_path(tmp_path / "policy").stat().st_mtime_ns < stamp_path(tmp_path / "next.jsonl").stat().st_mtime_ns


@pytest.mark.parametrize("stage", [answers, measures])
def test_a_model_that_the_disk_refuses_is_not_done_nor_what_was_made_of_it(tmp_path, disk, stage):
    run = Run(tmp_path, 0)
    disk.fault = OSError(28, "No space left on device")
    disk.open.set()
    policy = run.once("policy", trains)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            run.once("next.jsonl", stage, policy=policy)
    with pytest.raises(OSError, match="No space left"):
        run.disk.settle()
    assert not run.is_done("policy") and not run.is_done("next.jsonl") and partly(tmp_path / "next.jsonl") <= 1


def test_what_is_deleted_is_known_only_when_the_last_model_is_on_the_disk(tmp_path, disk):
    run = Run(tmp_path, 0)
    disk.open.set()
    for number in range(2):
        run.iteration(number).once("policy", trains)
    run.disk.settle()
    disk.open.clear()
    run.iteration(2).once("policy", trains)
    threading.Timer(0.2, disk.open.set).start()
    run.prune("last", best=0)
    assert [(tmp_path / f"iterations/{number:03d}/policy").exists() for number in range(3)] == [True, False, True]


def test_a_model_that_is_made_anew_is_not_done_by_its_old_stamp(tmp_path, disk):
    disk.open.set()
    run = Run(tmp_path, 0)
    path = run.once("policy", trains).path
    run.disk.settle()
    assert run.is_done("policy")
    (path / "weights").unlink()
    path.rmdir()
    disk.open.clear()
    Run(tmp_path, 0).once("policy", trains)
    assert not run.is_done("policy")


def test_a_torn_model_is_gone_before_it_is_made_anew(tmp_path):
    def stage(section: None, output: ArtifactWriter) -> None:
        assert not (tmp_path / "policy").exists(), "it may be read, and takes the room of the new one"
        trains(section, output)

    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "weights").write_text("1 2")
    policy = Run(tmp_path, 0).once("policy", stage)
    assert (policy.path / "weights").read_text() == "1 2 3"


def test_a_write_runs_beside_the_process_and_settles_once_it_is_there(tmp_path):
    disk, began = Disk(), time.perf_counter()
    disk.settle()
    for name in "ab":
        disk.meanwhile(lambda name=name: (time.sleep(0.2), (tmp_path / name).mkdir()))
    assert not (tmp_path / "b").exists()
    disk.settle()
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists() and time.perf_counter() - began >= 0.4
