"""The laws of a server of our own: nothing of it outlives this process, and its key is on no command line."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import family, gone, processes
from tiny_models import tiny_policy
from waiting import until

from raft.core.errors import UserError
from raft.launch import supervise, vllm_options, vllm_server

FOREVER = "import time; time.sleep(1000)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {FOREVER}"


def guarded(tmp_path: Path, child: str, grandchild: str) -> tuple[subprocess.Popen, set[int]]:
    """A parent, whose guard runs a child, which has started a grandchild; and all below the parent."""
    ready = tmp_path / "ready"
    grandchild = f"{grandchild.replace('import time;', f'import time; open({str(ready)!r}, chr(119)).close();')}"
    started = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); {child}"
    words = ["-I", supervise.__file__]
    parent = (
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, *{words!r}, str(os.getpid()), sys.executable, '-c', {started!r}],"
        " start_new_session=True).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    until(ready.exists)
    below = family(process.pid)
    assert len(below) == 3
    return process, below


@pytest.mark.parametrize("grandchild", [FOREVER, STUBBORN])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_and_what_it_started_end_with_the_parent(tmp_path, end, grandchild):
    process, below = guarded(tmp_path, FOREVER, grandchild)
    process.send_signal(end)
    process.wait()
    assert gone(below)


def test_ctrl_c_in_the_terminal_is_for_the_parent_alone(tmp_path):
    process, below = guarded(tmp_path, FOREVER, FOREVER)
    sessions = {processes()[pid][2] for pid in below}
    assert os.getsid(process.pid) not in sessions and len(sessions) == 2  # the guard's, and the command's
    process.kill()
    process.wait()
    assert gone(below)


def test_the_guard_ends_what_it_guards_when_it_is_asked_to(tmp_path):
    process, below = guarded(tmp_path, FOREVER, STUBBORN)
    table = processes()
    os.kill(next(pid for pid in below if table[pid][1] == process.pid), signal.SIGTERM)
    process.wait(30)
    assert gone(below)


def test_even_without_its_guard_the_command_is_asked_to_end(tmp_path):
    process, below = guarded(tmp_path, FOREVER, FOREVER)
    table = processes()
    first = next(pid for pid in below if table[pid][1] == process.pid)
    command = next(pid for pid in below if table[pid][1] == first)
    os.kill(first, signal.SIGKILL)
    process.kill()
    process.wait()
    assert gone({command})
    for pid in below - {first, command}:  # what a command has started is its own affair then; vLLM sees to it
        os.kill(pid, signal.SIGKILL)


def test_the_guard_tells_the_status_of_the_command():
    for code, status in (("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("pass", 0)):
        command = [sys.executable, "-I", supervise.__file__, str(os.getpid()), sys.executable, "-c", code]
        assert subprocess.run(command).returncode == status


def test_a_guard_without_its_parent_ends_at_once():
    command = [sys.executable, "-I", supervise.__file__, "1", sys.executable, "-c", FOREVER]
    assert subprocess.run(command, timeout=20).returncode == 128 + signal.SIGTERM


def test_options_become_arguments(tmp_path):
    tiny_policy(tmp_path)
    engine = {"enforce_eager": False, "hf_overrides": {"a": 1}, "enable_prefix_caching": True, "max_model_len": 48}
    found = vllm_server._arguments(tmp_path, 8123, {**engine, "load_format": None, "middleware": ["x", "y"]})
    assert {"--no-enforce-eager", '--hf-overrides={"a": 1}', "--enable-prefix-caching"} <= set(found)
    assert {"--host=127.0.0.1", "--port=8123", "--max-model-len=48", f"--model={tmp_path}"} <= set(found)
    assert found[found.index("--middleware") :][:3] == ["--middleware", "x", "y"]
    assert not [one for one in found if "load-format" in one or "trust" in one]
    assert "--max-model-len=64" in vllm_server._arguments(tmp_path, 1, {})  # what the model reads, up to a bound


def test_engine_options_are_checked_by_name():
    pytest.importorskip("vllm")
    faults = dict(
        vllm_server.faults({"trust_remote_code": True, "hf_token": "x", "max_model_length": 1, "dtype": "auto"})
    )
    assert set(faults) == {"engine_args.trust_remote_code", "engine_args.hf_token", "engine_args.max_model_length"}
    assert "did you mean max_model_len" in faults["engine_args.max_model_length"]
    assert dict(vllm_server.faults({"max_model_len": "8k"})) == {
        "engine_args.max_model_len": "expected a whole number, found '8k'"
    }


def test_the_server_has_the_settings_of_every_engine_and_none_that_is_for_one_in_this_process(monkeypatch):
    for name in (*vllm_options.IN_PROCESS, "VLLM_BATCH_INVARIANT", "VLLM_CPU_KVCACHE_SPACE", "KEPT"):
        monkeypatch.setenv(name, "7")
    found = vllm_server._environment("the key")
    assert found.items() >= {"VLLM_CPU_ATTN_SPLIT_KV": "0", "VLLM_API_KEY": "the key", "HF_HUB_OFFLINE": "1"}.items()
    assert found["KEPT"] == found["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert not {*vllm_options.IN_PROCESS, "VLLM_BATCH_INVARIANT"} & set(found)
    assert "VLLM_API_KEY" not in os.environ


def test_the_output_goes_beside_the_log_of_the_launch(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.FileHandler(tmp_path / "now.log", delay=True)])
    with vllm_server._sink() as output:
        output.write(b"hello")
    assert (tmp_path / "now.server.log").read_bytes() == b"hello"
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with vllm_server._sink() as output:
        assert not isinstance(output.name, str)  # a file without a name


@pytest.mark.engine
def test_a_server_that_cannot_start_is_an_error_with_its_last_words(tmp_path):
    tiny_policy(tmp_path)
    before = family(os.getpid())
    with pytest.raises(UserError, match=r"(?s)ended by itself with status.*Its last lines:.*float8") as caught:
        vllm_server.Served(tmp_path, {"dtype": "float8"})
    assert len(str(caught.value)) < 5000
    assert gone(family(os.getpid()) - before)


@pytest.mark.engine
@pytest.mark.nightly
def test_a_living_server_ends_when_it_is_stopped(tmp_path):
    tiny_policy(tmp_path)
    before = family(os.getpid())
    server = vllm_server.Served(tmp_path, {})
    started = family(os.getpid()) - before
    assert server.running and len(started) >= 4
    server.stop()
    assert not server.running and gone(started)
