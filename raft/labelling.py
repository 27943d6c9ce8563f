"""The stages of job: label that are its own: responses that are given, and pairs as other programs read them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft import given
from raft.keys import Artifact
from raft.records import Group, Pair
from raft.runs import Output


def prompts(section: Any, output: Output) -> None:
    """The prompts of given responses."""
    output.write(group.prompt.row() for group in _groups(section))


def responses(section: Any, output: Output) -> None:
    """The given responses, in the order of their prompts."""
    output.write(group.row() for group in _groups(section))


def publish(section: None, output: Output, selected: Artifact) -> None:
    """The pairs as plain rows: id, prompt or messages, chosen, rejected; `examples: {pairs: given}` reads them."""
    output.write(_plain(Pair.of(row), number) for number, row in enumerate(selected.read()))
    output.measured = {"pairs": output.rows, "prompts": len({row["prompt_id"] for row in selected.read()})}


def _groups(section: Any) -> Iterator[Group]:
    return given.groups(Path(section.path), section.prompts and Path(section.prompts))


def _plain(pair: Pair, number: int) -> dict[str, Any]:
    prompt = {"messages": pair.messages} if pair.messages is not None else {"prompt": pair.text}
    return {"id": f"{pair.prompt_id}-{number}", **prompt, "chosen": pair.chosen.text, "rejected": pair.rejected.text}
