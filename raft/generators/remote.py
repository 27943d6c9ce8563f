"""Generation by a server that speaks OpenAI's protocol, `vllm serve` for instance.

A server holds the weights that it was started with, and no policy can be sent to it. vLLM's own server
can be asked for the log-probabilities of the policy's probe, and one that holds other weights is refused;
of any other server it is only known that it has a model by that name.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raft import plugins
from raft.chat import Tokenizer, continuation, encode_prompt, encode_response, load_tokenizer
from raft.errors import UserError
from raft.generators.sampling import Sampling
from raft.records import Group, Policy, Prompt, Response
from raft.seeds import derive
from raft.server import Connection, Server, chosen, connected, excerpt, foreign, is_vllm, stoppable, url_faults

TOLERANCE = 0.5  # mean difference of log-probabilities: a number format moves them by hundredths, others by units
USUAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # what a server does that knows no such options


@dataclass(frozen=True, kw_only=True)
class Remote(Sampling, Connection):
    """One request for each response, `concurrency` of them at a time, each with its own seed of 63 bits.

    `url` is the server's address up to its version (http://127.0.0.1:8000/v1), `model` the name the
    server gives the policy; how it is asked is said in `raft.server.Connection`.

    vLLM's server returns the tokens and their log-probabilities. Of another server only the text is read:
    its tokens are those of the policy's tokenizer, an end token after all that was not cut by the limit.
    """

    url: str = plugins.speed()  # where it runs changes nothing; the probe and `model` say what it is
    model: str

    block = 1

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from Sampling.faults(self)
        yield from Connection.faults(self)
        yield from url_faults(self.url)

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        """One group for each prompt as it is finished; at most `concurrency` prompts are under way."""
        with stoppable() as run:  # leaving it, however that comes, cancels and closes what is under way
            groups = self._groups(policy, prompts, seed)
            while (group := run(_next(groups))) is not None:
                yield group

    def release(self) -> None:
        """Nothing to give back: the accelerator is the server's."""

    async def _groups(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> AsyncIterator[Group]:
        tokenizer = load_tokenizer(str(policy.path))
        async with connected(self, "generator", self.url, self.key) as server:
            host = await Host.met(server, self, policy)
            under_way: set[asyncio.Task[Group]] = set()
            for prompt in prompts:
                under_way.add(asyncio.create_task(self._answer(host, tokenizer, prompt, seed)))
                if len(under_way) == self.concurrency:
                    for group in await _finished(under_way):
                        yield group
            while under_way:
                for group in await _finished(under_way):
                    yield group

    async def _answer(self, host: "Host", tokenizer: Tokenizer, prompt: Prompt, seed: int) -> Group:
        self.check_room(prompt, encode_prompt(tokenizer, prompt), host.context)

        async def respond(k: int) -> Response:
            path = "completions" if prompt.messages is None else "chat/completions"
            body = self._body(prompt, derive(seed, prompt.id, k), host.is_vllm)
            answer = await host.server.ask(f"prompt {prompt.id}", path, body)
            return self.clean(read(tokenizer, prompt, answer), tokenizer)

        return Group(prompt, list(await asyncio.gather(*map(respond, range(self.k)))))

    def _body(self, prompt: Prompt, seed: int, is_vllm: bool) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self.model, "n": 1, "seed": seed, "max_tokens": self.max_tokens}
        asked |= {"temperature": self.temperature, "top_p": self.top_p} | ({"stop": self.stop} if self.stop else {})
        chat = prompt.messages is not None
        asked |= _chat(prompt) if chat else {"prompt": prompt.text}
        own = {"top_k": self.top_k or 0, "min_p": self.min_p, "repetition_penalty": self.repetition_penalty}
        if is_vllm:  # what is left out would be read from the model folder's generation config
            asked |= {"return_token_ids": True} | ({"logprobs": True, "top_logprobs": 0} if chat else {"logprobs": 0})
            return asked | own
        return asked | {name: value for name, value in own.items() if value != USUAL[name]}


def _chat(prompt: Prompt) -> dict[str, Any]:
    """Messages and what belongs to them in OpenAI's protocol, in which arguments of tool calls are a text of JSON."""
    more = {"tools": prompt.tools, "chat_template_kwargs": prompt.chat_template_kwargs}
    messages = [dict(message) for message in prompt.messages or []]
    for message in messages:
        if "tool_calls" in message:
            message["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return {"messages": messages, **{name: value for name, value in more.items() if value is not None}}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    inner = call["function"]
    return {**call, "function": {**inner, "arguments": json.dumps(inner["arguments"], ensure_ascii=False)}}


class Host:
    """What is known of the server that holds the policy; `met` finds it out."""

    def __init__(self, server: Server, options: Remote, card: dict[str, Any]) -> None:
        self.server, self.options, self.is_vllm = server, options, is_vllm(card)
        self.context: int | None = card.get("max_model_len")  # vLLM cuts what is longer without a word

    @classmethod
    async def met(cls, server: Server, options: Remote, policy: Policy) -> "Host":
        """Learns what the server is. UserError: it has no such model, or other weights than the policy."""
        host = cls(server, options, await server.card(options.model))
        if host.is_vllm and policy.probe.exists():
            await host._prove(policy)
        return host

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
        answer = await self.server.ask("the policy's probe", "completions", body)
        try:
            table = answer["choices"][0]["prompt_logprobs"]
            return [table[at][str(token)]["logprob"] for at, token in enumerate(ids[1:], start=1)]
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{self.options.url} gives no log-probabilities of a prompt, so it cannot be told whether it holds "
                "the policy; start it without options that turn prompt_logprobs off"
            ) from None


def read(tokenizer: Tokenizer, prompt: Prompt, answer: dict[str, Any]) -> Response:
    """The response in a server's answer. UserError where it is none that can be scored and trained."""
    what = f"prompt {prompt.id}"
    choice, text, reason = chosen(what, answer, chat=prompt.messages is not None)
    try:
        ids, logprobs = choice.get("token_ids"), _logprobs(choice.get("logprobs"))
    except (KeyError, TypeError):
        raise foreign(what, answer) from None
    if reason not in ("stop", "length") or text is None:
        raise UserError(
            f"{what}: the server withholds the text or a part of it (finish_reason {excerpt(str(reason))}); "
            "remove the prompt, or start the server without filters, tools and reasoning parser"
        )
    if ids is None and reason == "stop":
        return Response(text, encode_response(tokenizer, prompt, text), None, reason)
    if ids is None:
        return Response(text, continuation(tokenizer, text), None, reason)
    if logprobs is not None and len(logprobs) != len(ids):
        raise UserError(f"{what}: an answer of {len(ids)} tokens with {len(logprobs)} log-probabilities")
    return Response(text, ids, logprobs, reason)


def _logprobs(given: dict[str, Any] | None) -> list[float] | None:
    """Log-probabilities by token, as they stand in an answer to a chat or to a plain text."""
    if given is None:
        return None
    return [token["logprob"] for token in given["content"]] if "content" in given else given["token_logprobs"]


async def _next(groups: AsyncIterator[Group]) -> Group | None:
    return await anext(groups, None)


async def _finished(under_way: set[asyncio.Task[Group]]) -> list[Group]:
    """Waits for at least one and takes out all that have finished."""
    done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    under_way -= done
    for fault in filter(None, [task.exception() for task in done]):
        raise fault
    return [task.result() for task in done]
