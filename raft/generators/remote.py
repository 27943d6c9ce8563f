"""Generation by an OpenAI-compatible server, `vllm serve` for instance.

A server holds the weights that it was started with, and no policy can be sent to it. vLLM's own server
can be asked for the log-probabilities of the policy's probe, and a server with other weights is refused;
of any other server it is only known that it has a model by that name.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raft.core.errors import UserError
from raft.core.options import speed
from raft.core.records import Group, Policy, Prompt, Response
from raft.generators.sampling import Sampling, spell
from raft.launch import completions
from raft.launch.completions import excerpt, foreign
from raft.launch.openai_client import (
    Connection,
    Refused,
    Server,
    Servers,
    connected,
    is_vllm,
    items,
    together,
    url_faults,
    urls,
)
from raft.models.chat_templates import (
    Tokenizer,
    continuation,
    encode_prompt,
    encode_response,
    load_tokenizer,
    unembedded,
)

TOLERANCE = 0.5  # mean difference of log-probabilities: a number format moves them by hundredths, others by units
LARGE = 1e39  # beyond what a float32 can be
ROUNDING = 1e-3  # how far rounding can bring a log-probability above 0
USUAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # what a server does that knows no such options


@dataclass(frozen=True, kw_only=True)
class Remote(Sampling, Connection):
    """One request for each response, `max_concurrency` of them at a time, each with its own seed of 63 bits.

    `url` is the server's address up to its version (http://127.0.0.1:8000/v1), or a list of them, `model` the name the
    server gives the policy. Several servers share the requests, each with `max_concurrency` of its own; see
    `raft.launch.openai_client.Connection` for requests.

    vLLM's server returns the tokens and their log-probabilities. Of another server only the text is read:
    its tokens are those of the policy's tokenizer, an end token after all that was not cut by the limit.
    """

    url: str | list[str] = speed()  # where it runs changes nothing; the probe and `model` say what it is
    model: str

    batch_size = 1
    uses_device = False
    can_continue = True

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from Sampling.faults(self)
        yield from Connection.faults(self)
        yield from url_faults(self.url)

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        """One group for each prompt as it is finished; at most `max_concurrency` prompts a server are under way."""
        yield from items(self._groups(policy, prompts, seed))  # leaving it, however that comes, ends what is under way

    def release(self) -> None:
        """Nothing to give back: the accelerator is the server's."""

    async def _groups(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> AsyncGenerator[Group]:
        reader = Reader.of(policy, self)
        meet = Meeting(self, policy)
        async with connected(self, "generator", self.url, self.key, meet) as servers:
            under_way: set[asyncio.Task[Group]] = set()
            try:
                for prompt in prompts:
                    under_way.add(asyncio.create_task(self._answer(servers, reader, prompt, seed)))
                    if len(under_way) == self.max_concurrency * len(urls(self.url)):
                        for group in await _finished(under_way):
                            yield group
                while under_way:
                    for group in await _finished(under_way):
                        yield group
            finally:
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)

    async def _answer(self, servers: Servers, reader: "Reader", prompt: Prompt, seed: int) -> Group:
        asked, is_vllm = encode_prompt(reader.tokenizer, prompt), servers.facts["vllm"]
        self.check_room(prompt, asked, servers.facts["max_model_len"])
        opened = self.opening(reader.tokenizer, asked)
        ends = self.ends(reader.tokenizer)

        async def respond(k: int) -> Response:
            path = "completions" if prompt.messages is None else "chat/completions"
            body = self._body(prompt, prompt.seed(seed, k), is_vllm)
            if is_vllm:  # which knows no end of a turn that its model's folder does not name
                body |= {"stop": ends.texts, "stop_token_ids": sorted(ends.tokens)}
            try:
                answer = await servers.ask(f"prompt {prompt.id}", path, body)
            except Refused as fault:
                if not fault.filtered:
                    raise
                return Response.missing(excerpt(str(fault)))
            response = reader.read(prompt, answer)
            return response if response.withheld else self.finish(response, reader.tokenizer, opened)

        return Group(prompt, await together(*map(respond, range(self.k))))

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


@dataclass(frozen=True)
class Meeting:
    """Asks a server whether it has the policy. UserError: it has no such model, or other weights than the policy."""

    options: Remote
    policy: Policy

    async def __call__(self, server: Server) -> dict[str, Any]:
        card = await server.card(self.options.model)
        context = card.get("max_model_len")  # vLLM cuts what is longer without a word
        if context is not None and type(context) is not int:
            raise UserError(
                f"{server.url} says max_model_len: {excerpt(str(context))}, which is not a whole number; check what "
                "runs there"
            )
        if is_vllm(card) and self.policy.probe.exists():
            await self._prove(server)
        return {"vllm": is_vllm(card), "max_model_len": context}

    async def _prove(self, server: Server) -> None:
        probe = json.loads(self.policy.probe.read_bytes())
        theirs = np.concatenate(await together(*(self._logprobs(server, ids) for ids in probe["tokens"])))
        difference = float(np.abs(np.concatenate(probe["logprobs"]) - theirs).mean())
        if not difference <= TOLERANCE:
            raise UserError(
                f"{server.url} holds other weights than the policy {self.policy.path}: the log-probabilities of its "
                f"probe differ by {difference:.2f} on average; start the server with that folder "
                f"(vllm serve {self.policy.path} --served-model-name {self.options.model}), then run it again"
            )

    async def _logprobs(self, server: Server, ids: list[int]) -> list[float]:
        """The log-probability of each token but the first, given those before it."""
        body = {"model": self.options.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = await server.ask("the policy's probe", "completions", body)
        try:
            table = answer["choices"][0]["prompt_logprobs"]
            values = [table[at][str(token)]["logprob"] for at, token in enumerate(ids[1:], start=1)]
            if not all(map(_is_number, values)):
                raise TypeError
            return values
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{server.url} gives no log-probabilities of a prompt, so raft cannot check whether it holds the "
                "policy; start it without options that turn prompt_logprobs off"
            ) from None


