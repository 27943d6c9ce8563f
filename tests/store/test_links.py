"""A run folder that somebody else packed is read as data: nothing is written through its links, none of it is run."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
from folders import stamp, write_run

from raft.cli import main as cli
from raft.cli import show, status
from raft.cli.console import draw
from raft.core import logs, progress
from raft.core.atomic import create, disk_faults, write_text
from raft.core.errors import UserError
from raft.core.progress import Progress
from raft.report.page import write as report
from raft.store import branch, runs
from raft.store.artifact_writer import ArtifactWriter
from raft.store.runs import Run, is_running, locked


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside the run, which is to stay as it is."""
    file = tmp_path / "victim"
    file.write_text("precious")
    return file


@pytest.fixture
def run(tmp_path: Path, victim: Path) -> Path:
    folder = write_run(tmp_path / "outputs" / "x", 3, 2, 2, text=lambda *place: "words", reward=lambda p, n, i: p + i)
    yield folder
    assert victim.read_text() == "precious"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["outputs", "victim"]


TEMPORARIES = (".metrics.jsonl.tmp", ".resolved.yaml.tmp", ".report.html.tmp", ".reward_curve.png.tmp", "metrics.jsonl")
TEMPORARIES += ("reward_curve.png", ".reward_curve.csv.tmp", ".run.json.tmp", "progress.json")


def test_what_raft_writes_by_itself_goes_through_no_link(run, victim):
    for name in TEMPORARIES:
        (run / name).symlink_to(victim)
    Run(run, 0).rebuild_metrics()
    report.write(run)
    draw(run)
    write_text(run / "resolved.yaml", (run / "resolved.yaml").read_text())
    Progress("a", "prompts", run / "progress.json").advance(1, 2)
    assert not any((run / name).is_symlink() for name in ("metrics.jsonl", "reward_curve.png"))
    assert progress.read(run / "progress.json") is not None


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(run, victim):
    (run / ".lock").symlink_to(victim)
    with pytest.raises(UserError, match=r"\.lock is a link"), locked(run / ".lock", "x", "y"):
        pass
    assert not is_running(run)


def test_logs_do_not_go_behind_a_link(run, victim):
    (run / "logs").symlink_to(victim.parent)
    with pytest.raises(UserError, match="logs is a link"):
        logs.begin(run)


def test_no_artifact_is_made_nor_deleted_behind_a_link(run, victim, tmp_path):
    def stage(section: None, output: ArtifactWriter) -> None:
        output.write([{"a": 1}])

    elsewhere = tmp_path / "outputs" / "elsewhere"
    (elsewhere / "policy").mkdir(parents=True)
    (elsewhere / "policy" / "mine").touch()
    stamp(elsewhere / "policy")
    (run / "iterations" / "003").symlink_to(elsewhere)
    (run / "iterations" / "004" / "policy").mkdir(parents=True)
    stamp(run / "iterations" / "004" / "policy")
    with pytest.raises(UserError, match=r"003 is a link to .*, and raft writes through no link"):
        Run(run, 0).iteration(3).once("prompts.jsonl", stage)
    Run(run, 0).prune("last", best=0)
    assert (elsewhere / "policy" / "mine").exists() and [one.name for one in elsewhere.iterdir()] != []


def test_an_iteration_on_a_larger_disk_behind_a_link_is_read_as_that_of_the_run(run, tmp_path):
    def stage(section: None, output: ArtifactWriter) -> None:
        output.write([{"a": 1}])

    made = Run(run, 0).iteration(3).once("a.jsonl", stage)
    disk = tmp_path / "outputs" / "disk"
    shutil.move(run / "iterations" / "003", disk)
    (run / "iterations" / "003").symlink_to(disk)
    place = Run(run, 0).iteration(3)
    assert not place.shared and place.once("a.jsonl", stage).key == made.key


def test_a_partial_file_that_is_a_link_is_refused(tmp_path, victim):
    (tmp_path / "a.jsonl.partial").symlink_to(victim)
    output = ArtifactWriter(tmp_path / "a.jsonl", tmp_path / "a.jsonl.partial", "hash", 0, 0, Progress("a", "prompts"))
    with pytest.raises(UserError, match="is a link"):
        output.resume()
    assert victim.read_text() == "precious"


def test_a_new_file_takes_the_place_of_a_link(tmp_path, victim):
    (tmp_path / "new").symlink_to(victim)
    with create(tmp_path / "new") as file:
        file.write(b"x")
    assert victim.read_text() == "precious" and not (tmp_path / "new").is_symlink()


