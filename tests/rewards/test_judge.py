"""The laws of the judge: a server with a tiny judge that knows its answers by heart, and brute force.

Between the two stands a real proxy that spoils, delays or refuses what it is told to. vLLM's own server is asked in
test_judge_server.py.
"""

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import judges
import pytest
from judges import BIASED, FAIR, GRADE, GRADES, MIXED, MUTE, SCORES, TEXT, WORDS, brute, counts, group, shown
from tiny_server import TinyServer

from raft.core.errors import UserError
from raft.core.records import Group, Policy, Prompt
from raft.core.seeds import derive
from raft.rewards import doctor
from raft.rewards.judge.judge import Judge


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server. `spoil(asked, answer)` may answer otherwise, with (status, body), or raise."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.there, self.spoil = httpx.Client(base_url=url, timeout=60), None
        self.requests: list[dict] = []
        self.busy, self.most_busy, self.counting = 0, 0, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is part of these tests."""


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *words) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, asked: dict | None) -> None:
        server, headers = self.server, {"Authorization": self.headers.get("Authorization", "")}
        path = self.path.removeprefix("/v1/")
        with server.counting:
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
            server.requests += [asked] if asked is not None else []
        try:
            there = server.there.request(self.command, path, json=asked, headers=headers)
            status, content = there.status_code, there.content
            if asked is not None and server.spoil is not None:
                status, content = server.spoil(asked, content) or (status, content)
        finally:
            with server.counting:
                server.busy -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def served(tmp_path_factory, one_thread):
    """A server of the judge that the tests share."""
    server = TinyServer(Policy(judges.make(tmp_path_factory.mktemp("tiny-judge"), judges.says()), None))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(served):
    proxy = Proxy(served.url)
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    proxy.there.close()


@pytest.fixture
def ask(proxy, tmp_path):
    """A judge behind the proxy, with a template of these words."""

    def made(template: str = FAIR, **options) -> Judge:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.jinja"
        file.write_text(template)
        where = {"url": proxy.url, "model": "tiny", "template": str(file)}
        return Judge(**{"max_tokens": 20, "timeout": 20.0, **where, **options})

    return made


def scores(judge: Judge, *groups: Group):
    return list(judge.score(groups))


def spoiled(words: str | None):
    """The server's answer with other words in it."""

    def replaced(content: bytes) -> tuple[int, bytes]:
        answer = json.loads(content)
        answer["choices"][0]["message"]["content"] = words
        return 200, json.dumps(answer).encode()

    return replaced


@pytest.mark.parametrize("template", [FAIR, BIASED, MIXED])
def test_wins_and_losses_are_those_of_every_pair_in_both_orders(ask, proxy, template):
    blocks = [group(*WORDS, name="1"), group("elk", "ape", name="2"), group("dog", "cat", "fox", name="3")]
    found = scores(ask(template), *blocks)
    for one, made in zip(blocks, found, strict=True):
        texts = [response.text for response in one.responses]
        assert counts(made, "wins", "losses") == brute(template, texts)
        assert all(sum(score.parts.values()) == len(texts) - 1 for score in made)
    assert len(proxy.requests) == sum(len(one.responses) * (len(one.responses) - 1) for one in blocks)


def test_two_servers_judge_as_one_and_each_question_is_asked_once(ask, proxy, served):
    before = len(served.requests)
    (found,) = ask(url=[proxy.url, served.url], max_concurrency=2).score([group(*WORDS)])
    assert counts(found, "wins", "losses") == brute(FAIR, WORDS)
    questions = [asked["messages"][-1]["content"] for asked in served.requests[before:]]
    assert len(questions) == len(set(questions)) == len(WORDS) * (len(WORDS) - 1)


def test_a_fair_judge_ranks_and_a_biased_one_has_no_preference(ask):
    (fair,), (biased,) = scores(ask(FAIR), group(*WORDS)), scores(ask(BIASED), group(*WORDS))
    assert [WORDS[i] for i in sorted(range(6), key=lambda i: fair[i].rank)] == sorted(WORDS)
    assert sorted(range(6), key=lambda i: -fair[i].reward) == sorted(range(6), key=lambda i: fair[i].rank)
    assert [score.rank for score in biased] == list(range(6)) and {round(s.reward, 9) for s in biased} == {0.0}
    assert counts(biased, "biased") == [[5.0]] * 6


def test_without_any_verdict_there_is_no_reward_but_an_error(ask):
    (found,) = scores(ask(MUTE), group("ape", "bee", "cat"))
    assert all(score.reward is None and score.rank is None for score in found)
    assert found[0].error == "no verdict in any of its 2 comparisons; the first: no verdict in: hm"


def test_the_champion_meets_each_challenger_in_both_orders(ask, proxy):
    (found,) = scores(ask(ranking="challenger"), group(*WORDS))
    champions, asked = ["fox"], []
    for word in WORDS[1:]:
        asked += [shown(FAIR, word, champions[-1]), shown(FAIR, champions[-1], word)]
        champions += [word] if word < champions[-1] else []
    assert Counter(one["messages"][0]["content"] for one in proxy.requests) == Counter(asked)
    assert len(asked) == 2 * (len(WORDS) - 1)
    assert [score.rank for score in found].index(0) == WORDS.index(champions[-1]) == WORDS.index("ape")


