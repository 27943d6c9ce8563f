"""Generation by a server that speaks OpenAI's protocol, `vllm serve` for instance.

A server holds the weights that it was started with, and no policy can be sent to it. vLLM's own server
can be asked for the log-probabilities of the policy's probe, and one that holds other weights is refused;
of any other server it is only known that it has a model by that name.
"""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from raft import plugins
from raft.chat import Tokenizer, continuation, encode_prompt, encode_response, load_tokenizer
from raft.errors import UserError
from raft.generators.sampling import Sampling
from raft.plugins import faults_of_range, speed, suggest
from raft.records import Group, Policy, Prompt, Response
from raft.seeds import derive

LONGEST_PAUSE = 30.0  # seconds between two attempts, unless the server asks for more
TOLERANCE = 0.5  # mean difference of log-probabilities: a number format moves them by hundredths, others by units
USUAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # what a server does that knows no such options
TRANSIENT = {408, 409, 425, 429}  # statuses that another attempt may change, beside all from 500 on


@dataclass(frozen=True, kw_only=True)
class Remote(Sampling):
    """One request for each response, `concurrency` of them at a time, each with its own seed of 63 bits.

    `url` is the server's address up to its version (http://127.0.0.1:8000/v1), `model` the name the
    server gives the policy, `api_key_env` the name of the environment variable that holds the key; where
    there is none, no key is sent. A failed request is repeated `retries` times; `timeout` is in seconds.

    vLLM's server returns the tokens and their log-probabilities. Of another server only the text is read:
    its tokens are those of the policy's tokenizer, an end token after all that was not cut by the limit.
    """

    url: str = plugins.speed()  # where it runs changes nothing; the probe and `model` say what it is
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = speed(32)
    retries: int = speed(5)
    timeout: float = speed(300.0)

    block = 1

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, concurrency=(1, 4096), retries=(0, 1000))
        if not 0 < self.timeout < float("inf"):
            yield "timeout", f"{self.timeout!r} is out of range; it must be above 0 seconds"
        if not _is_address(self.url):
            yield "url", f"{self.url!r} is no address; it must be like http://127.0.0.1:8000/v1"
        elif urlsplit(self.url).password is not None:
            yield "url", "holds a password; put it into an environment variable and name that in api_key_env"

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        """One group for each prompt as it is finished; at most `concurrency` prompts are under way."""
        with asyncio.Runner() as runner:  # leaving it, however that comes, cancels and closes what is under way
            groups = self._groups(policy, prompts, seed)
            while (group := runner.run(_next(groups))) is not None:
                yield group

    def release(self) -> None:
        """Nothing to give back: the accelerator is the server's."""

    async def _groups(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> AsyncIterator[Group]:
        import httpx

        tokenizer = load_tokenizer(str(policy.path))
        key = os.environ.get(self.api_key_env, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None)  # Server.slots is the bound: to wait there is no timeout
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=self.timeout, limits=limits) as client:
            server = Server(self, client, key)
            await server.meet(policy)
            under_way: set[asyncio.Task[Group]] = set()
            for prompt in prompts:
                under_way.add(asyncio.create_task(self._answer(server, tokenizer, prompt, seed)))
                if len(under_way) == self.concurrency:
                    for group in await _finished(under_way):
                        yield group
            while under_way:
                for group in await _finished(under_way):
                    yield group

    async def _answer(self, server: "Server", tokenizer: Tokenizer, prompt: Prompt, seed: int) -> Group:
        self.check_room(prompt, encode_prompt(tokenizer, prompt), server.context)

        async def respond(k: int) -> Response:
            path = "completions" if prompt.messages is None else "chat/completions"
            body = self._body(prompt, derive(seed, prompt.id, k), server.is_vllm)
            answer = await server.ask(f"prompt {prompt.id}", path, body)
            return self.clean(read(tokenizer, prompt, answer), tokenizer)

        return Group(prompt, list(await asyncio.gather(*map(respond, range(self.k)))))

    def _body(self, prompt: Prompt, seed: int, is_vllm: bool) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self.model, "n": 1, "seed": seed, "max_tokens": self.max_tokens}
        asked |= {"temperature": self.temperature, "top_p": self.top_p} | ({"stop": self.stop} if self.stop else {})
        chat = prompt.messages is not None
        asked |= {"messages": prompt.messages} if chat else {"prompt": prompt.text}
        own = {"top_k": self.top_k or 0, "min_p": self.min_p, "repetition_penalty": self.repetition_penalty}
        if is_vllm:  # what is left out would be read from the model folder's generation config
            asked |= {"return_token_ids": True} | ({"logprobs": True, "top_logprobs": 0} if chat else {"logprobs": 0})
            return asked | own
        return asked | {name: value for name, value in own.items() if value != USUAL[name]}


class Refused(UserError):
    """The server will not answer this request, however often it is asked."""