@dataclass(frozen=True)
class Reader:
    """Reads the responses in a server's answers, and checks that the policy can have made them: `vocabulary` is its
    number of tokens."""

    tokenizer: Tokenizer
    vocabulary: int
    options: Remote

    @classmethod
    def of(cls, policy: Policy, options: Remote) -> "Reader":
        from transformers import AutoConfig

        rows = AutoConfig.from_pretrained(policy.path).get_text_config().vocab_size
        return cls(load_tokenizer(str(policy.path)), rows, options)

    def read(self, prompt: Prompt, answer: dict[str, Any]) -> Response:
        """The response in an answer, or why it is missing. UserError: the policy cannot have made it."""
        what, tokenizer, servers = f"prompt {prompt.id}", self.tokenizer, " or ".join(urls(self.options.url))
        completion = completions.read(what, answer, prompt.messages is not None, self.options.max_tokens)
        if completion.fault or completion.ended is None:
            return Response.missing(completion.fault)
        ids = completion.choice.get("token_ids")
        logprobs = _logprobs(f"{what}: {servers}", completion.choice.get("logprobs"))
        if ids is None:
            stops = completion.ended == "stop"
            own = (
                encode_response(tokenizer, prompt, completion.text)
                if stops
                else continuation(tokenizer, completion.text)
            )
            if strange := unembedded(tokenizer, own):
                return Response.missing(strange)
            return Response(completion.text, own, None, completion.ended)
        if fault := self._fault(ids, logprobs):
            raise UserError(f"{what}: {servers} answers with {fault}, so the server is not to be trusted")
        text = (
            completion.text.removesuffix(tokenizer.eos_token) if ids[-1] == tokenizer.eos_token_id else completion.text
        )
        if not self._spelled(ids, text):
            raise UserError(
                f"{what}: the tokens that {servers} sends do not spell its text {excerpt(text)!r}; start it "
                "with the policy's own tokenizer, and without reasoning or tool parsers"
            )
        return Response(text, ids, logprobs, completion.ended)

    def _fault(self, ids: Any, logprobs: list[float] | None) -> str:
        """What is wrong with tokens and their log-probabilities, "" if nothing is."""
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            return f"token_ids that are not whole numbers ({excerpt(str(ids))})"
        if beyond := [token for token in ids if not 0 <= token < self.vocabulary]:
            return f"the token {excerpt(str(beyond[0]))}, and the policy has {self.vocabulary}"
        if not 0 < len(ids) <= self.options.max_tokens:
            return f"{len(ids)} tokens where 1 to {self.options.max_tokens} can be"
        if logprobs is not None and len(logprobs) != len(ids):
            return f"{len(ids)} tokens and {len(logprobs)} log-probabilities"
        if above := [value for value in logprobs or [] if value > ROUNDING]:
            return f"a log-probability of {above[0]:g}"
        return ""

    def _spelled(self, ids: list[int], text: str) -> bool:
        """Whether tokens spell a text, up to a stop text and what else servers leave out of it: an end token that is
        not special, the beginning of a character."""
        wanted = _letters(text)
        for spelled in (_letters(spell(self.tokenizer, ids)), _letters(spell(self.tokenizer, ids[:-1]))):
            rest = spelled.removeprefix(wanted)
            if spelled.startswith(wanted) and (
                not rest or any(rest.startswith(_letters(s)) for s in self.options.stop)
            ):
                return True
        return False


def _letters(text: str) -> str:
    """A text without white space and broken characters, which servers and tokenizers treat in ways of their own."""
    return "".join(text.replace("\ufffd", "").split())


def _logprobs(what: str, given: Any) -> list[float] | None:
    """Log-probabilities by token, from an answer to a chat or to a plain text."""
    if given is None:
        return None
    try:
        values = [item["logprob"] for item in given["content"]] if "content" in given else given["token_logprobs"]
    except (KeyError, TypeError):
        raise foreign(what, given) from None
    if values is None:
        return None
    if not (isinstance(values, list) and all(map(_is_number, values))):
        raise UserError(
            f"{what} answers with log-probabilities that are not numbers ({excerpt(str(values))}), so the server is "
            "not to be trusted"
        )
    return [float(item) for item in values]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGE


async def _finished(under_way: set[asyncio.Task[Group]]) -> list[Group]:
    """Waits for at least one and takes out all that have finished."""
    done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    under_way -= done
    for fault in filter(None, [task.exception() for task in done]):
        raise fault
    return [task.result() for task in done]
