"""A signal ends a command in order, with the status that says which, and is never lost, whatever Python is at."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import worlds

from raft.core import signals
from raft.core.errors import Stopped
from raft.core.progress import Progress
from raft.generators.transformers import Transformers
from raft.launch import openai_client
from raft.launch.openai_client import stoppable
from raft.pipeline import stages
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact

COMMAND = [sys.executable, "-m", "raft", "run", "recipe.yaml"]
TERM, INT, USR1, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP

BEGIN = """
import os, signal, subprocess, sys, threading, time, weakref
from raft.core import signals
from raft.core.errors import Stopped
def tell_self(*_): os.kill(os.getpid(), signal.SIGTERM)
class Thing:
    pass
class Ends:
    def __del__(self): tell_self()
signals.begin("raft run 'a b.yaml'")
signals.read_grace()
"""


def script(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a process does that has taken charge of its signals."""
    return subprocess.run(
        [sys.executable, "-c", BEGIN + text], text=True, capture_output=True, timeout=60, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    "swallows",
    [
        "thing = Thing(); ref = weakref.ref(thing, tell_self); del thing",
        "thing = Thing(); ref = weakref.finalize(thing, tell_self); del thing",
        "ends = Ends(); del ends",
    ],
)
def test_a_signal_where_python_ignores_exceptions_is_not_lost(swallows):
    done = script(f"{swallows}\ntry:\n    signals.check()\nexcept Stopped:\n    print('stopped')")
    assert done.stdout == "stopped\n" and "ignored" not in done.stderr


def test_a_library_that_never_returns_to_python_has_its_grace_and_no_more():
    began = time.monotonic()
    done = script(
        "threading.Timer(0.2, tell_self).start(); os.system('exec sleep 30 > /dev/null 2>&1')", RAFT_GRACE="1"
    )
    assert done.returncode == 75 and time.monotonic() - began < 15
    assert "resume with:\n  raft run 'a b.yaml'" in done.stderr.lower() and "Traceback" not in done.stderr


@pytest.mark.parametrize(("signum", "status"), [(TERM, 143), (INT, 130), (USR1, 138), (HUP, 129)])
def test_a_second_signal_ends_the_process_at_once(signum, status):
    kill = f"os.kill(os.getpid(), {int(signum)}); time.sleep(0.3);"
    assert script(f"{kill} {kill} time.sleep(30)").returncode == status


def test_signals_that_come_together_are_one():
    done = script("tell_self(); os.kill(os.getpid(), signal.SIGUSR1); time.sleep(0.5); print(signals.status())")
    assert done.stdout == "75\n"


def test_a_signal_after_the_work_is_done_changes_no_status():
    """Python gives the signals back before it takes its modules apart."""
    text = """
class Last:
    def __del__(self, write=os.write, kill=os.kill, pid=os.getpid()):
        write(1, b'last')
        kill(pid, 15)
from raft.cli import main as cli
sys.last = Last()
cli.main(['check', 'quickstart'])
"""
    done = script(text)
    assert done.stdout.endswith("last")
    assert done.returncode == 0, done.stderr


def test_waiting_ends_when_a_signal_comes():
    text = "began = time.monotonic(); threading.Timer(0.2, tell_self).start()\n"
    text += "try:\n    signals.sleep(30)\nexcept Stopped:\n    print(time.monotonic() - began < 5)"
    assert script(text).stdout == "True\n"


def test_a_forked_child_leaves_the_terminals_signals_to_its_parent_and_ends_when_asked():
    text = """
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGHUP); time.sleep(30)
time.sleep(0.5)
os.kill(pid, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), signals.asked())
started = subprocess.run([sys.executable, '-c', 'import signal; print(signal.getsignal(signal.SIGINT))'],
                         text=True, capture_output=True)
print('default_int_handler' in started.stdout)
"""
    assert script(text).stdout == "-15 False\nTrue\n"


def test_a_grace_that_is_no_number_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "raft", "status", str(tmp_path)], text=True, capture_output=True, check=False,
        env={**os.environ, "RAFT_GRACE": "soon"},
    )  # fmt: skip
    assert done.returncode == 2 and "RAFT_GRACE" in done.stderr and "Traceback" not in done.stderr