class Server:
    """The other end of the wire: `ask` it, as often as there is hope; `meet` it first."""

    def __init__(self, options: Remote, client: Any, key: str) -> None:
        self.options, self.client, self.key = options, client, key
        self.slots = asyncio.Semaphore(options.concurrency)
        self.is_vllm = False
        self.context: int | None = None  # vLLM cuts what is longer without a word

    async def meet(self, policy: Policy) -> None:
        """Learns what the server is. UserError: it has no such model, or other weights than the policy."""
        try:
            models = (await self.ask("the list of models", "models")).get("data") or []
        except Refused:
            return  # not every server has a list
        cards = {card["id"]: card for card in models}
        if self.options.model not in cards:
            raise UserError(
                f"generator.model: {self.options.url} has no model {self.options.model!r}; "
                + suggest(self.options.model, list(cards))
            )
        card = cards[self.options.model]
        self.is_vllm, self.context = card.get("owned_by") == "vllm", card.get("max_model_len")
        if self.is_vllm and policy.probe.exists():
            await self._prove(policy)

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
                        raise Refused(f"{what}: {self.options.url} refuses the request with {fault}")
                except (httpx.RequestError, json.JSONDecodeError, UnicodeDecodeError) as error:
                    fault = f"{type(error).__name__} {error}".strip()
                if attempt < self.options.retries:
                    await asyncio.sleep(max(pause(attempt), min(asked_for, self.options.timeout)))
        raise UserError(
            f"{what}: no answer from {self.options.url} after {self.options.retries + 1} attempts, at last {fault}; "
            "see that the server runs and is not overloaded (generator.concurrency, timeout), then run it again"
        )

    async def _prove(self, policy: Policy) -> None:
        probe = json.loads(policy.probe.read_bytes())
        theirs = np.concatenate(await asyncio.gather(*map(self._logprobs, probe["tokens"])))
        difference = float(np.abs(np.concatenate(probe["logprobs"]) - theirs).mean())
        if not difference <= TOLERANCE:
            raise UserError(
                f"{self.options.url} holds other weights than the policy {policy.path}: the log-probabilities of its "
                f"probe differ by {difference:.2f} on average; start the server with that folder "
                f"(vllm serve {policy.path} --served-model-name {self.options.model}), then run it again"
            )

    async def _logprobs(self, ids: list[int]) -> list[float]:
        """The log-probability of each token but the first, given those before it."""
        body = {"model": self.options.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = await self.ask("the policy's probe", "completions", body)
        try:
            table = answer["choices"][0]["prompt_logprobs"]
            return [table[at][str(token)]["logprob"] for at, token in enumerate(ids[1:], start=1)]
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{self.options.url} gives no log-probabilities of a prompt, so it cannot be told whether it holds "
                "the policy; start it without options that turn prompt_logprobs off"
            ) from None

    def _said(self, answer: Any) -> str:
        """What the server says is wrong, without the key, which some servers repeat."""
        try:
            said = str(answer.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            said = answer.text
        return (said.replace(self.key, "(the key)") if self.key else said)[:500]


def read(tokenizer: Tokenizer, prompt: Prompt, answer: dict[str, Any]) -> Response:
    """The response in a server's answer. UserError where it is none that can be scored and trained."""
    try:
        choice = answer["choices"][0]
        text = choice["text"] if prompt.messages is None else choice["message"]["content"]
        reason, ids, logprobs = choice["finish_reason"], choice.get("token_ids"), _logprobs(choice.get("logprobs"))
    except (KeyError, IndexError, TypeError):
        raise UserError(f"prompt {prompt.id}: an answer that is not OpenAI's protocol: {str(answer)[:500]}") from None
    if reason not in ("stop", "length") or text is None:
        raise UserError(
            f"prompt {prompt.id}: the server withholds the text or a part of it (finish_reason {reason}); "
            "remove the prompt, or start the server without filters, tools and reasoning parser"
        )
    if ids is None and reason == "stop":
        return Response(text, encode_response(tokenizer, prompt, text), None, reason)
    if ids is None:
        return Response(text, continuation(tokenizer, text), None, reason)
    if logprobs is not None and len(logprobs) != len(ids):
        raise UserError(f"prompt {prompt.id}: an answer of {len(ids)} tokens with {len(logprobs)} log-probabilities")
    return Response(text, ids, logprobs, reason)


def _logprobs(given: dict[str, Any] | None) -> list[float] | None:
    """Log-probabilities by token, as they stand in an answer to a chat or to a plain text."""
    if given is None:
        return None
    return [token["logprob"] for token in given["content"]] if "content" in given else given["token_logprobs"]


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


async def _next(groups: AsyncIterator[Group]) -> Group | None:
    return await anext(groups, None)


async def _finished(under_way: set[asyncio.Task[Group]]) -> list[Group]:
    """Waits for at least one and takes out all that have finished."""
    done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    under_way -= done
    for fault in filter(None, [task.exception() for task in done]):
        raise fault
    return [task.result() for task in done]


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
