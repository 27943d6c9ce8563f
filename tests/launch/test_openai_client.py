"""The laws of asking a server; a small real one on this machine says what it is told to."""

import asyncio
import contextlib
import gzip
import json
import logging
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raft.core.errors import UserError
from raft.launch import openai_client
from raft.launch.openai_client import Connection, Refused, connected, url_faults
from raft.store.keys import describe

OPTIONS = Connection(api_key_env="TINY_KEY", max_retries=0, timeout=5)


class Saying(ThreadingHTTPServer):
    """Answers every request with `status` and `content`; `seen` holds their headers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.content, self.seen = 200, b"{}", []
        self.writes = None  # what writes the whole answer instead
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Saying

    def log_message(self, *words) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        if self.server.writes is not None:
            self.server.writes(self)
            return
        self.send_response(self.server.status)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(self.server.content)


@pytest.fixture
def start():
    """Starts servers, and stops them after the test."""
    running = []

    def begin() -> Saying:
        running.append(Saying())
        threading.Thread(target=running[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return running[-1]

    yield begin
    for saying in running:
        saying.shutdown()
        saying.server_close()


@pytest.fixture
def server(start):
    return start()


def ask(server: Saying, options: Connection = OPTIONS, section: str = "reward", card: str | None = None, **more):
    async def meet(one):
        return {} if card is None else await one.card(card)

    async def asked():
        async with connected(options, section, server.url, options.key, meet, **more) as servers:
            return servers.facts if card is not None else await servers.ask("prompt 7", "models")

    return asyncio.run(asked())


@pytest.mark.parametrize("section", ["generator", "reward"])
def test_an_error_names_the_section_that_the_options_are_in(server, section):
    server.status = 503
    with pytest.raises(
        UserError, match=rf"prompt 7: no answer .*after 1 attempts.*\({section}\.max_concurrency, timeout"
    ):
        ask(server, section=section)
    server.status, server.content = 200, json.dumps({"data": [{"id": "large"}]}).encode()
    with pytest.raises(UserError, match=rf"{section}\.model: .* has no model 'big'; allowed: large"):
        ask(server, section=section, card="big")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_a_refusal_is_told_by_its_status_and_hides_the_key(server, status, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "secret-7")
    server.status, server.content = status, b'{"error": {"message": "secret-7 is \x1b[31mno key"}}'
    server.content = server.content.replace(b"\x1b", b"\\u001b")
    with pytest.raises(Refused, match=r"prompt 7: .*refuses") as caught:
        ask(server)
    assert caught.value.status == status and "(the key) is \\x1b[31mno key" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_redirection_is_not_followed(server, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "secret-7")
    server.status = 302
    with pytest.raises(Refused, match="status 302"):
        ask(server)
    assert len(server.seen) == 1


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "a\x00b"])
def test_what_cannot_be_a_key_is_refused_before_it_is_sent_and_not_repeated(server, key, monkeypatch):
    monkeypatch.setattr("os.environ", {"TINY_KEY": key})
    with pytest.raises(UserError, match="the key in TINY_KEY holds characters") as caught:
        ask(server)
    assert key not in str(caught.value) and not server.seen


def test_a_proxy_of_the_environment_is_left_out_where_it_is_told(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    assert ask(server, proxies=False) == {}
    with pytest.raises(UserError, match="ConnectError"):
        ask(server)


@pytest.mark.parametrize("listed", [{"data": None}, {"data": ["x", {}, {"id": 3}]}, {}])
def test_a_strange_list_of_models_is_no_crash(server, listed):
    server.content = json.dumps(listed).encode()
    with pytest.raises(UserError, match="has no model 'm'"):
        ask(server, card="m")


@pytest.mark.parametrize("listed", [{"data": 5}, [], [{"id": "n"}], "x", None, {"data": {"id": "m"}}])
def test_a_list_of_models_of_another_shape_is_told(server, listed):
    server.content = json.dumps(listed).encode()
    with pytest.raises(UserError, match=r"has no model 'm'|no answer from .* not JSON") as told:
        ask(server, card="m")
    assert "allowed: n" in str(told.value) or "OpenAI's protocol" in str(told.value)


def test_a_bare_list_of_models_is_read(server):
    server.content = b'[{"id": "m", "max_model_len": 7}]'
    assert ask(server, card="m")["max_model_len"] == 7


DEEP = 100_000
STRANGE = {
    "deep list": b"[" * DEEP + b"]" * DEEP,
    "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "huge integer": b'{"n": ' + b"9" * 10_000 + b"}",
    "page": b"<html>Sign in</html>",
    "latin": b'{"a": "\xe9"}',
    "number": b"5",
    "nothing": b"",
}


@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize("name", STRANGE)
def test_an_answer_that_is_no_json_object_is_one_sentence(server, name, status):
    server.status, server.content = status, STRANGE[name]
    with pytest.raises(UserError, match=r"^prompt 7: .{10,500}$"):
        ask(server)


@pytest.mark.parametrize("where", ["headers", "body"])
def test_the_timeout_is_that_of_the_whole_answer(server, where):
    """One byte every tenth of a second, for ever: each read alone is in time."""

    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: " if where == "headers" else b"HTTP/1.0 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"x")
                time.sleep(0.1)

    server.writes = drip
    began = time.monotonic()
    with pytest.raises(UserError, match=r"at last no complete answer within 0\.6 s"):
        ask(server, Connection(max_retries=0, timeout=0.6))
    assert time.monotonic() - began < 2


def endless(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"x" * 65536)


def packed(handler: Handler) -> None:
    """A gzip of 256 KB that unpacks to 256 MB."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
    with contextlib.suppress(OSError):
        handler.wfile.write(gzip.compress(bytes(1 << 28), 1))


