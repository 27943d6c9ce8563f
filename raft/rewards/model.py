"""kind: model. A model that reads a whole conversation; one of its outputs is the reward.

    reward: {kind: model, model: some/reward-model, template: chat, max_length: 2048}
    reward: {kind: model, model: some/reward-model, url: "http://127.0.0.1:8000/v1"}    # served by vLLM

The head is found by the architecture in config.json and by the tensors that are really in the checkpoint; where the
two disagree the model is refused. The reward is read at the last token of the conversation by its position, not by its
id, so a response that ends in the padding token is read where it ends.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from raft.core.errors import RowError, UserError
from raft.core.options import faults_of_range, source
from raft.core.records import Group, Prompt, Score
from raft.core.timing import part
from raft.models import reward_templates
from raft.rewards.runner import Ids, RewardModelRunner
from raft.rewards.served import Served, ServedOptions


@dataclass(frozen=True, kw_only=True)
class RewardModel(ServedOptions):
    """A reward model of any head in `raft.rewards.heads`. All its outputs are in the `parts` of a score.

    `template` is one of `models.reward_templates`, or a Jinja file; `bos` the rule for the first token. A conversation
    of more than `max_length` tokens, or more than the model reads, is not scored; with `truncation: prompt` the oldest
    part of its prompt goes first, and the part `cut_tokens` says how many tokens went.
    """

    template: str = source("template", "chat")
    bos: Literal["auto", "one", "none"] = "auto"
    max_length: int = 2048
    truncation: Literal["none", "prompt"] = "none"

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, max_length=(1, math.inf))
        yield from reward_templates.template_faults(self.template)

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        """Scores all the groups as one block: the rewards of a block do not depend on the order within it."""
        block = list(groups)
        encoded = [self._encoded(group) for group in block]
        outputs = self.runner.outputs(
            [row[0] for row in group if not isinstance(row, str) and self.fault(row[0]) is None] for group in encoded
        )
        for group in encoded:
            yield [Score(None, error=row) if isinstance(row, str) else self._score(*row, outputs) for row in group]

    def release(self) -> None:
        if isinstance(runner := vars(self).get("runner"), RewardModelRunner):
            runner.release()

    @cached_property
    def runner(self) -> RewardModelRunner | Served:
        """The model in memory, loaded when it is first needed, or on its servers."""
        runner: RewardModelRunner | Served
        with part("load"):
            runner = (
                Served(self, self.template, self.bos)
                if self.remote
                else RewardModelRunner(self, pairs=self.template == "pair")
            )
        if self.template == "chat" and not runner.tokenizer.chat_template:
            raise UserError(f"reward.template: {reward_templates.no_template(self.model)}")
        return runner

    @property
    def limit(self) -> int:
        """The longest conversation in tokens."""
        return min(self.max_length, self.runner.longest)

    def encode(self, prompt: Prompt, response: str) -> tuple[Ids, int]:
        """The tokens that are read, and how many of the prompt were cut off before them."""
        return self.encode_all(prompt, [response])[0]

    def encode_all(self, prompt: Prompt, responses: Sequence[str]) -> list[tuple[Ids, int]]:
        """As `encode`, for several responses to one prompt."""
        tokenizer = self.runner.tokenizer
        whole = reward_templates.encode_all(tokenizer, prompt, responses, self.template, self.bos)
        return [self._cut(prompt, response, ids) for response, ids in zip(responses, whole, strict=True)]

    def _encoded(self, group: Group) -> list[tuple[Ids, int] | str]:
        """As `encode_all`, with the reason in the place of a conversation that cannot be written."""
        texts = [one.text for one in group.responses]
        try:
            return list(self.encode_all(group.prompt, texts))
        except RowError as fault:
            return [str(fault)] if len(texts) == 1 else [
                one for response in group.responses for one in self._encoded(Group(group.prompt, [response]))
            ]  # fmt: skip

    def _cut(self, prompt: Prompt, response: str, ids: list[int]) -> tuple[Ids, int]:
        if len(ids) <= self.limit or self.truncation == "none":
            return tuple(ids), 0
        kept = reward_templates.cut(self.runner.tokenizer, prompt, response, self.template, self.limit, self.bos)
        return tuple(kept), len(ids) - len(kept)

    def fault(self, ids: Ids) -> str | None:
        """Why a conversation of these tokens cannot be scored, None where it can."""
        if not ids:
            return "0 tokens, nothing to read"
        if len(ids) > self.max_length:
            return f"{len(ids)} tokens, more than reward.max_length"
        if len(ids) > self.limit:
            return f"{len(ids)} tokens, more than the {self.limit} that the reward model reads"
        return self.runner.fault(ids)

    def _score(self, ids: Ids, cut: int, outputs: dict[Ids, list[float]]) -> Score:
        if (fault := self.fault(ids)) is not None:
            return Score(None, error=fault)
        found, names = outputs[ids], self.runner.names
        if not all(map(math.isfinite, found)):
            name, value = next((n, v) for n, v in zip(names, found, strict=True) if not math.isfinite(v))
            return Score(None, error=f"the reward model gave {value} as {name}, not a finite number")
        chosen = self.runner.chosen if names[self.runner.chosen] == "reward" else None
        parts = {name: value for at, (name, value) in enumerate(zip(names, found, strict=True)) if at != chosen}
        return Score(self.runner.reward(found), {**parts, "cut_tokens": float(cut)} if cut else parts)
