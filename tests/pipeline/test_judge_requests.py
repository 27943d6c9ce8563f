"""How many requests a judge was sent: what raft says, against what a server counts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import worlds

from raft.cli import status
from raft.config import preflight, recipe
from raft.core.records import Group, Prompt
from raft.pipeline import loop
from raft.pipeline.observer import Observer
from raft.rewards.judge.judge import Judge
from raft.store import branch


class Counter(ThreadingHTTPServer):
    """A judge that says 7, or [[A]], to everything, and counts."""

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.counting = 0, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Counter

    def log_message(self, *words) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.counting:
            self.server.asked += 1
        message = {"role": "assistant", "content": "[[7]] [[A]]"}
        self._answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def _answer(self, content) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    with Counter() as counter:
        thread = threading.Thread(target=counter.serve_forever)
        thread.start()
        yield counter
        counter.shutdown()
        thread.join()


WORLDS = {
    "graded": {"reward": {"mode": "grade"}},
    "compared": {"reward": {"mode": "pairwise", "ranking": "challenger"}},
    "gold": {"evaluation": {"gold": {"mode": "grade"}}},
    "in an ensemble": {"reward": {"members": {"one": {"mode": "grade"}, "other": {"mode": "grade", "seed": 1}}}},
    "in rounds": {
        "reward": {"mode": "grade"},
        "sampling": {"kind": "until-success", "rounds": [1, 3], "success": 8.0},
    },
    "with candidates": {
        "reward": {"mode": "grade"},
        "candidates": {"fox": {"kind": "file", "path": "candidates.jsonl"}},
    },
}


def made(folder, url: str, changes: dict) -> recipe.Loaded:
    judge = {"kind": "judge", "url": url, "model": "m", "max_requests": 10**6}

    def filled(section):
        if "members" in section:
            members = {name: {**judge, **one} for name, one in section["members"].items()}
            return {"kind": "ensemble", "members": members}
        return {**judge, **section}

    changes = json.loads(json.dumps(changes))
    if "reward" in changes:
        changes["reward"] = filled(changes["reward"])
    if changes.get("evaluation", {}).get("gold"):
        changes["evaluation"]["gold"] = filled(changes["evaluation"]["gold"])
    if "candidates" in changes:  # two to every prompt, one of them like no response
        rows = [
            {"prompt": row["prompt"], "response": text} for row in worlds.prompts(60) for text in ("a fox", "a hen")
        ]
        (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe.load(worlds.make_recipe(folder, iterations=1, **changes))


@pytest.mark.parametrize("changes", WORLDS.values(), ids=WORLDS)
def test_the_requests_that_a_run_says_it_sent_are_those_that_the_server_counts(tmp_path, monkeypatch, server, changes):
    monkeypatch.chdir(tmp_path)
    loaded = made(tmp_path, server.url, changes)
    before = list(preflight.requests(loaded.recipe, loaded.folder))
    loop.run(loaded, Observer())
    after = list(preflight.requests(loaded.recipe, loaded.folder))
    assert sum(one.sent for one in after) == server.asked
    assert all(not sum(one.left.values()) and one.excess == "" for one in after)
    assert server.asked <= sum(one.total for one in before)
    assert status.summary(loaded.folder)["requests"] == server.asked > 0


def test_a_branch_that_takes_over_scores_has_sent_nothing_for_them(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    loaded = made(tmp_path, server.url, WORLDS["graded"])
    loop.run(loaded, Observer())
    asked = server.asked
    off = branch.off(loaded.folder, 1, ["selection.kind=top-fraction", "selection.fraction=0.5"])
    loop.run(off, Observer())
    of_new = status.summary(off.folder)["requests"]
    assert of_new == server.asked - asked
    (counted,) = preflight.requests(off.recipe, off.folder)
    assert counted.sent == of_new and counted.certain


def test_a_group_of_which_nothing_is_asked_takes_no_requests():
    nothing = Group(Prompt("p", text="?"), [])
    for options in ({"mode": "grade"}, {"ranking": "challenger"}, {"ranking": "all-pairs"}):
        assert Judge(model="m", url="http://127.0.0.1:1/v1", **options).needed(nothing) == 0