def test_looking_at_a_run_runs_none_of_its_python(run, victim, monkeypatch):
    with open(run / "resolved.yaml", "a") as recipe:
        recipe.write("reward: {kind: rule, function: 'evil:f'}\n")
    (run.parent / "evil.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(run.parent)
    for command in (["status", "x"], ["report", "x"], ["plot", "x"], ["show", "x"]):
        assert cli.execute(cli.parse(command)) == 0


PIPES = ("resolved.yaml", "accuracy.md", "iterations/001/selected.jsonl.partial", "iterations/001/x.jsonl.partial")


@pytest.mark.parametrize("name", [*PIPES, "run.json", "progress.json", "iterations/001/policy.stamp.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run, name, monkeypatch, capsys):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    monkeypatch.chdir(run.parent)

    def slow(*_: object) -> None:
        raise TimeoutError(name)

    before = signal.signal(signal.SIGALRM, slow)
    signal.alarm(100)
    try:
        statuses = [cli.execute(cli.parse([command, "x"])) for command in ("status", "report", "plot", "show")]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert all(status in (0, 2) for status in statuses)
    told = capsys.readouterr().err
    assert ("x/resolved.yaml is not a regular file" in told) == (name == "resolved.yaml")
    assert ("is not a file" in told) == (name in ("run.json", "iterations/001/policy.stamp.json"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "your quota"), (errno.EROFS, "can only be read"),
        (errno.EACCES, "no permission"), (errno.EPERM, "no permission"), (errno.EFBIG, "ulimit -f"),
        (errno.ENAMETOOLONG, "a name is too long"), (errno.ENOENT, "was the run moved"), (errno.EIO, "the disk failed"),
        (errno.EISDIR, "a folder is in the place of a file"),
        (errno.ELOOP, "the operating system refused"),
    ],
)  # fmt: skip
def test_what_the_operating_system_refuses_is_one_sentence(monkeypatch, capsys, code, said):
    def refused(options: object) -> None:
        raise OSError(code, os.strerror(code), "outputs/x/weights")

    options = cli.parse(["status", "x"])
    options.command = refused
    assert cli.execute(options) == 2
    told = capsys.readouterr().err
    assert said in told and "outputs/x/weights" in told and "all finished work is saved" in told and "Trace" not in told


def test_what_the_disk_says_to_a_library_in_rust_is_an_error_of_the_disk(tmp_path):
    """As safetensors says it where there is no room: a directory in the place of the file stands for the full disk."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    (tmp_path / "weights").mkdir()
    with pytest.raises(OSError, match="Is a directory") as refused, disk_faults():
        save_file({"a": torch.zeros(3)}, tmp_path / "weights")
    assert refused.value.errno == errno.EISDIR and isinstance(refused.value.__cause__, SafetensorError | None)
    with pytest.raises(ValueError, match="no disk"), disk_faults():
        raise ValueError("no disk")


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch):
    def flock(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\)"), locked(tmp_path / "l", "x", "y"):
        pass
    assert not is_running(tmp_path)


def test_a_lock_file_that_was_deleted_by_the_one_before_is_no_lock(tmp_path, monkeypatch):
    """The file is opened, its holder deletes it, and a third makes it anew: the opened one locks nothing any more."""
    file, opened = tmp_path / "lock", []
    true_flock = runs.fcntl.flock

    def flock(lock: int, how: int) -> None:
        true_flock(lock, how)
        if not opened:
            file.unlink()
        opened.append(lock)

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    with locked(file, "x", "y"):
        assert len(opened) == 2 and file.exists()


def test_the_status_of_a_branch_whose_parent_is_gone_says_so(run, tmp_path):
    made = tmp_path / "outputs" / "branch"
    shutil.copytree(run, made)
    shutil.rmtree(made / "iterations" / "001")
    (made / "iterations" / "001").symlink_to(tmp_path / "outputs" / "gone" / "iterations" / "001")
    (made / "run.json").write_text('{"job": "align", "shared": ["iterations/001"]}')
    assert "gone: iterations/001" in "\n".join(status.lines(status.summary(made)))
    listed = show.files(made)
    assert "iterations/001" in listed and "gone with the run that this one branched off" in listed
    with pytest.raises(UserError, match=f"is gone: its links lead to {tmp_path / 'outputs' / 'gone'}"):
        branch.whole(made)
