"""job: evaluate-reward: how often rewards prefer the chosen response of a pair, and the stages that are its own.

As everywhere, `stage(section, output, **inputs)` writes one artifact out of others; see `raft.pipeline.stages`.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from raft.config.jobs import EvaluateReward
from raft.core import records
from raft.core.errors import UserError
from raft.core.records import Drop, Group, Pair
from raft.data.prompts import reasons
from raft.metrics import reward_accuracy
from raft.pipeline import stages
from raft.pipeline.observer import Observer
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact
from raft.store.measuring import refuse_other_prompts
from raft.store.runs import Run


def evaluate_reward(recipe: EvaluateReward, run: Run, observer: Observer) -> None:
    """job: evaluate-reward. Each reward in turn scores both responses of every pair."""
    sets = {name: run.subfolder("sets", name) for name in recipe.sets}
    pairs: dict[str, Artifact] = {}
    groups: dict[str, dict[str, Artifact]] = {}
    for name, place in sets.items():
        aside = getattr(recipe.sets[name], "held_out", 0) > 0
        pairs[name] = place.once("pairs.jsonl", stages.load_examples, recipe.sets[name], held_out=aside)
        stages.tell_drops(observer, pairs[name], "load_examples")
        prompts = place.once("prompts.jsonl", pair_prompts, pairs=pairs[name])
        groups[name] = {
            "prompts": prompts, "responses": place.once("responses.jsonl", pair_responses, pairs=pairs[name])
        }  # fmt: skip
    first = next(iter(groups.values()))["prompts"]
    observer.on_checks(run.once("doctor.jsonl", stages.diagnose, recipe.rewards, prompts=first))
    scores: dict[str, dict[str, Artifact]] = {name: {} for name in sets}
    for title, section in recipe.rewards.items():
        reward = deepcopy(section)  # its models, or those of its members, go with it when the next one comes
        for name, place in sets.items():
            scores[name][title] = place.once(f"scores/{title}.jsonl", stages.score, reward, **groups[name])
    figures = run.once("accuracy.json", accuracies, pairs=pairs, scores=scores)
    run.once("accuracy.md", tabulate, figures=figures)
    observer.on_result(figures)


def pair_prompts(section: None, output: ArtifactWriter, pairs: Artifact) -> None:
    """The prompt of each pair. UserError if there is none."""
    if not pairs.rows:
        listed = pairs.path.with_name("dropped.jsonl")
        why = reasons(map(Drop.of, records.read(listed))) if listed.exists() else "the source is empty"
        raise UserError(f"{pairs.path} holds no pair to compare rewards on: {why}")
    output.write(Pair.of(row).prompt.row() for row in pairs.read())


def pair_responses(section: None, output: ArtifactWriter, pairs: Artifact) -> None:
    """The two responses of each pair as one group, the chosen one first."""
    output.write(Group(one.prompt, [one.chosen, one.rejected]).row() for one in map(Pair.of, pairs.read()))


def accuracies(
    section: None, output: ArtifactWriter, pairs: Mapping[str, Artifact], scores: Mapping[str, Mapping[str, Artifact]]
) -> None:
    """accuracy.json: the figures of each reward on each set, by the name of the set and that of the reward."""
    found: dict[str, dict[str, Any]] = {}
    for name, judged in scores.items():
        refuse_other_prompts(pairs[name], *judged.values())
        lengths, subsets = _described(pairs[name])
        found[name] = {
            reward: reward_accuracy.figures(*_rewards(one), lengths=lengths, subsets=subsets)
            for reward, one in judged.items()
        }
    output.path.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def tabulate(section: None, output: ArtifactWriter, figures: Artifact) -> None:
    """accuracy.md: the rewards side by side."""
    output.path.write_text(
        reward_accuracy.table(json.loads(figures.path.read_text(encoding="utf-8"))), encoding="utf-8"
    )


def _described(pairs: Artifact) -> tuple[np.ndarray, list[str | None]]:
    """How long the two responses of each pair are, [N, 2] in characters, and its subset."""
    both = [((len(one.chosen.text), len(one.rejected.text)), one.subset) for one in map(Pair.of, pairs.read())]
    return np.array([lengths for lengths, _ in both]), [subset for _, subset in both]


def _rewards(scores: Artifact) -> tuple[np.ndarray, np.ndarray]:
    """The rewards of the chosen and of the rejected responses, [N] each, NaN where there is none."""
    rewards = np.array([[one.get("reward") for one in row["scores"]] for row in scores.read()], dtype=float)
    return rewards[:, 0], rewards[:, 1]
