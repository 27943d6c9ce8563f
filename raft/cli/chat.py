"""`raft chat`: typed prompts answered by policy 0 and another policy of a run, as the run itself would ask them.

transformers generates, whatever the run used. The same prompt and seed give the same answers, and both policies draw
with the same random numbers.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from raft.config.recipe import read_resolved
from raft.core import logs, signals
from raft.core.errors import UserError
from raft.core.records import Policy, Prompt, Response
from raft.core.registry import build
from raft.core.seeds import derive
from raft.core.terminal import complain, is_unicode, say
from raft.data.prompts import Reading
from raft.generators.sampling import Sampling
from raft.generators.transformers import Transformers
from raft.models import jinja
from raft.pipeline import policies
from raft.pipeline.policies import Which
from raft.store import branch, runs

TYPED = "typed"  # the id of every prompt; the draws of an answer depend on it
FRAME = ("messages", "format", "system", "chat_template_kwargs", "prefix", "suffix")  # what stands around any text


class Speaker(NamedTuple):
    """A policy in a chat, and what its answers are headed by."""

    title: str
    policy: Policy
    generator: Transformers


def chat(folder: Path, text: str | None = None, which: Which = "best", seed: int | None = None) -> None:
    """Prints the answers to a prompt, or to each line of standard input."""
    folder = branch.existing(folder)
    about, recipe = runs.about(folder), read_resolved(folder)
    logs.silence_libraries()
    with jinja.dated(recipe.get("date") or about.get("date") or jinja.today()):
        present = speakers(folder, recipe, which)
        if len(present) == 1:
            title = f"the {which} policy" if isinstance(which, str) else "the policy that was asked for"
            why = policies.none_better(folder, which) or f"{title} is policy 0, the base model itself"
            say(f"one answer: {why}")
        seed = derive(about.get("seed", 0) if seed is None else seed, "chat")
        if text is not None:
            answer(present, asked(recipe, text), seed)
            return
        for line in lines():
            try:
                answer(present, asked(recipe, line), seed)
            except UserError as fault:
                complain(f"raft: {fault}")


def speakers(folder: Path, recipe: Mapping[str, Any], which: Which) -> list[Speaker]:
    """Policy 0 and another one; only one if they are the same."""
    present = policies.before_and_after(folder, recipe.get("job", "align"), which)
    return [
        Speaker(title, Policy(artifact.path, artifact.path / "probe.json"), generator(recipe))
        for title, artifact in present.items()
    ]


def generator(recipe: Mapping[str, Any]) -> Transformers:
    """A generator with the sampling of a run, whichever kind of generator that had; it draws one answer."""
    section = recipe.get("generator") or {}
    known = Transformers if section.get("kind") == "transformers" else Sampling
    given = {item.name: section[item.name] for item in fields(known) if item.name in section}
    faults: list[Any] = []
    made = build(Transformers, {**given, "k": 1}, "generator", faults)
    if faults:
        raise UserError(f"the resolved recipe of the run: {faults[0].key}: {faults[0].message}")
    return made


def asked(recipe: Mapping[str, Any], text: str) -> Prompt:
    """A typed text as the run reads a row of its prompts (of a mixture, of its first part): as a chat, or framed."""
    if not is_unicode(text):
        raise UserError("the prompt is not UTF-8; set the terminal's encoding to UTF-8")
    if not text.strip():
        raise UserError("the prompt is empty; give a text")
    section = recipe.get("prompts") or recipe.get("examples") or {}
    section = (section.get("sources") or [section])[0]
    reading = Reading(**{name: section[name] for name in FRAME if section.get(name) is not None})
    row = {"prompt": text} if reading.messages is None else {reading.messages: [{"role": "user", "content": text}]}
    return reading.prompt(row, TYPED)


def answer(present: list[Speaker], prompt: Prompt, seed: int) -> None:
    """Prints what each policy answers."""
    for one in present:
        signals.check()
        (group,) = one.generator.generate(one.policy, [prompt], seed)
        say(f"{one.title}: {written(group.responses[0])}")


def written(response: Response) -> str:
    """An answer as it is shown, with a mark if the limit cut it."""
    cut = " [cut]" if response.finish_reason == "length" else ""
    return f"{response.text.strip()}{cut}" if response.unanswered is None else f"({response.unanswered})"


def lines() -> Iterator[str]:
    """The lines of standard input that hold something, until its end."""
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if at_terminal:
        say("type a prompt; Ctrl-D ends")
        with suppress(ImportError):
            import readline  # noqa: F401  # input() then edits lines and remembers them
    while sys.stdin is not None:
        try:
            line = input("> " if at_terminal else "")
        except EOFError:
            if at_terminal:
                say()
            return
        signals.check()
        if line.strip():
            yield line
