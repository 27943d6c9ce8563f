"""The client of OpenAI-compatible servers: limited in time and size, and silent about the key.

Several servers of one model share the requests. One that fails is left out for a while; the others answer for it.
"""

import asyncio
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from raft.core.errors import Stopped, UserError
from raft.core.options import faults_of_range, speed, suggest
from raft.launch import completions
from raft.launch.completions import EXCERPT, excerpt

if TYPE_CHECKING:
    from ssl import SSLContext

LOG = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0  # seconds between two attempts, unless the server asks for more
AWAY = 60.0  # seconds for which a server that failed is left out while others answer
TRANSIENT = {408, 409, 425, 429}  # statuses that another attempt may change, beside all from 500 on
LARGEST = 32 << 20  # bytes of an answer, unpacked: 100,000 tokens with their log-probabilities take 15 MB
PACKED = {"", "identity", "gzip", "deflate"}  # unpacked piece by piece, no piece more than a thousandfold
OTHER = "; check what runs there: it has to speak OpenAI's protocol"
RENAMED = "max_completion_tokens"  # what some APIs call max_tokens; they say so when they refuse it


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How servers are asked: each `max_concurrency` requests at a time, a failed one repeated `max_retries` times.

    `api_key_env` is the name of the environment variable that holds the key. A recipe names a server by any address, so
    without it no key is sent. `timeout` is in seconds, from the connection to the last byte of an answer.
    """

    api_key_env: str | None = speed(None)
    max_concurrency: int = speed(32)
    max_retries: int = speed(5)
    timeout: float = speed(300.0)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, max_concurrency=(1, 4096), max_retries=(0, 1000))
        if not 0 < self.timeout < float("inf"):
            yield "timeout", f"{self.timeout!r} is out of range; it must be above 0 seconds"
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env, re.ASCII):
            yield (
                "api_key_env",
                "is not the name of an environment variable; the key itself does not belong in these files",
            )

    @property
    def key(self) -> str:
        """The key, "" without a key. UserError where no header can carry what the variable holds."""
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the key in {self.api_key_env} holds characters that no key has; set it again")
        return key

    @cached_property
    def away(self) -> dict[str, float]:
        """The servers that failed and were not met again, by url: until when each is left out (`time.monotonic`)."""
        return {}


def urls(url: str | list[str]) -> list[str]:
    """The addresses in an option `url`, which is one or a list."""
    return [url] if isinstance(url, str) else url


def url_faults(url: str | list[str]) -> Iterator[tuple[str, str]]:
    """Why an option `url` is not an address up to a server's version, or a list of such, or holds a secret."""
    for one in urls(url):
        yield from _url_faults(one)
    if not url:
        yield "url", "names no server; give an address like http://127.0.0.1:8000/v1, or a list of them"
    elif len({one.rstrip("/") for one in urls(url)}) < len(urls(url)):
        yield "url", "names a server twice; give each once, and raise max_concurrency to send it more"


def _url_faults(url: str) -> Iterator[tuple[str, str]]:
    if not _is_address(url):
        yield "url", f"{url!r} is not an address; it must be like http://127.0.0.1:8000/v1"
    elif urlsplit(url).username is not None or urlsplit(url).query or urlsplit(url).fragment:
        yield "url", "holds a name, a password or a query; a key belongs in an environment variable (api_key_env)"


class Refused(UserError):
    """The server will not answer this request, even if retried; `status` is the HTTP status.

    `filtered`: because of what the request says, as far as the server's words tell.
    """

    def __init__(self, message: str, status: int, filtered: bool = False):
        super().__init__(message)
        self.status, self.filtered = status, filtered


class NoAnswer(UserError):
    """A server gave no answer after all attempts; `fault` is the last one's."""

    def __init__(self, message: str, fault: str):
        super().__init__(message)
        self.fault = fault


class Passing(Exception):
    """A fault that another attempt may not meet; `wait` is how many seconds the server asks for before it.

    `unreachable`: no connection came about at all.
    """

    def __init__(self, fault: str, wait: float = 0.0, unreachable: bool = False):
        super().__init__(fault)
        self.wait, self.unreachable = wait, unreachable


_under_way: dict[int, Callable[[], Any]] = {}  # by thread: what cancels its requests


