"""Candidates: responses from elsewhere that join the groups of an iteration, reference answers say.

They are scored and selected beside the policy's own responses. In a group they come last, each with the name of its
section of `candidates:`. They say nothing of the policy, so its figures leave them out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from raft.config.jobs import Align
from raft.core.errors import UserError
from raft.core.records import Drop, Prompt
from raft.core.run_paths import CANDIDATES
from raft.data.examples import supervised
from raft.data.prompts import held_out_key
from raft.models.chat_templates import load_tokenizer
from raft.pipeline import stages
from raft.pipeline.observer import Observer
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact
from raft.store.measuring import MaxFailed
from raft.store.runs import Folder, Run

NO_PROMPT = "answers no training prompt"


def load_candidates(
    sources: Mapping[str, Any], output: ArtifactWriter, start: Artifact, pool: Artifact, held_out: Artifact
) -> None:
    """candidates.jsonl: every response that answers a prompt of the pool, by what its prompt says.

    UserError if a source has none.
    """
    tokenizer = load_tokenizer(str(start.path))
    asked, aside = ({_said(Prompt.of(row)) for row in prompts.read()} for prompts in (pool, held_out))
    rows_in = 0

    def kept() -> Iterator[dict[str, Any]]:
        nonlocal rows_in
        for name, source in sources.items():
            joined = 0
            for one in supervised(source, tokenizer, output.seed):
                rows_in += 1
                if isinstance(one, Drop):
                    output.drop(f"{name}/{one.prompt_id}", None, one.reason)
                elif (said := _said(one.prompt)) in asked:
                    joined += 1
                    yield {"said": said, "response": replace(one.response, candidate=name).row()}
                else:
                    reason = stages.HELD_OUT if said in aside else NO_PROMPT
                    output.drop(f"{name}/{one.prompt_id}", None, reason)
            if not joined:
                raise UserError(
                    f"candidates.{name}: none of its rows answers a training prompt; what their prompt columns say has "
                    "to be what `prompts:` says, case and white space aside"
                )

    output.write(kept())
    output.rows_in = rows_in


def _said(prompt: Prompt) -> str:
    """What prompts have in common that the same responses answer."""
    return f"{'text' if prompt.messages is None else 'messages'} {held_out_key(prompt)}"


def join(section: None, output: ArtifactWriter, prompts: Artifact, candidates: Artifact) -> None:
    """The candidates of each prompt of an iteration, in the order of the recipe; there may be none."""
    asked = [(row["id"], _said(Prompt.of(row))) for row in prompts.read()]
    found: dict[str, list[Any]] = {said: [] for _, said in asked}
    for row in candidates.read():
        if row["said"] in found:
            found[row["said"]].append(row["response"])
    output.write({"prompt_id": prompt_id, "responses": found[said]} for prompt_id, said in asked)
    output.rows_in = prompts.rows


def collected(recipe: Align, run: Run, observer: Observer, **inputs: Artifact) -> Artifact | None:
    """The candidates of all training prompts; None where the recipe names no source."""
    if not recipe.candidates:
        return None
    found = run.once("candidates.jsonl", load_candidates, recipe.candidates, **inputs)
    stages.tell_drops(observer, found, "load_candidates")
    return found


def joined(
    recipe: Align, it: Folder, prompts: Artifact, candidates: Artifact | None, limit: MaxFailed
) -> list[Artifact]:
    """The candidates of an iteration and their scores; nothing if there are none."""
    if candidates is None:
        return []
    responses = it.once(f"{CANDIDATES}/responses.jsonl", join, prompts=prompts, candidates=candidates)
    limit = replace(limit, of="candidates")
    made = {"prompts": prompts, "responses": responses}
    return [responses, it.once(f"{CANDIDATES}/scores.jsonl", stages.score, recipe.reward, **made, limit=limit)]
