"""The rows of HH-RLHF with the turn markers of the RAFT paper's reward model: `###Human:` and `###Assistant:`.

prompts: {kind: hh_rlhf:Prompts, dataset: Dahoas/full-hh-rlhf, prompt_column: prompt}
examples: {kind: hh_rlhf:Examples, dataset: Dahoas/full-hh-rlhf, prompt_column: prompt, response: chosen}
"""

from dataclasses import dataclass

from raft.data import examples, prompts
from raft.data.sources import Rows

MARKERS = {"\n\nHuman:": "###Human:", "\n\nAssistant:": "###Assistant:"}


def marked(text: str) -> str:
    """The text with each of the data set's markers replaced."""
    for theirs, ours in MARKERS.items():
        text = text.replace(theirs, ours)
    return text


def _marked(rows: Rows) -> Rows:
    for place, row in rows:
        yield place, {**row, "prompt": marked(row["prompt"])}


@dataclass(frozen=True, kw_only=True)
class Prompts(prompts.Hub):
    """kind: hh_rlhf:Prompts, with the options of kind: hub."""

    def rows(self) -> Rows:
        return _marked(super().rows())


@dataclass(frozen=True, kw_only=True)
class Examples(examples.HubExamples):
    """kind: hh_rlhf:Examples, with the options of kind: hub."""

    def rows(self) -> Rows:
        return _marked(super().rows())
