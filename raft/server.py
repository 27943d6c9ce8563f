"""The client's side of a server that speaks OpenAI's protocol: bounded, patient, and silent about the key.

Whatever a server or the model behind it says is hostile text: of it no more than an excerpt reaches a message.
"""

import asyncio
import json
import os
import random
import re
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from raft.errors import Stopped, UserError
from raft.plugins import faults_of_range, speed, suggest
from raft.terminal import safe

LONGEST_PAUSE = 30.0  # seconds between two attempts, unless the server asks for more
TRANSIENT = {408, 409, 425, 429}  # statuses that another attempt may change, beside all from 500 on
EXCERPT = 200  # characters of what a server says that are kept


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How a server is asked: `concurrency` requests at a time, a failed one repeated `retries` times.

    `api_key_env` is the name of the environment variable that holds the key; where there is none, no key is sent.
    `timeout` is in seconds.
    """

    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = speed(32)
    retries: int = speed(5)
    timeout: float = speed(300.0)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, concurrency=(1, 4096), retries=(0, 1000))
        if not 0 < self.timeout < float("inf"):
            yield "timeout", f"{self.timeout!r} is out of range; it must be above 0 seconds"
        if not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env, re.ASCII):
            yield "api_key_env", "is no name of an environment variable; the key itself belongs in none of these files"

    @property
    def key(self) -> str:
        """The key, "" where there is none. UserError where no header can carry what the variable holds."""
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the key in {self.api_key_env} holds characters that no key has; set it anew")
        return key


def url_faults(url: str) -> Iterator[tuple[str, str]]:
    """Why an option `url` is no address up to a server's version, or holds a secret."""
    if not _is_address(url):
        yield "url", f"{url!r} is no address; it must be like http://127.0.0.1:8000/v1"
    elif urlsplit(url).username is not None or urlsplit(url).query:
        yield "url", "holds a name, a password or a query; a key belongs into an environment variable (api_key_env)"


class Refused(UserError):
    """The server will not answer this request, however often it is asked; `status` is that of HTTP."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


_under_way: dict[int, Callable[[], Any]] = {}  # by thread: what cancels its requests


def cancel(thread: int) -> None:
    """Cancels what `stoppable` runs in another thread, if there is something: Stopped is raised there."""
    with suppress(KeyError, RuntimeError):  # RuntimeError: its loop has just been closed
        _under_way[thread]()


@contextmanager
def stoppable() -> "Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]":
    """A function that runs coroutines. A signal that stops the run cancels what is under way, and raises Stopped.

    Raised by Python in the middle of a callback of asyncio, Stopped would be logged there and lost.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        state: dict[str, Any] = {"stopped": False, "task": None}

        async def guarded(coroutine: Coroutine[Any, Any, Any]) -> Any:
            state["task"] = asyncio.current_task()
            if state["stopped"]:
                coroutine.close()
                raise Stopped
            return await coroutine

        def stop() -> None:
            state["stopped"] = True
            if state["task"] is not None:
                state["task"].cancel()

        def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
            try:
                return runner.run(guarded(coroutine))
            except asyncio.CancelledError:
                if state["stopped"]:
                    raise Stopped from None
                raise

        before = _handled_signals()
        for one in before:
            loop.add_signal_handler(one, stop)
        _under_way[threading.get_ident()] = lambda: loop.call_soon_threadsafe(stop)
        try:
            yield run
        finally:
            del _under_way[threading.get_ident()]
            for one, handler in before.items():
                loop.remove_signal_handler(one)
                signal.signal(one, handler)


def _handled_signals() -> dict[int, Any]:
    """The signals that stop the run, where somebody in this thread has said how."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    return {one: how for one, how in found.items() if callable(how) and how is not signal.default_int_handler}


@asynccontextmanager
async def connected(
    options: Connection, section: str, url: str, key: str, proxies: bool = True
) -> "AsyncIterator[Server]":
    """The server at `url`, for the options of a section of the recipe; without `proxies` it is reached directly."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None)  # Server.slots is the bound: to wait there is no timeout
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=options.timeout, limits=limits, trust_env=proxies
    ) as client:
        yield Server(options, section, url, key, client)