def test_nohup_is_respected():
    signals = "signal.signal(signal.SIGHUP, signal.SIG_IGN); signals.begin('x')"
    done = script(f"{signals}; os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.2); print(signals.asked())")
    assert done.stdout == "False\n"


def test_no_group_begins_after_a_signal_and_those_under_way_are_kept(tmp_path, monkeypatch):
    policy = worlds.make_policy(tmp_path / "policy")
    rows = [{"id": one["id"], "text": one["prompt"]} for one in worlds.prompts(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = ArtifactWriter(tmp_path / "out", tmp_path / "partial", "hash", 1, 1, Progress("out", "prompts"))
    prompts = Artifact(tmp_path / "prompts.jsonl", {"rows": 12})
    note = signals._Note()

    def advance(done: int, total: int) -> None:
        note.signum = TERM  # after the first group of a block of 4

    monkeypatch.setattr(signals, "_note", note)
    monkeypatch.setattr(output, "advance", advance)
    generator = Transformers(k=2, max_tokens=4, batch_size=4)
    with pytest.raises(Stopped):
        stages.generate(generator, output, policy=Artifact(policy, {}), prompts=prompts)
    assert list(output.offsets) == [row["id"] for row in rows[:4]]


def test_cancelling_from_another_thread_stops_what_is_under_way():
    began, cancelled = time.monotonic(), []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    threading.Timer(0.1, openai_client.cancel, (threading.get_ident(),)).start()
    with pytest.raises(Stopped), stoppable() as run:
        run(wait())
    assert cancelled and time.monotonic() - began < 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, float]:
    """A run that nobody stopped, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    worlds.make_recipe(folder, keep_policies="all")
    began = time.monotonic()
    subprocess.run(COMMAND, cwd=folder, check=True, capture_output=True)
    return folder / "outputs" / "tiny", time.monotonic() - began


def stopped(folder: Path, signum: signal.Signals, seconds: float) -> int:
    """The status of the run's command, told to stop after some seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    process = subprocess.Popen(
        COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    time.sleep(seconds)
    process.send_signal(signum)
    _, error = process.communicate(timeout=90)
    assert "Traceback" not in error and "ignored" not in error, error
    if process.returncode not in (0, -signum):
        assert "Resume with:\n  raft run recipe.yaml" in error
    return process.returncode


def ends_as_if_undisturbed(folder: Path, wanted: Path) -> None:
    subprocess.run(COMMAND, cwd=folder, check=True, capture_output=True)
    found, expected = worlds.fingerprint(folder / "outputs" / "tiny"), worlds.fingerprint(wanted)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.nightly
def test_a_run_stopped_twice_says_so_and_ends_as_if_it_had_not_been(undisturbed, tmp_path):
    wanted, took = undisturbed
    worlds.make_recipe(tmp_path, keep_policies="all")
    for part, signum, status in [(0.4, TERM, 75), (0.8, INT, 130)]:
        assert stopped(tmp_path, signum, part * took) in (status, 0)
    ends_as_if_undisturbed(tmp_path, wanted)


@pytest.mark.faults
def test_a_run_stopped_at_forty_moments_has_the_right_status_each_time(undisturbed, tmp_path):
    wanted, took = undisturbed
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        worlds.make_recipe(folder, keep_policies="all")
        early = {-TERM} if number < 2 else set()  # before Python has come to our first line
        assert stopped(folder, TERM, number / 40 * took) in {75, 0} | early
        ends_as_if_undisturbed(folder, wanted)


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (0, False), (2, False)])
def test_the_script_for_slurm_passes_the_warning_on_and_requeues_what_is_not_finished(tmp_path, status, requeued):
    page = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
    (tmp_path / "job").write_text(page.split("```bash\n")[1].split("```")[0])
    waits = f"trap 'sleep 0.5; exit {status}' USR1\ntouch ready\nwhile :; do sleep 0.1; done"
    for name, text in (("raft", waits), ("scontrol", 'echo "$@" > requeued')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", "job"], cwd=tmp_path, env=environment)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    job.send_signal(USR1)
    assert job.wait(timeout=30) == status
    assert (tmp_path / "requeued").exists() == requeued