def cancel(thread: int) -> None:
    """Cancels what `stoppable` runs in another thread, if there is something: Stopped is raised there."""
    with suppress(KeyError, RuntimeError):  # RuntimeError: its loop has just been closed
        _under_way[thread]()


Item = TypeVar("Item")


def items(generator: AsyncGenerator[Item]) -> Iterator[Item]:
    """What an asynchronous generator yields, one at a time. However that ends, the generator is closed first.

    A loop that ends before its generators do closes all of them at once, and those that hold each other fail at it.
    """
    with stoppable() as run:
        try:
            while (item := run(_next(generator))) is not _END:
                yield item
        finally:
            run(generator.aclose())


async def together(*asked: Coroutine[Any, Any, Item]) -> list[Item]:
    """As asyncio.gather; when one fails, the others have been cancelled and have ended before that is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_END: Any = object()


async def _next(generator: AsyncGenerator[Any]) -> Any:
    return await anext(generator, _END)


@contextmanager
def stoppable() -> "Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]":
    """A function that runs coroutines, until `cancel` is called for this thread; then it raises Stopped."""
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

        _under_way[threading.get_ident()] = lambda: loop.call_soon_threadsafe(stop)
        try:
            yield run
        finally:
            del _under_way[threading.get_ident()]


Meet = Callable[["Server"], Awaitable[dict[str, Any]]]  # proves that a server has the right model: what it says of it


@asynccontextmanager
async def connected(
    options: Connection, section: str, url: str | list[str], key: str, meet: Meet, proxies: bool = True
) -> "AsyncIterator[Servers]":
    """The servers at `url`, one or a list, met, for the options of a section of the recipe.

    Without `proxies` they are reached directly.
    """
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers |= {"Accept-Encoding": "gzip, deflate"}
    limits = httpx.Limits(max_connections=None)  # Server.slots is the bound: to wait there is no timeout
    async with AsyncExitStack() as stack:
        servers = []
        for one in urls(url):
            client = httpx.AsyncClient(
                base_url=one, headers=headers, timeout=None, limits=limits, trust_env=proxies, verify=_tls(proxies)
            )
            servers.append(Server(options, section, one, key, await stack.enter_async_context(client)))
        everyone = Servers(options, section, servers, meet)
        await everyone.assemble()
        yield everyone


@cache
def _tls(environment: bool) -> "SSLContext":
    """The authorities that certificates are checked by, read once (30 ms); SSL_CERT_FILE counts if `environment`."""
    import httpx

    return httpx.create_ssl_context(trust_env=environment)


class Servers:
    """Servers of one model: each request goes to the one with the fewest requests under way.

    One that gives no answer is left out for a while, and its requests go to the others. `facts` is what a server said
    when it was met, the same of each; one that was left out is met again first, since it may hold another model by now.
    """

    def __init__(self, options: Connection, section: str, servers: "list[Server]", meet: Meet):
        self.options, self.section, self.servers, self.meet = options, section, servers, meet
        self.facts: dict[str, Any] = {}
        self.met: list[Server] = []
        self.slots = asyncio.Semaphore(options.max_concurrency * len(servers))  # the choice is made when one is free
        for server in servers:
            server.others = [other for other in servers if other is not server]

    async def assemble(self) -> None:
        """Meets every server that is not left out. UserError: none answers, or they have not one model."""
        faults: dict[str, NoAnswer] = {}
        while not self.met and (rest := [one for one in self.servers if one.url not in faults]):
            there = [one for one in rest if not one.left_out] or rest
            await together(*(self._tried(one, faults, self._meet(one)) for one in there))
        if not self.met:
            raise self._silent("the servers", faults)

    async def ask(self, what: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer of one of the servers, a JSON object. Refused: it was refused; UserError: none answers."""
        faults: dict[str, NoAnswer] = {}
        async with self.slots:
            while rest := [one for one in self.servers if one.url not in faults]:
                server = min(rest, key=lambda one: (one.left_out or one.meeting.locked(), one.busy))
                answer = await self._tried(server, faults, self._asked(server, what, path, body))
                if answer is not None:
                    return answer
        raise self._silent(what, faults)

    async def _asked(self, server: "Server", what: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        server.busy += 1
        try:
            await self._meet(server)
            return await server.ask(what, path, body)
        finally:
            server.busy -= 1

    async def _tried(self, server: "Server", faults: dict[str, NoAnswer], asked: Awaitable[Item]) -> Item | None:
        """What is asked of a server, None if it gives no answer: then it is left out, and noted if that is its last."""
        fault: Exception
        try:
            return await asked
        except NoAnswer as last:
            faults[server.url] = last
            fault = last
        except Passing as passing:
            fault = passing
        if server in self.met:
            self.met.remove(server)
        if server.others and server.url not in self.options.away:
            said = fault.fault if isinstance(fault, NoAnswer) else fault
            LOG.warning("%s.url: %s is left out for %g s at a time: %s", self.section, server.url, AWAY, said)
        self.options.away[server.url] = time.monotonic() + AWAY
        return None

    async def _meet(self, server: "Server") -> None:
        """Meets a server where that was not done since it was left out last."""
        async with server.meeting:
            if server in self.met:
                return
            facts = await self.meet(server)
            if self.facts not in ({}, facts):
                shown = [", ".join(f"{name} {value}" for name, value in one.items()) for one in (facts, self.facts)]
                raise UserError(
                    f"{self.section}.url: the servers differ: {server.url} has {shown[0]}, and another has {shown[1]}; "
                    "start all of them with the same model and options"
                )
            self.facts = facts
            self.met.append(server)
            if self.options.away.pop(server.url, None) is not None:
                LOG.info("%s.url: %s answers again", self.section, server.url)

    def _silent(self, what: str, faults: dict[str, NoAnswer]) -> NoAnswer:
        """The error where no server answers."""
        if len(faults) == 1:
            return next(iter(faults.values()))
        each = "".join(f"\n  {url}: {fault.fault}" for url, fault in faults.items())
        return NoAnswer(
            f"{what}: no answer from any of {len(faults)} servers after {self.options.max_retries + 1} attempts each; "
            f"check that they run and are not overloaded ({self.section}.max_concurrency, timeout), then run it again"
            f"{each}",
            each,
        )


UNKNOWN_METHOD = 501  # of a server without that part of the protocol: it will not have it at the next attempt


class Server:
    """One server: `ask` it, with retries."""

    def __init__(self, options: Connection, section: str, url: str, key: str, client: Any):
        self.options, self.section, self.url, self.key, self.client = options, section, url, key, client
        self.slots = asyncio.Semaphore(options.max_concurrency)
        self.renamed = False
        self.others: list[Server] = []  # that have the same model
        self.busy, self.meeting = 0, asyncio.Lock()

    @property
    def left_out(self) -> bool:
        """Whether others are to be asked in its place now."""
        return self.options.away.get(self.url, 0.0) > time.monotonic()

    def _gives_way(self, fault: Passing) -> bool:
        """Whether another server is asked in place of one more attempt: of one that is not there, or was left out."""
        away = self.options.away
        return (fault.unreachable or self.url in away) and any(other.url not in away for other in self.others)

    async def ask(self, what: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The server's answer, a JSON object.

        Refused: it was refused; NoAnswer: none after all attempts; Passing: another server is to be asked.
        """
        async with self.slots:
            for attempt in range(self.options.max_retries + 1):
                try:
                    return await self._attempt(what, path, body)
                except Passing as passing:
                    fault = passing
                if self._gives_way(fault):
                    raise fault
                if attempt < self.options.max_retries:
                    await asyncio.sleep(max(pause(attempt), min(fault.wait, self.options.timeout)))
        raise NoAnswer(
            f"{what}: no answer from {self.url} after {self.options.max_retries + 1} attempts, at last {fault}; check "
            "that the server runs, speaks OpenAI's protocol and is not overloaded "
            f"({self.section}.max_concurrency, timeout), then run it again",
            str(fault),
        )

    async def _attempt(self, what: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """One request and its answer. Passing, Refused: no answer; UserError: an answer that is too large."""
        sent = self._worded(body)
        status, headers, content = await self._exchange(what, path, sent)
        reply = _object(content)
        if 200 <= status < 300 and reply is None:
            raise Passing(f"an answer that is not JSON: {self._excerpt(_words(content))}")
        error = completions.error_of(reply) if reply and 200 <= status < 300 else None
        if 200 <= status < 300 and reply is not None and error is None:
            return reply
        words = error[1] if error else completions.words_of(reply) if reply else _words(content)
        fault = f"status {error[0] if error else status}: {self._excerpt(words)}"
        status = error[0] if error else status
        if (status >= 500 and status != UNKNOWN_METHOD) or status in TRANSIENT:
            raise Passing(fault, retry_after(headers))
        if sent and "max_tokens" in sent and RENAMED in words:
            self.renamed = True
            return await self._attempt(what, path, body)
        filtered = completions.FILTER.search(_words(content)) is not None
        raise Refused(f"{what}: {self.url} refuses the request with {fault}{self._hint(status)}", status, filtered)

    async def _exchange(self, what: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any, bytes]:
        """Status, headers and content of an answer, within the timeout and the bound of its size."""
        import httpx

        try:
            async with (
                asyncio.timeout(self.options.timeout),
                self.client.stream("GET" if body is None else "POST", path, json=body) as answer,
            ):
                if (packed := answer.headers.get("Content-Encoding", "").strip().lower()) not in PACKED:
                    raise UserError(
                        f"{what}: {self.url} packs its answer by {excerpt(packed)}, which was not asked for{OTHER}"
                    )
                content = bytearray()
                async for piece in answer.aiter_bytes():
                    content += piece
                    if len(content) > LARGEST:
                        raise UserError(f"{what}: {self.url} sends an answer of more than {LARGEST >> 20} MB{OTHER}")
                return answer.status_code, answer.headers, bytes(content)
        except TimeoutError:
            raise Passing(f"no complete answer within {self.options.timeout:g} s") from None
        except httpx.RequestError as error:
            unreachable = isinstance(error, httpx.ConnectError)
            raise Passing(f"{type(error).__name__} {self._excerpt(str(error))}".strip(), 0.0, unreachable) from None

    def _worded(self, body: dict[str, Any] | None) -> dict[str, Any] | None:
        """The request with the server's names of options, where it has said that they differ."""
        if body is None or not self.renamed:
            return body
        return {RENAMED if name == "max_tokens" else name: value for name, value in body.items()}

    def _hint(self, status: int) -> str:
        if status not in (401, 403) or self.key:
            return ""
        name = self.options.api_key_env
        missing = f"the environment has no {name}" if name else f"{self.section}.api_key_env names the variable of one"
        return f"; no key was sent ({missing})"

    async def card(self, model: str, option: str = "model") -> dict[str, Any]:
        """What the server says of a model, {} if it does not say what it has. UserError: it has no such model.

        `option` is the one that names the model.
        """
        try:
            models = (await self.ask("the list of models", "models")).get("data")
        except Refused:
            return {}  # not every server has a list
        listed = models if isinstance(models, list) else []
        cards = {str(card.get("id")): card for card in listed if isinstance(card, dict)}
        if model not in cards:
            known = self._excerpt(suggest(model, list(cards)) if cards else f"what it lists is {models!r}{OTHER}")
            raise UserError(f"{self.section}.{option}: {self.url} has no model {model!r}; {known}")
        return cards[model]

    def _excerpt(self, text: str) -> str:
        """A text without the key, which some servers repeat."""
        return excerpt(text.replace(self.key, "(the key)") if self.key else text)


def is_vllm(card: dict[str, Any]) -> bool:
    """Whether a model's card is that of vLLM's own server."""
    return card.get("owned_by") == "vllm"


def pause(attempt: int) -> float:
    """Seconds to wait after a failed attempt: doubling up to a limit, and spread so that requests part."""
    return min(LONGEST_PAUSE, 0.5 * 2 ** min(attempt, 16)) * random.uniform(0.5, 1.0)


def retry_after(headers: Any) -> float:
    """The seconds a server asks to wait, given as such or as a date; 0 where it does not ask."""
    value = headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _object(content: bytes) -> dict[str, Any] | None:
    """The JSON object that an answer is, None if it is not one; a bare list stands for its data (lists of models)."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, or a number with thousands of digits
        return None
    return {"data": value} if isinstance(value, list) else value if isinstance(value, dict) else None


def _words(content: bytes) -> str:
    return content[: 4 * EXCERPT].decode("utf-8", "replace")


def _is_address(url: str) -> bool:
    import httpx

    try:
        address = urlsplit(url)
        httpx.URL(url)
        if not url.isprintable() or " " in url:  # urlsplit leaves line breaks out
            return False
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except (ValueError, httpx.InvalidURL):
        return False
