"""kind: judge. A language model that reads responses and says in words which is better, or how good each is.

    reward: {kind: judge, model: some/chat-model}                                    # served here, by vLLM
    reward: {kind: judge, url: "https://host/v1", model: its-name, api_key_env: HOST_KEY, mode: grade}

What is asked and how often, and which verdicts count, is in docs/judges.md.
"""

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from raft.core import device
from raft.core.errors import UserError
from raft.core.options import faults_of_range, faults_of_text, source, speed, text_of
from raft.core.records import Group, Prompt, Score, said
from raft.core.seeds import derive
from raft.data.sources import pattern_faults
from raft.launch import completions, vllm_options, vllm_server
from raft.launch.completions import excerpt
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
)
from raft.rewards.judge import prompts, verdicts
from raft.rewards.judge.verdicts import Outcome, Verdict

UNREADABLE = {400, 413, 422}  # statuses that are about one request, most often that it is too long
NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # vLLM's; unsaid, the model decides


class Asked(NamedTuple):
    """The servers, and the judge's name on them."""

    servers: Servers
    model: str


@dataclass(frozen=True, kw_only=True)
class Judge(Connection):
    """A judge that compares the responses of a group two at a time, or grades each alone.

    With `url`, an address or a list of them, `model` is the name that the servers there have for it; without, it is a
    folder or a hub id, which raft serves itself by vLLM with `engine_args`. `template` is a Jinja file that writes the
    question, a message of the user after the `system` one, or with `format: text` the whole text that the judge goes on
    from.
    `ranking: challenger` compares each response only with the best one before it. A run that would send more than
    `max_requests` is refused before it starts. The group of the regular expression
    `verdict` is the verdict, where it matches last behind the judge's reasoning; without one, see docs/judges.md.
    """

    model: str = source("served")
    revision: str | None = None
    url: str | list[str] | None = speed(None)
    mode: Literal["pairwise", "grade"] = "pairwise"
    ranking: Literal["all-pairs", "challenger"] = "all-pairs"
    template: str | None = source("file", None)
    system: str | None = None
    format: Literal["chat", "text"] = "chat"
    verdict: str | None = None
    lowest: float = 1.0
    highest: float = 10.0
    temperature: float = 0.0
    max_tokens: int = 1024
    stop: list[str] = field(default_factory=list)
    seed: int = 0
    max_requests: int | None = speed(None)
    engine_args: dict[str, Any] = field(default_factory=dict, metadata={"speed_keys": vllm_options.SPEED})

    batch_size: ClassVar[int] = 1  # no group's verdicts depend on another group's

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, temperature=(0, 100), max_tokens=(1, math.inf), max_requests=(1, math.inf))
        yield from self._host_faults()
        yield from self._mode_faults()
        if "" in self.stop:
            yield "stop", "holds an empty text, which would match everywhere"
        if self.format == "text" and self.system is not None:
            yield "system", "is a message of a chat; with format: text write it into the template"
        if self.template is not None:
            yield from self._template_faults(self.template)

    @property
    def comparable(self) -> bool:
        """Whether a reward says anything about responses to other prompts."""
        return self.mode == "grade"

    @property
    def uses_device(self) -> bool:
        """Never one of a cluster: the judge is a server, of the user or of the process that drives the run."""
        return False

    @property
    def remote(self) -> bool:
        """Whether another machine judges."""
        return self.url is not None

    def requests(self, k: int) -> int:
        """The most requests that a group of k responses takes, retries aside; equal responses are sent once."""
        if self.mode == "grade":
            return k
        return 2 * max(0, k - 1) if self.ranking == "challenger" else k * (k - 1)

    def needed(self, group: Group) -> int:
        """The requests that a group takes, retries aside."""
        return self.requests(len(_texts(group)[0]))

    def identify(self) -> dict[str, str]:
        """What the judge is and is asked, by content; of a model on a server no more than its name is known."""
        from raft.models import hub

        asked = f"sha256:{hashlib.sha256(self.question.encode()).hexdigest()}"
        return {"template": asked} | ({} if self.url else {"model": hub.identity(self._folder())})

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Scores groups in order, each as soon as it and those before it are judged.

        Requests of all the groups are under way together, `max_concurrency` of them at a time.
        """
        yield from items(self._scored(list(groups)))  # leaving it, however that comes, cancels what is under way

    def release(self) -> None:
        """Ends the server of our own where it holds an accelerator that is another's now; the next score starts it."""
        if device.current() == "cuda":
            self.close()

    def close(self) -> None:
        """Ends the server of our own, if there is one."""
        if (own := vars(self).pop("own", None)) is not None:
            own.stop()

    @cached_property
    def own(self) -> vllm_server.Served:
        """The server of our own, started when it is first needed."""
        return vllm_server.Served(self._folder(), self.engine_args)

    @cached_property
    def question(self) -> str:
        """The template."""
        if self.template is not None:
            return text_of(self.template)
        return prompts.PAIRWISE if self.mode == "pairwise" else prompts.GRADE

    def _folder(self) -> Path:
        from raft.models.hub import locate_model

        return locate_model(self.model, self.revision)

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[Asked]:
        """The servers, our own or those at `url`, known to have the model."""
        if self.url is not None:
            async with connected(self, "reward", self.url, self.key, self._meet) as servers:
                yield Asked(servers, self.model)
            return
        if "own" in vars(self) and not self.own.running:
            self.close()
        try:
            async with connected(self, "reward", self.own.url, self.own.key, _own, proxies=False) as servers:
                yield Asked(servers, vllm_server.NAME)
        except UserError:
            if "own" in vars(self) and not self.own.running:
                raise self.own.ended() from None
            raise

    async def _meet(self, server: Server) -> dict[str, Any]:
        return {"vllm": is_vllm(await server.card(self.model))}

    async def _scored(self, block: list[Group]) -> AsyncGenerator[list[Score]]:
        if not block:
            return
        method = self._graded if self.mode == "grade" else self._compared
        async with self._asked() as asked:
            tasks = [asyncio.create_task(method(asked, group)) for group in block]
            try:
                for task in tasks:
                    yield await task
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _graded(self, asked: Asked, group: Group) -> list[Score]:
        texts, places = _texts(group)
        bounds = {"lowest": f"{self.lowest:g}", "highest": f"{self.highest:g}"}
        answers = await together(
            *(self._verdict(asked, group.prompt, (k,), {"response": text, **bounds}) for k, text in enumerate(texts))
        )
        grades = [Score(None, error=reason) if value is None else Score(float(value)) for value, reason in answers]
        return [grades[place] for place in places]

    async def _compared(self, asked: Asked, group: Group) -> list[Score]:
        texts, places = _texts(group)
        if self.ranking == "challenger":
            return verdicts.scores(places, *await self._challenged(asked, group.prompt, texts))
        pairs = list(combinations(range(len(texts)), 2))
        met = await together(*(self._met(asked, group.prompt, texts, *pair) for pair in pairs))
        return verdicts.scores(places, dict(zip(pairs, met, strict=True)))

    async def _challenged(
        self, asked: Asked, prompt: Prompt, texts: list[str]
    ) -> tuple[dict[tuple[int, int], Outcome], int]:
        """The best text so far meets each of the others in turn, and is replaced by any that wins."""
        met, champion = {}, 0
        for challenger in range(1, len(texts)):
            result = await self._met(asked, prompt, texts, challenger, champion)
            met[challenger, champion] = result
            champion = challenger if result.kind == "wins" else champion
        return met, champion

    async def _met(self, asked: Asked, prompt: Prompt, texts: list[str], first: int, other: int) -> Outcome:
        """How a text fares against another, in both orders."""
        orders = ((first, other), (other, first))
        both = await together(
            *(self._verdict(asked, prompt, order, {"a": texts[order[0]], "b": texts[order[1]]}) for order in orders)
        )
        return verdicts.outcome(*both)

    async def _verdict(self, asked: Asked, prompt: Prompt, places: tuple[int, ...], shown: dict[str, str]) -> Verdict:
        """What the judge says of the texts that it is shown; `places` are theirs in the group."""
        what, chat = f"prompt {prompt.id}", self.format == "chat"
        turns = [{**turn, "content": said(turn)} for turn in prompt.messages or []]
        question = prompts.write(self.question, what, prompt=prompt.content, messages=turns, **shown)
        body = self._body(asked, question, derive(self.seed, prompt.id, *places))
        try:
            answer = await asked.servers.ask(what, "chat/completions" if chat else "completions", body)
        except Refused as fault:
            if fault.status not in UNREADABLE and not fault.filtered:
                raise
            return Verdict(None, str(fault))
        completion = completions.read(what, answer, chat, self.max_tokens)
        if completion.ended == "length":  # the last verdict of a cut answer need not be final
            return Verdict(
                None, f"the judge's answer was cut at max_tokens: {self.max_tokens}; raise reward.max_tokens"
            )
        if completion.fault:
            return Verdict(None, f"no verdict: {completion.fault}")
        return self._read(completion.text)

    def _read(self, text: str) -> Verdict:
        """The verdict in an answer, behind what the judge thought before it."""
        if (answer := completions.after_thought(text)) is None:
            return Verdict(None, f"no verdict: the judge thinks to the end of its answer: {excerpt(text)}")
        if self.mode == "pairwise":
            value: str | float | None = verdicts.preference(answer, self.verdict)
        else:
            value = verdicts.grade(answer, self.verdict, self.lowest, self.highest)
        return Verdict(value, "" if value is not None else f"no verdict in: {excerpt(answer)}")

    def _body(self, asked: Asked, question: str, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": asked.model, "n": 1, "seed": seed, "max_tokens": self.max_tokens}
        body |= {"temperature": self.temperature} | ({"stop": self.stop} if self.stop else {})
        body |= NEUTRAL if asked.servers.facts["vllm"] else {}
        if self.format == "text":
            return body | {"prompt": question}
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return body | {"messages": [*system, {"role": "user", "content": question}]}

    def _host_faults(self) -> Iterator[tuple[str, str]]:
        if self.url is None:
            yield from vllm_server.faults(self.engine_args)
            return
        yield from url_faults(self.url)
        for name in ("engine_args", "revision"):
            if getattr(self, name):
                yield name, "is for a model that raft serves itself; remove it, or url"

    def _template_faults(self, template: str) -> Iterator[tuple[str, str]]:
        unread = list(faults_of_text("template", template))
        yield from unread
        if not unread:
            yield from (("template", f"{template}: {fault}") for fault in prompts.faults(self.question, self.mode))

    def _mode_faults(self) -> Iterator[tuple[str, str]]:
        if self.verdict is not None:
            yield from _pattern_faults(self.verdict)
        if self.mode == "pairwise":
            for item in fields(self):
                if item.name in ("lowest", "highest") and getattr(self, item.name) != item.default:
                    yield item.name, "is for mode: grade; remove it"
            return
        if self.ranking != "all-pairs":
            yield "ranking", "is for mode: pairwise; grades are independent"
        if not -math.inf < self.lowest < self.highest < math.inf:
            yield "highest", f"{self.highest:g} is not above lowest: {self.lowest:g}"


def _pattern_faults(pattern: str) -> Iterator[tuple[str, str]]:
    faults = list(pattern_faults("verdict", pattern, r"one group that holds the verdict, such as Score: (\d+)"))
    yield from faults
    if not faults and (count := re.compile(pattern).groups) > 1:
        yield "verdict", f"has {count} groups, but the verdict is one; write the others as (?:...)"


async def _own(server: Server) -> dict[str, Any]:
    """What is known of a server of our own without asking it."""
    return {"vllm": True}


def _texts(group: Group) -> tuple[list[str], list[int]]:
    """The different texts of a group, and which of them each response is: equal texts are judged once."""
    texts = list(dict.fromkeys(response.text for response in group.responses))
    return texts, [texts.index(response.text) for response in group.responses]