@pytest.mark.parametrize("writes", [endless, packed])
def test_an_answer_has_a_largest_size_that_counts_what_is_unpacked(server, writes):
    server.writes = writes
    with pytest.raises(UserError, match="sends an answer of more than 32 MB"):
        ask(server, Connection(max_retries=3, timeout=60))


def test_a_packing_that_was_not_asked_for_is_refused(server):
    server.writes = lambda handler: handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Encoding: br\r\n\r\nx")
    with pytest.raises(UserError, match="packs its answer by br"):
        ask(server)


def test_a_packed_answer_is_read(server):
    body = gzip.compress(b'{"a": 1}')
    server.writes = lambda handler: handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + body)
    assert ask(server) == {"a": 1}


@pytest.mark.parametrize(
    "error, words, refused",
    [
        ({"error": {"message": "upstream", "code": 502}}, "status 502: upstream", False),
        ({"error": {"message": "slow down", "code": "429"}}, "status 429: slow down", False),
        ({"error": "model is loading"}, "status 500: model is loading", False),
        ({"object": "error", "message": "worker is gone", "code": 50001}, "status 500: worker is gone", False),
        ({"choices": [{"error": {"message": "cut", "code": 504}, "finish_reason": "error"}]}, "status 504: cut", False),
        ({"choices": [{"text": "", "finish_reason": "abort"}]}, "status 500: finish_reason abort", False),
        ({"error": {"message": "no such model", "code": 404}}, "status 404: no such model", True),
        ({"error": {"message": "no", "code": True}}, "status 500: no", False),
        ({"error": {"message": {"detail": ["x"]}, "code": -1}}, r"status 500: \['x'\]", False),
    ],
)
def test_an_error_in_an_answer_of_status_200_has_the_status_that_it_says(server, error, words, refused):
    server.content = json.dumps(error).encode()
    with pytest.raises(UserError, match=words) as caught:
        ask(server, Connection(max_retries=0))
    assert isinstance(caught.value, Refused) is refused


def test_an_error_that_passes_inside_an_answer_is_asked_again(server):
    answers = iter([b'{"error": {"message": "upstream", "code": 502}}', b'{"a": 1}'])
    server.writes = lambda handler: handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + next(answers))
    assert ask(server, Connection(max_retries=1)) == {"a": 1}


