"""A judge of our own on vLLM's real server: what it answers, refuses, and how it ends.

A run in a process of its own holds the judge; this one asks it, and asks its server directly.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import judges
import pytest
from judges import FAIR, WORDS, brute, counts, group
from processes import family, gone, session

from raft.core.errors import UserError
from raft.rewards.judge.judge import Judge

pytestmark = pytest.mark.engine

RUN = """
import json, sys
from judges import group
from raft.core.errors import UserError
from raft.rewards.judge.judge import Judge

judge = Judge(**json.loads(sys.argv[1]))
for line in sys.stdin:
    try:
        found = list(judge.score([group(*texts, name=name) for name, texts in json.loads(line).items()]))
        said = {"parts": [one.parts for one in found[0]], "ranks": [one.rank for one in found[0]]}
        said |= {"key": judge.own.key, "url": judge.own.url, "guard": judge.own.process.pid}
    except UserError as fault:
        judge.close()
        judge.close()
        said = {"error": str(fault), "open": "own" in vars(judge)}
    print(json.dumps(said), flush=True)
"""


class Run:
    """The run with its judge."""

    def __init__(self, folder: Path):
        table = {question: answer for question, answer in judges.says().items() if " or " in question}
        model, self.template = judges.make(folder, table), folder / "fair.jinja"
        self.template.write_text(FAIR)
        options = {"model": str(model), "engine_args": {"max_model_len": 64}, "template": str(self.template)}
        options |= {"max_tokens": 16, "max_retries": 3}
        support = os.pathsep.join([str(Path(judges.__file__).parent), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(options)], text=True, env={**os.environ, "PYTHONPATH": support},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.first = self.ask({"p": WORDS})

    def ask(self, groups: dict[str, list[str]]) -> dict:
        print(json.dumps(groups), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def judge(self, **changes) -> Judge:
        """A judge in this process that asks the server of the run."""
        where = {"url": self.first["url"], "model": "served", "api_key_env": "JUDGE_KEY"}
        return Judge(**{**where, "template": str(self.template), "max_tokens": 20, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_thread):
    run = Run(tmp_path_factory.mktemp("judge"))
    yield run
    run.process.kill()
    run.process.wait()


@pytest.fixture(autouse=True)
def key(run, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", run.first["key"])


def test_wins_and_losses_are_those_of_every_pair_in_both_orders(run):
    assert [[row["wins"], row["losses"]] for row in run.first["parts"]] == brute(FAIR, WORDS)
    (found,) = run.judge().score([group(*WORDS)])
    assert counts(found, "wins", "losses") == brute(FAIR, WORDS)


def test_what_is_too_long_for_the_judge_is_not_scored_and_says_why(run):
    long = "ant " * 30
    (found,) = run.judge().score([group("bee", long, "ape")])
    assert [score.rank for score in found] == [1, None, 0]
    assert found[1].reward is None and "status 400" in found[1].error and "maximum context length" in found[1].error


def test_a_wrong_key_a_wrong_name_and_a_server_that_is_not_there_stop_the_run(run, monkeypatch):
    pair = [group("ape", "bee")]
    with pytest.raises(UserError, match=r"reward\.model: .* has no model 'serve'; did you mean served"):
        list(run.judge(model="serve").score(pair))
    monkeypatch.setenv("JUDGE_KEY", "wrong-key-7")
    with pytest.raises(UserError, match="status 401") as caught:
        list(run.judge().score(pair))
    assert "wrong-key-7" not in str(caught.value)
    with pytest.raises(UserError, match=r"no answer.*reward\.max_concurrency"):
        list(run.judge(url="http://127.0.0.1:1/v1", max_retries=0).score(pair))


@pytest.mark.nightly
def test_a_server_that_ends_by_itself_is_an_error_with_its_last_words_and_starts_again(run):
    threading.Timer(0.5, os.killpg, (session(run.first["guard"]), signal.SIGKILL)).start()
    ended = run.ask({str(n): WORDS for n in range(400)})
    assert "ended by itself with status 137" in ended["error"] and "Its last lines:" in ended["error"]
    assert not ended["open"]
    again = run.ask({"p": WORDS})
    assert (again["parts"], again["ranks"]) == (run.first["parts"], run.first["ranks"])
    assert again["guard"] != run.first["guard"] and again["key"] != run.first["key"]
    run.first = again


def test_no_process_of_the_server_outlives_a_run_that_is_killed_and_none_shows_the_key(run):
    """The last test: it ends the run that the others share."""
    below = family(run.process.pid)
    assert len(below) >= 4  # the guard, the server, its engine, the engine's worker
    words = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below]
    assert any(b"vllm" in line for line in words) and not any(run.first["key"].encode() in line for line in words)
    run.process.kill()
    run.process.wait()
    assert gone(below)