def test_grades_are_the_numbers_that_the_judge_gives(ask, proxy):
    (found,) = scores(ask(GRADE, mode="grade"), group(*GRADES))
    assert [score.reward for score in found] == [7.0, 2.5, None, 10.0, None, None]
    assert [score.error for score in found][2::2] == ["no verdict in: [[99]]", "no verdict in: hm"]
    assert all(score.rank is None for score in found) and len(proxy.requests) == len(GRADES)


def test_a_critic_continues_a_text_as_it_stands(ask, proxy):
    judge = ask(TEXT + "\n", mode="grade", format="text", verdict=r"^\s*(\d+(?:\.\d+)?)", stop=["or", " of"])
    (found,) = scores(judge, group(*SCORES))
    assert [score.reward for score in found] == [8.0, 2.5, None, 1.0, 9.0, 6.0]
    assert {one["prompt"] for one in proxy.requests} == {f"Q: {word}\nScore: " for word in SCORES}
    assert not any("messages" in one for one in proxy.requests)


def test_equal_responses_are_asked_about_once_and_have_no_preference(ask, proxy):
    (found,) = scores(ask(), group("bee", "ape", "bee", "bee"))
    assert len(proxy.requests) == 2
    assert counts(found, "wins", "losses", "no_preference") == [[0, 1, 2], [3, 0, 0], [0, 1, 2], [0, 1, 2]]
    assert [score.rank for score in found] == [1, 0, 2, 3]
    assert len({round(score.reward, 9) for score in found}) == 2
    (same,) = scores(ask(), group("bee", "bee"))
    assert len(proxy.requests) == 2 and [score.reward for score in same] == [0.0, 0.0]
    scores(ask(GRADE, mode="grade"), group("fox", "fox", "fox"))
    assert len(proxy.requests) == 3


def test_each_request_says_all_that_decides_its_answer(ask, proxy):
    scores(ask(seed=5, system="Judge.", stop=["!"]), group("ape", "bee", name="q"))
    by_seed = {one["seed"]: one for one in proxy.requests}
    assert by_seed.keys() == {derive(5, "q", 0, 1), derive(5, "q", 1, 0)}
    assert by_seed[derive(5, "q", 1, 0)] == {
        "model": "tiny", "n": 1, "seed": derive(5, "q", 1, 0), "max_tokens": 20, "temperature": 0.0, "stop": ["!"],
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "messages": [{"role": "system", "content": "Judge."}, {"role": "user", "content": "bee or ape"}],
    }  # fmt: skip


@pytest.mark.nightly
def test_faults_that_pass_change_nothing(ask, proxy):
    whole = scores(ask(), group(*WORDS[:3]))
    turns = iter(range(10**6))

    def spoil(asked: dict, content: bytes):
        kind = next(turns) % 5
        return [(500, b"{}"), (200, content[:40]), (429, b"slow down"), None, None][kind]

    proxy.spoil = spoil
    assert scores(ask(max_retries=50), group(*WORDS[:3])) == whole and len(proxy.requests) > 2 * 6


def test_an_answer_that_comes_too_late_is_asked_for_again(ask, proxy):
    late = [shown(FAIR, "ape", "bee")]

    def spoil(asked: dict, content: bytes) -> None:
        if asked["messages"][0]["content"] in late:
            late.clear()
            time.sleep(1.5)

    proxy.spoil = spoil
    (found,) = scores(ask(timeout=1.0), group("ape", "bee"))
    assert [score.rank for score in found] == [0, 1] and len(proxy.requests) == 3


@pytest.mark.nightly
def test_order_and_results_do_not_depend_on_how_fast_answers_come(ask, proxy):
    blocks = [group(*WORDS[n % 3 : 3 + n % 4], name=str(n)) for n in range(5)]
    whole = scores(ask(MIXED), *blocks)
    proxy.spoil = lambda asked, content: time.sleep(asked["seed"] % 5 * 0.02)
    proxy.most_busy = 0
    assert scores(ask(MIXED, max_concurrency=3), *blocks) == whole
    assert 2 <= proxy.most_busy <= 3


def test_what_one_judge_mumbles_takes_no_reward_from_the_others(ask, proxy):
    hostile = "\x1b[2J<b>" + "blah " * 10000

    def spoil(asked: dict, content: bytes):
        return spoiled(hostile)(content) if "cat" in asked["messages"][0]["content"] else None

    proxy.spoil = spoil
    (found,) = scores(ask(), group("dog", "cat", "ape", "bee"))
    assert [score.rank for score in found] == [2, None, 0, 1]
    assert found[1].reward is None and len(found[1].error) < 300 and "\x1b" not in found[1].error
    assert counts(found, "no_verdict") == [[1.0], [3.0], [1.0], [1.0]]
    assert sum(score.reward for score in found if score.reward is not None) == pytest.approx(0, abs=1e-9)