def test_a_refusal_without_a_key_says_that_none_was_sent(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-7")
    server.status = 401
    with pytest.raises(Refused, match=r"no key was sent \(reward\.api_key_env names the variable"):
        ask(server, Connection(max_retries=0))
    with pytest.raises(Refused, match=r"no key was sent \(the environment has no TINY_KEY\)"):
        ask(server)
    assert "secret" not in json.dumps([headers for _, headers in server.seen])


@pytest.mark.parametrize(
    "url",
    ["http://a b/v1", "http://h\n/v1", "http://h/v1\t", " http://h", "http://h/\x00", "http://[::1", "http://h/#x"],
)
def test_an_address_with_blanks_or_breaks_is_none(url):
    assert [name for name, _ in url_faults(url)] == ["url"]


def test_an_address_is_one():
    for url in (
        "http://127.0.0.1:8000/v1",
        "https://api.example.com/v1/",
        "http://[::1]:80/v1",
        "http://bücher.example/v1",
    ):
        assert not list(url_faults(url))


def test_the_name_of_the_variable_with_the_key_is_in_no_key_of_a_run():
    assert (
        describe(Connection(api_key_env="ONE")) == describe(Connection(api_key_env="OTHER")) == describe(Connection())
    )


def test_options_out_of_range_are_told():
    options = Connection(max_concurrency=0, max_retries=-1, timeout=float("nan"))
    assert [name for name, _ in options.faults()] == ["max_concurrency", "max_retries", "timeout"]


def busy(server: Saying, seconds: float) -> None:
    """Has a server take this long for an answer, and count how many it works on at once."""
    server.now, server.most, lock = 0, 0, threading.Lock()

    def writes(handler: Handler) -> None:
        with lock:
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(seconds)
        with lock:
            server.now -= 1
        handler.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n{"by": "%d"}' % server.server_port)

    server.writes = writes


def closed_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


async def anything(server) -> dict:
    return {}


def ask_all(urls: list[str], count: int, options: Connection, meet=anything) -> list[dict]:
    async def asked():
        async with connected(options, "reward", urls, "", meet) as servers:
            return await asyncio.gather(*(servers.ask(f"prompt {n}", f"p{n}") for n in range(count)))

    return asyncio.run(asked())


def paths(*servers: Saying) -> Counter:
    return Counter(path for one in servers for path, _ in one.seen)


def test_each_request_goes_to_the_server_with_the_fewest_under_way(start):
    quick, slow = start(), start()
    busy(quick, 0.02)
    busy(slow, 0.2)
    answers = ask_all([slow.url, quick.url], 60, Connection(max_concurrency=3))
    assert (quick.most, slow.most) == (3, 3)
    by = Counter(answer["by"] for answer in answers)
    assert by.total() == 60 and by[str(quick.server_port)] >= 3 * by[str(slow.server_port)] > 0
    assert paths(quick, slow) == {f"/v1/p{n}": 1 for n in range(60)}


def test_a_server_that_is_not_there_is_left_out_at_once_with_one_warning(server, caplog):
    busy(server, 0.0)
    options, gone = Connection(max_concurrency=2, max_retries=5), closed_url()
    began = time.monotonic()
    for _ in range(3):  # each connects anew
        assert len(ask_all([gone, server.url], 10, options)) == 10
    assert time.monotonic() - began < 2
    warned = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warned) == 1 and warned[0].startswith(f"reward.url: {gone} is left out for 60 s at a time: ConnectError")


def test_what_a_server_with_errors_was_asked_is_answered_by_the_others(start, monkeypatch, caplog):
    monkeypatch.setattr(openai_client, "pause", lambda attempt: 0.01)
    good, bad = start(), start()
    busy(good, 0.01)
    bad.status = 503
    answers = ask_all([bad.url, good.url], 30, Connection(max_concurrency=2, max_retries=2))
    assert [answer["by"] for answer in answers] == [str(good.server_port)] * 30
    assert paths(good) == {f"/v1/p{n}": 1 for n in range(30)}
    assert max(paths(bad).values()) == 3 and len(paths(bad)) <= 2
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 1


def test_a_server_that_ends_in_the_middle_loses_no_request(start, monkeypatch):
    monkeypatch.setattr(openai_client, "pause", lambda attempt: 0.01)
    good, dying = start(), start()
    busy(good, 0.01)
    busy(dying, 0.01)
    whole = dying.writes

    def dies(handler: Handler) -> None:
        if len(dying.seen) > 5:
            dying.socket.close()
            handler.connection.close()
        else:
            whole(handler)

    dying.writes = dies
    answers = ask_all([dying.url, good.url], 40, Connection(max_concurrency=3, max_retries=2))
    by = Counter(answer["by"] for answer in answers)
    assert by.total() == 40 and by[str(dying.server_port)] == 5


