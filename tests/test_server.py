"""The laws of asking a server; a small real one on this machine says what it is told to."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raft.errors import UserError
from raft.server import Connection, Refused, chosen, connected, excerpt

OPTIONS = Connection(api_key_env="TINY_KEY", retries=0, timeout=5)


class Saying(ThreadingHTTPServer):
    """Answers every request with `status` and `content`; `seen` holds their headers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.content, self.seen = 200, b"{}", []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Saying

    def log_message(self, *words) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        self.send_response(self.server.status)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(self.server.content)


@pytest.fixture
def server():
    saying = Saying()
    threading.Thread(target=saying.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield saying
    saying.shutdown()
    saying.server_close()


def ask(server: Saying, options: Connection = OPTIONS, section: str = "reward", card: str | None = None, **more):
    async def asked():
        async with connected(options, section, server.url, options.key, **more) as connection:
            return await (connection.ask("prompt 7", "models") if card is None else connection.card(card))

    return asyncio.run(asked())


@pytest.mark.parametrize("section", ["generator", "reward"])
def test_an_error_names_the_section_that_the_options_are_in(server, section):
    server.status = 503
    with pytest.raises(UserError, match=rf"prompt 7: no answer .*after 1 attempts.*\({section}\.concurrency, timeout"):
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


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": "x"},
        {"choices": [{"text": "x"}]},
        {"choices": [{"message": {"content": ["x"]}, "text": 7, "finish_reason": "stop"}]},
        {"choices": [None]},
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_an_answer_in_another_protocol_is_an_error(answer, chat):
    with pytest.raises(UserError, match="prompt 7: an answer that is not OpenAI's protocol"):
        chosen("prompt 7", answer, chat)


def test_an_excerpt_is_short_harmless_and_on_one_line():
    assert excerpt("a\nb\t\x1b[2J \ud800") == "a b \\x1b[2J \\ud800"
    long = excerpt("word " * 10**6)
    assert len(long) == 200 and long.endswith("...")
    assert excerpt("\u202e" * 500).isascii()


def test_options_out_of_range_are_told():
    options = Connection(concurrency=0, retries=-1, timeout=float("nan"))
    assert [name for name, _ in options.faults()] == ["concurrency", "retries", "timeout"]