def test_what_was_judged_before_a_failure_is_kept(ask, proxy):
    """A group goes out as soon as it is judged: a run that is stopped by a later one has not asked in vain."""

    def spoil(asked: dict, content: bytes):
        return (500, b"{}") if "fox" in asked["messages"][0]["content"] else None

    proxy.spoil = spoil
    found = ask(max_retries=0).score(
        [group("ape", "bee", name="1"), group("cat", "dog", name="2"), group("fox", "ape")]
    )
    assert [score.rank for score in next(found)] == [0, 1] and [score.rank for score in next(found)] == [0, 1]
    with pytest.raises(UserError, match="no answer from"):
        next(found)


def test_a_withheld_answer_is_no_verdict(ask, proxy):
    def spoil(asked: dict, content: bytes) -> tuple[int, bytes]:
        return 200, content.replace(b'"finish_reason": "stop"', b'"finish_reason": "content_filter"')

    proxy.spoil = spoil
    (found,) = scores(ask(), group("ape", "bee"))
    assert (
        found[0].reward is None
        and "withholds the text or a part of it (finish_reason content_filter)" in found[0].error
    )


def test_an_answer_that_was_cut_is_no_verdict_whatever_it_has_said_so_far(ask, proxy):
    """Of "[[3]] no [[2.5]]" eight tokens leave the grade that the judge was about to take back."""
    (found,) = scores(ask(GRADE, mode="grade", max_tokens=8), group("bee", "ape"))
    assert [score.reward for score in found] == [None, 10.0]
    told = "the judge's answer was cut at max_tokens: 8; raise reward.max_tokens"
    assert found[0].error == told

    def spoil(asked: dict, content: bytes) -> tuple[int, bytes]:
        """As servers answer whose judge is cut while it still thinks."""
        return 200, spoiled(None)(content)[1].replace(b'"finish_reason": "stop"', b'"finish_reason": "length"')

    proxy.spoil = spoil
    (found,) = scores(ask(max_tokens=8), group("ape", "bee"))
    assert [score.error for score in found] == [f"no verdict in any of its 1 comparisons; the first: {told}"] * 2


def test_a_server_that_fails_for_good_stops_the_run(ask, proxy):
    proxy.spoil = lambda asked, content: (503, b"down")
    with pytest.raises(UserError, match=r"prompt p: no answer .* after 2 attempts, at last status 503: down"):
        scores(ask(max_retries=1), group(*WORDS))
    proxy.spoil = lambda asked, content: (200, b'{"reply": "[[A]]"}')
    with pytest.raises(UserError, match="not OpenAI's protocol"):
        scores(ask(), group("ape", "bee"))


def test_the_judge_reads_raft_s_own_words(ask, proxy):
    def spoil(asked: dict, content: bytes) -> tuple[int, bytes]:
        said = asked["messages"][0]["content"]
        answer = {"message": {"content": "[[A]]" if said.index("zz1") < said.index("zz2") else "[[B]]"}}
        return 200, json.dumps({"choices": [{**answer, "finish_reason": "stop"}]}).encode()

    proxy.spoil = spoil
    (found,) = scores(replace(ask(), template=None), group("zz2", "zz1"))
    assert [score.rank for score in found] == [1, 0]


def test_a_judge_that_refuses_every_request_is_a_fault_before_anything_is_generated(ask, proxy):
    prompt = Prompt("p", text="which is it?")
    proxy.spoil = lambda asked, content: (400, b'{"error": {"message": "unknown parameter"}}')
    (refused,) = doctor.examine(ask(), [prompt])
    assert (refused.check, refused.level) == ("server", "fault") and "unknown parameter" in refused.message
    assert len(proxy.requests) == 2  # one pair, in both orders
    proxy.spoil = None
    (mumbled,) = doctor.examine(ask(), [prompt])
    assert mumbled.level != "fault"


def test_the_stub_of_the_page_is_a_judge_that_prefers_what_is_shorter_and_grades_it_higher(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "judge-server.md").read_text()
    (tmp_path / "stub_judge.py").write_text(page.split("```python\n")[1].split("```")[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "stub_judge.py", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as stub:
        try:
            judge = Judge(model="judge", url=f"http://127.0.0.1:{port}/v1")
            texts = ["a long answer", "short", "a longer answer", "brief"]
            (scores,) = judge.score([group(*texts)])
            rewards = [score.reward for score in scores]
            grader = Judge(model="judge", url=f"http://127.0.0.1:{port}/v1", mode="grade")
            (graded,) = grader.score([group("short", "x" * 98, "x" * 998)])
        finally:
            stub.kill()
    assert rewards[1] == rewards[3] > rewards[0] > rewards[2]
    assert [score.reward for score in graded] == [
        pytest.approx(one, abs=0.005) for one in (1 + 9 / (1 + 7 / 200), 7.0, 2.5)
    ]
