"""A reward model behind a url: conversations as tokens to outputs, by vLLM's own server.

    vllm serve MODEL --runner pooling

The server is sent the tokens of raft's own tokenizer and template, and gives outputs without an activation. Of the
model only config.json and the tokenizer are read here; its head follows from the architecture.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raft.core import protocols
from raft.core.errors import UserError
from raft.core.options import speed
from raft.launch.completions import excerpt, foreign
from raft.launch.openai_client import Connection, Refused, Server, Servers, connected, stoppable, together, url_faults
from raft.models import chat_templates, model_folder, reward_templates
from raft.rewards import doctor, heads
from raft.rewards.runner import Ids, Options, Outputs, described, read_config

START = "start it with: vllm serve MODEL --runner pooling"
APART = doctor.TOLERANCE["bfloat16"]  # of an output of two servers, in proportion to the larger of it and 1
LOADED = ("dtype", "attn_implementation", "max_tokens_per_batch")  # options of a model that raft loads


@dataclass(frozen=True, kw_only=True)
class ServedOptions(Connection, Options):
    """Which model is read, and where.

    With `url`, the address of a vLLM server up to its version (http://127.0.0.1:8000/v1) or a list of them, these
    compute the outputs; `served_model_name` is their name for the model, if it is not `model`. raft then needs only the
    config and the tokenizer of `model`.
    """

    url: str | list[str] | None = speed(None)
    served_model_name: str | None = speed(None)  # in keys by `resolved`, where it means something

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from Options.faults(self)
        yield from Connection.faults(self)
        if self.url is None:
            if self.served_model_name is not None:
                yield "served_model_name", "is a server's name for the model; remove it, or give the server's url"
            return
        yield from url_faults(self.url)
        if self.head not in ("auto", *(head.name for head in heads.SERVED)):
            yield "head", f"{self.head} is not computed by vLLM's server; remove url, and raft loads the model itself"
        for item in fields(self):
            if item.name in LOADED and getattr(self, item.name) != item.default:
                yield item.name, "is for a model that raft loads itself; remove it, or url"

    def check_head(self, folder: Path) -> None:
        if self.url is None:
            super().check_head(folder)
        else:
            heads.choose_served(self.model, self.head, described(folder))

    def resolved(self) -> dict[str, Any]:
        """What follows the device where the recipe leaves it open; of servers only their name for the model."""
        return super().resolved() if self.url is None else {"served": self.served_model_name or True}

    @property
    def remote(self) -> bool:
        """Whether servers compute the outputs."""
        return self.url is not None

    @property
    def uses_device(self) -> bool:
        """Whether a device of this run computes them."""
        return self.url is None

    @property
    def batch_size(self) -> int:
        """Groups that are scored together; servers make their own batches."""
        return protocols.BATCH_SIZE if self.url is None else 1

    @property
    def served_as(self) -> str:
        """The servers' name for the model."""
        return self.served_model_name or self.model


class Served(Outputs):
    """A reward model on the servers of an option `url`, each proved by two texts before it is asked.

    UserError: they do not have it, do not all have the same, or give probabilities in the place of raw outputs.
    """

    def __init__(self, options: ServedOptions, template: str, bos: reward_templates.Bos):
        from raft.models.hub import locate_model

        folder = locate_model(options.model, options.revision, weights=False)
        model_folder.check(folder)
        config = read_config(options.model, folder)
        kind = heads.choose_served(options.model, options.head, config)
        if template == "pair" and getattr(config, "type_vocab_size", 0) > 1:
            raise UserError(
                f"reward.template: pair, and {options.model} tells question and answer apart by the types of their "
                "tokens, which vLLM's server is not told; leave reward.url out, and raft loads the model itself"
            )
        super().__init__(options, kind, config, heads.labels(config, config.num_labels))
        self.options, self.template, self.bos = options, template, bos
        self.positions = model_folder.positions(folder)
        self.tokenizer = chat_templates.load_tokenizer(str(folder))
        self.rows = config.get_text_config().vocab_size
        self.proved: dict[str, np.ndarray] = {}  # by url: the outputs of the two texts

    def outputs(self, groups: Iterable[Iterable[Ids]]) -> dict[Ids, list[float]]:
        """The outputs of rows of tokens, one request for each group."""
        ordered = [rows for group in groups if (rows := sorted(set(group)))]
        if not ordered:
            return {}
        with stoppable() as run:
            return run(self._outputs(ordered))

    @cached_property
    def longest(self) -> int:
        """The tokens that the servers read."""
        with stoppable() as run:
            context = run(self._facts())["max_model_len"]
        return min(value for value in (context, self.positions, 1 << 30) if value is not None)

    async def _outputs(self, groups: list[list[Ids]]) -> dict[Ids, list[float]]:
        async with self._connected() as servers:
            found = await together(*(self._read(servers, rows) for rows in groups))
        pairs = ((rows, each.tolist()) for rows, each in zip(groups, found, strict=True))
        return {row: outputs for rows, each in pairs for row, outputs in zip(rows, each, strict=True)}

    async def _facts(self) -> dict[str, Any]:
        async with self._connected() as servers:
            return servers.facts

    def _connected(self) -> Any:
        assert self.options.url is not None, "without a url the model is in memory"
        return connected(self.options, "reward", self.options.url, self.options.key, self._meet)

    async def _meet(self, server: Server) -> dict[str, Any]:
        option = "model" if self.options.served_model_name is None else "served_model_name"
        context = (await server.card(self.options.served_as, option)).get("max_model_len")
        if context is not None and type(context) is not int:
            raise UserError(f"{server.url} says max_model_len: {excerpt(str(context))}, which is not a whole number")
        if server.url not in self.proved or server.url in self.options.away:
            await self._prove(server, context)
        return {"max_model_len": context}

    async def _prove(self, server: Server, context: int | None) -> None:
        """Asks for the outputs of two texts, raw and not."""
        prompt, *answers = doctor.asked(self.template, 0)
        written = reward_templates.encode_all(self.tokenizer, prompt, answers, self.template, self.bos)
        rows = [tuple(ids[:context]) for ids in written]
        try:
            raw, activated = await together(*(self._read(server, rows, activation) for activation in (False, True)))
        except Refused as fault:
            raise UserError(f"{fault}; {START}") from None
        shown = excerpt(str(raw.round(4).tolist()))
        if not np.isfinite(raw).all():
            raise UserError(f"{server.url} gives outputs that are not finite for a plain question: {shown}; {START}")
        if np.array_equal(raw, activated) and _are_probabilities(raw) and not _is_regression(self.config):
            raise UserError(
                f"{server.url} gives probabilities ({shown}) where raw outputs were asked for (use_activation: false); "
                "a vLLM that knows this option is needed"
            )
        for url, known in self.proved.items():
            if url != server.url and not np.allclose(raw, known, rtol=APART, atol=APART):
                raise UserError(
                    f"reward.url: {server.url} and {url} do not have the same model: of the same two texts one gives "
                    f"{shown}, the other {known.round(4).tolist()}"
                )
        self.proved[server.url] = raw

    async def _read(self, asked: Server | Servers, rows: Sequence[Ids], activation: bool = False) -> np.ndarray:
        """The outputs [rows, names]."""
        body = {"model": self.options.served_as, "task": "classify", "input": rows, "use_activation": activation}
        body |= {"encoding_format": "base64", "embed_dtype": "float32", "endianness": "little"}  # which has NaN too
        answer = await asked.ask("the reward model", "../pooling", body)
        try:
            found = {item["index"]: np.frombuffer(base64.b64decode(item["data"]), "<f4") for item in answer["data"]}
            outputs = np.stack([found[at] for at in range(len(rows))]).astype(float)
            read = answer["usage"]["prompt_tokens"]
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise foreign("the reward model", answer) from None
        if outputs.shape[1] != len(self.names):
            raise UserError(
                f"reward.url: {outputs.shape[1]} outputs of a text, and {self.name} has {len(self.names)} by its "
                "config.json; serve the model that reward.model names"
            )
        if read != sum(map(len, rows)):
            raise UserError(
                f"reward.url: of {sum(map(len, rows))} tokens that were sent {excerpt(str(read))} were read; start the "
                "server without options that cut or pad what it is sent"
            )
        return outputs


def _are_probabilities(outputs: np.ndarray) -> bool:
    return bool(((outputs >= 0) & (outputs <= 1)).all())


def _is_regression(config: Any) -> bool:
    """Whether vLLM has no activation for a model, so that raw outputs are all that it gives."""
    if getattr(config, "problem_type", None) == "regression":
        return True
    own = getattr(config, "sentence_transformers", None) or {}
    named = own.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    return str(named).endswith("Identity")