class Server:
    """The other end of the wire: `ask` it, as often as there is hope."""

    def __init__(self, options: Connection, section: str, url: str, key: str, client: Any):
        self.options, self.section, self.url, self.key, self.client = options, section, url, key, client
        self.slots = asyncio.Semaphore(options.concurrency)

    async def ask(self, what: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The server's answer, a JSON object. Refused: it said no; UserError: no answer after all attempts."""
        import httpx

        async with self.slots:
            for attempt in range(self.options.retries + 1):
                asked_for = 0.0
                try:
                    answer = await self.client.request("GET" if body is None else "POST", path, json=body)
                    if answer.is_success:
                        return _object(answer.content)
                    fault, asked_for = f"status {answer.status_code}: {self._said(answer)}", retry_after(answer.headers)
                    if answer.status_code < 500 and answer.status_code not in TRANSIENT:
                        raise Refused(f"{what}: {self.url} refuses the request with {fault}", answer.status_code)
                except (httpx.RequestError, json.JSONDecodeError, UnicodeDecodeError) as error:
                    fault = f"{type(error).__name__} {self._excerpt(str(error))}".strip()
                if attempt < self.options.retries:
                    await asyncio.sleep(max(pause(attempt), min(asked_for, self.options.timeout)))
        raise UserError(
            f"{what}: no answer from {self.url} after {self.options.retries + 1} attempts, at last {fault}; see that "
            f"the server runs and is not overloaded ({self.section}.concurrency, timeout), then run it again"
        )

    async def card(self, model: str) -> dict[str, Any]:
        """What the server says of a model, {} if it does not say what it has. UserError: it has no such model."""
        try:
            models = (await self.ask("the list of models", "models")).get("data") or []
        except Refused:
            return {}  # not every server has a list
        cards = {str(card.get("id")): card for card in models if isinstance(card, dict)}
        if model not in cards:
            known = self._excerpt(suggest(model, list(cards)))
            raise UserError(f"{self.section}.model: {self.url} has no model {model!r}; {known}")
        return cards[model]

    def _said(self, answer: Any) -> str:
        """What the server says is wrong."""
        try:
            said = str(answer.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            said = answer.text
        return self._excerpt(said)

    def _excerpt(self, said: str) -> str:
        """A text without the key, which some servers repeat."""
        return excerpt(said.replace(self.key, "(the key)") if self.key else said)


def is_vllm(card: dict[str, Any]) -> bool:
    """Whether a model's card is that of vLLM's own server."""
    return card.get("owned_by") == "vllm"


def chosen(what: str, answer: dict[str, Any], chat: bool) -> tuple[dict[str, Any], str | None, str]:
    """The choice in an answer to a chat or a plain text, its text, and why that ended. UserError if there is none."""
    try:
        choice = answer["choices"][0]
        text, reason = choice["message"]["content"] if chat else choice["text"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        raise foreign(what, answer) from None
    if not isinstance(text, str | None):
        raise foreign(what, answer)
    return choice, text, reason


def foreign(what: str, answer: Any) -> UserError:
    """The error of an answer that cannot be read."""
    return UserError(f"{what}: an answer that is not OpenAI's protocol: {excerpt(str(answer))}")


def excerpt(text: str) -> str:
    """As much of a text that somebody else wrote as a message may hold, on one line, without characters that act."""
    line = " ".join(text[: 4 * EXCERPT].split())
    return safe(line if len(line) <= EXCERPT else line[: EXCERPT - 3] + "...")


def pause(attempt: int) -> float:
    """Seconds to wait after a failed attempt: doubling up to a limit, and spread so that requests part."""
    return min(LONGEST_PAUSE, 0.5 * 2 ** min(attempt, 16)) * random.uniform(0.5, 1.0)


def retry_after(headers: Any) -> float:
    """The seconds a server asks to wait, given as such or as a date; 0 where it does not ask."""
    said = headers.get("Retry-After", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _object(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise json.JSONDecodeError("expected an object", content.decode(), 0)
    return found


def _is_address(url: str) -> bool:
    try:
        address = urlsplit(url)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        return False
