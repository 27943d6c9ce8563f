"""job: label: responses judged into preference pairs, and the stages that are its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft.config.jobs import Label
from raft.core.errors import UserError
from raft.core.records import Group, Pair
from raft.data import responses_file
from raft.data.preference_layouts import require_pair
from raft.data.prompts import reasons
from raft.generators.fallback import supported_or_transformers
from raft.models.messages import Malformed
from raft.pipeline import stages
from raft.pipeline.observer import Observer
from raft.pipeline.streaming_scores import streamed
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact
from raft.store.measuring import MaxFailed
from raft.store.runs import Run


def label(recipe: Label, run: Run, observer: Observer) -> None:
    """job: label. Like the first half of an iteration; what is selected are pairs."""
    if recipe.responses is not None:
        prompts = run.once("prompts.jsonl", given_prompts, recipe.responses)
        responses = run.once("responses.jsonl", given_responses, recipe.responses)
    else:
        policy = run.once("start", stages.link_model, recipe.policy, probed=True)
        generator = supported_or_transformers(recipe.generator, policy, observer.on_notice)
        pool = run.once("pool.jsonl", stages.collect, recipe.prompts, policy=policy)
        stages.tell_drops(observer, pool, "collect")
        stages.tell_sizes(observer, recipe, pool, run.is_done("prompts.jsonl"))
        prompts = run.once("prompts.jsonl", stages.draw, recipe.prompts, pool=pool)
        with streamed(run, "responses.jsonl", {"scores.jsonl": recipe.reward}, prompts):
            responses = run.once("responses.jsonl", stages.generate, generator, policy=policy, prompts=prompts)
    limit = MaxFailed(fraction=recipe.selection.max_failed_fraction)
    scores = run.once("scores.jsonl", stages.score, recipe.reward, prompts=prompts, responses=responses, limit=limit)
    selected = run.once(
        "selected.jsonl", stages.select, recipe.selection, prompts=prompts, responses=responses, scores=scores
    )
    without = [drop for drop in stages.drops_of(selected, "select") if drop.index is None]
    if without:
        observer.on_notice(f"{len(without)} of {prompts.rows} prompts have no pair: {reasons(without, 'prompt')}")
    pairs = run.once("pairs.jsonl", publish, selected=selected)
    stages.tell_drops(observer, pairs, "publish")
    observer.on_result(pairs)


def given_prompts(section: Any, output: ArtifactWriter) -> None:
    """The prompts of given responses. UserError if some are messages and some texts: no reader of pairs takes both."""
    kinds = set()

    def alike() -> Iterator[dict[str, Any]]:
        for prompt in (group.prompt for group in _groups(section)):
            kinds.add(prompt.messages is None)
            if len(kinds) == 2:
                raise UserError(
                    f"{section.path}: prompt {prompt.id} is {'messages' if prompt.messages else 'a text'}, and those "
                    "before it are not; give each kind in a file and a job of its own"
                )
            yield prompt.row()

    output.write(alike())


def given_responses(section: Any, output: ArtifactWriter) -> None:
    """The given responses, in the order of their prompts."""
    output.write(group.row() for group in _groups(section))


def publish(section: None, output: ArtifactWriter, selected: Artifact) -> None:
    """The pairs in TRL's format for DPO; `examples: {pairs: columns}` reads them all.

    What it could not read is dropped. UserError if that is all.
    """
    prompts = set()

    def kept() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(selected.read()):
            pair = Pair.of(row)
            try:
                _require_readable(pair)
            except Malformed as fault:
                output.drop(f"{pair.prompt_id}-{number}", None, str(fault))
                continue
            prompts.add(pair.prompt_id)
            yield _plain(pair, number)

    output.write(kept())
    output.rows_in = selected.rows
    output.measured = {"pairs": output.rows, "prompts": len(prompts)}
    if not output.rows:
        reasons = sorted({drop.reason for drop in output.drops})
        raise UserError(f"none of the {selected.rows} pairs can be learned from ({'; '.join(reasons)})")


def _groups(section: Any) -> Iterator[Group]:
    return responses_file.groups(Path(section.path), section.prompts and Path(section.prompts), section.read)


def _require_readable(pair: Pair) -> None:
    if pair.text is not None and not pair.text.strip():
        raise Malformed("the prompt is empty")
    require_pair(pair.chosen.text, pair.rejected.text)


def _plain(pair: Pair, number: int) -> dict[str, Any]:
    """id, prompt, chosen, rejected: texts, or lists of messages where the prompt is a chat, then also its tools."""
    sides = {"chosen": pair.chosen.text, "rejected": pair.rejected.text}
    if pair.messages is None:
        asked: dict[str, Any] = {"prompt": pair.text, **sides}
    else:
        answers = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
        asked = {"prompt": pair.messages, **answers, **({"tools": pair.tools} if pair.tools else {})}
    return {"id": f"{pair.prompt_id}-{number}", **asked}