def test_the_run_stops_when_no_server_answers_and_each_is_named_with_its_error(start, monkeypatch):
    monkeypatch.setattr(openai_client, "pause", lambda attempt: 0.01)
    bad, gone = start(), closed_url()
    bad.status, bad.content = 500, b"no room"
    with pytest.raises(UserError) as told:
        ask_all([gone, bad.url], 3, Connection(max_retries=1))
    first, *each = str(told.value).splitlines()
    assert "no answer from any of 2 servers after 2 attempts each" in first and "reward.max_concurrency" in first
    assert sorted(each) == sorted(
        [f"  {gone}: ConnectError All connection attempts failed", f"  {bad.url}: status 500: no room"]
    )
    asked = max(paths(bad).values())
    assert asked == 2


def test_servers_that_are_all_gone_for_a_moment_are_waited_for_as_one_is(monkeypatch):
    monkeypatch.setattr(openai_client, "pause", lambda attempt: 0.2)
    urls = [closed_url(), closed_url()]
    back = {}

    def come_back() -> None:
        back["server"] = ThreadingHTTPServer(("127.0.0.1", int(urls[0].split(":")[2][:-3])), Handler)
        back["server"].seen, back["server"].status, back["server"].content = [], 200, b"{}"
        back["server"].writes = None
        back["server"].serve_forever(poll_interval=0.01)

    timer = threading.Timer(0.5, come_back)
    timer.start()
    assert ask_all(urls, 4, Connection(max_retries=6)) == [{}] * 4
    back["server"].shutdown()
    back["server"].server_close()


def test_a_server_that_comes_back_is_met_before_it_is_asked(start, monkeypatch):
    """Left out for no time at all, it is tried again and again; when it answers, it has another model by then."""
    monkeypatch.setattr(openai_client, "AWAY", 0.0)
    good, other = start(), start()
    busy(good, 0.01)
    other.status = 503
    met = Counter()

    async def meet(server) -> dict:
        await server.ask("its model", "models")
        met[server.url] += 1
        return {"model": "large" if server.url == other.url else "small"}

    options = Connection(max_concurrency=2, max_retries=0)
    assert len(ask_all([good.url, other.url], 6, options, meet)) == 6
    assert met == {good.url: 1}
    assert set(paths(other)) == {"/v1/models"}  # nothing else is asked of a server that was not met
    other.status = 200
    with pytest.raises(UserError, match=r"reward\.url: the servers differ: .* model .*start all of them with the same"):
        ask_all([good.url, other.url], 6, options, meet)


def test_a_server_that_was_left_out_meanwhile_is_met_again(start, monkeypatch):
    monkeypatch.setattr(openai_client, "AWAY", 0.0)
    good, restarted, model = start(), start(), {}
    busy(good, 0.01)

    def restarts(handler: Handler) -> None:
        if handler.path == "/v1/p0":
            model[restarted.url] = "large"
            handler.wfile.write(b"HTTP/1.0 503 Busy\r\n\r\n")
        else:
            handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n{}")

    restarted.writes = restarts

    async def meet(server) -> dict:
        return {"model": model.get(server.url, "small")}

    with pytest.raises(UserError, match="the servers differ"):
        ask_all([restarted.url, good.url], 20, Connection(max_concurrency=1, max_retries=0), meet)


def test_a_refusal_is_no_reason_to_ask_another_server(start):
    one, other = start(), start()
    one.status = other.status = 400
    with pytest.raises(Refused):
        ask_all([one.url, other.url], 1, Connection())
    assert len(one.seen) + len(other.seen) == 1


def test_a_list_of_addresses_is_checked_one_by_one_and_names_each_once():
    assert not list(url_faults(["http://a/v1", "http://b/v1"]))
    wrong = {"x": "'x' is not an address", "http://u:w@a/v1": "holds a name"}
    for url, words in wrong.items():
        ((name, message),) = url_faults(["http://a/v1", url])
        assert name == "url" and words in message and "w@" not in message
    assert "names no server" in dict(url_faults([]))["url"]
    assert "twice" in dict(url_faults(["http://a/v1", "http://a/v1/"]))["url"]
