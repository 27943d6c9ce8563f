"""Reward-ranked fine-tuning (RAFT, Dong et al. 2023, arXiv:2304.06767), as one reads it. Read this file first.

`once(artifact, stage, section, **inputs)` makes an artifact only if the same section and inputs have not
made it already. That is why a killed run goes on by the same command: everything below is simply run again.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from raft import stages
from raft.imports import beside
from raft.keys import Artifact
from raft.recipe import Align, FineTune, Loaded, TrainReward
from raft.runs import Place, Run


class Told(Protocol):
    """Who is told of the run's steps: the command line prints them, a notebook may draw them."""

    def opened(self, run: Run, loaded: Loaded) -> None:
        """A run begins or goes on."""

    def finished(self, it: Place) -> None:
        """An iteration is complete; 0 is the untouched policy."""

    def measured(self, artifact: Artifact) -> None:
        """A job without iterations has its result."""

    def closed(self, run: Run, loaded: Loaded) -> None:
        """A run is complete."""


def align(recipe: Align, run: Run, told: Told) -> None:
    """job: align. Folder i makes policy i out of policy i - 1, and evaluates policy i."""
    start = run.iteration(0)
    first = policy = start.once("policy", stages.adopt, recipe.policy, probed=True)
    held_out = run.once(
        "evaluation.jsonl",
        stages.hold_out,
        recipe.evaluation.prompts or recipe.prompts,
        policy=first,
        count=recipe.evaluation.count,
    )
    pool = run.once("pool.jsonl", stages.collect, recipe.prompts, policy=first, held_out=held_out)
    examiner = replace(recipe.generator, k=recipe.evaluation.k)
    start.once("metrics.json", stages.measure, **evaluate(recipe, start, examiner, first, held_out))
    told.finished(start)
    for it in run.iterations(recipe.iterations):
        prompts = it.once("prompts.jsonl", stages.draw, recipe.prompts, pool=pool)
        responses = it.once("responses.jsonl", stages.generate, recipe.generator, policy=policy, prompts=prompts)
        scores = it.once("scores.jsonl", stages.score, recipe.reward, prompts=prompts, responses=responses)
        reference = likelihoods(recipe, it, first, policy, prompts, responses)
        selected = it.once(
            "selected.jsonl",
            stages.select,
            recipe.selection,
            prompts=prompts,
            responses=responses,
            scores=scores,
            reference=reference,
        )
        before = policy if recipe.start_from == "previous" else first
        policy = it.once("policy", stages.train, recipe.trainer, start=before, selected=selected)
        made = evaluate(recipe, it, examiner, policy, held_out) if due(recipe, it) else {}
        it.once(
            "metrics.json", stages.measure, scores=scores, responses=responses, selected=selected, policy=policy, **made
        )
        told.finished(it)


def evaluate(recipe: Align, it: Place, examiner: Any, policy: Artifact, held_out: Artifact) -> dict[str, Artifact]:
    """The held-out prompts answered by a policy, and both rewards of the answers."""
    answers = it.once(
        "evaluation/responses.jsonl", stages.generate, examiner, policy=policy, prompts=held_out, stream="evaluation"
    )  # fmt: skip
    made = {"answers": answers}
    if getattr(recipe.reward, "comparable", True):
        made["eval"] = it.once(
            "evaluation/scores.jsonl", stages.score, recipe.reward, prompts=held_out, responses=answers
        )
    if recipe.evaluation.gold is not None:
        made["gold"] = it.once(
            "evaluation/gold.jsonl", stages.score, recipe.evaluation.gold, prompts=held_out, responses=answers
        )
    return made


def likelihoods(
    recipe: Align, it: Place, first: Artifact, policy: Artifact, prompts: Artifact, responses: Artifact
) -> Artifact | None:
    """The reference stage, only if the selection shapes its reward by the distance from the first policy."""
    if recipe.selection.kl == 0:
        return None
    return it.once("reference.jsonl", stages.reference, first, policy=policy, prompts=prompts, responses=responses)


def due(recipe: Align, it: Place) -> bool:
    """Whether this iteration's policy is evaluated; once evaluated it stays so, also when the run is extended."""
    return (
        it.number % recipe.evaluation.every == 0
        or it.number == recipe.iterations
        or it.has("evaluation/responses.jsonl")
    )


def fine_tune(recipe: FineTune, run: Run, told: Told) -> None:
    """job: sft."""
    start = beginning(recipe, run)
    examples = run.once("examples.jsonl", stages.gather, recipe.examples, start=start)
    policy = run.once("policy", stages.train, recipe.trainer, start=start, selected=examples)
    told.measured(policy)


def train_reward(recipe: TrainReward, run: Run, told: Told) -> None:
    """job: reward-model."""
    start = beginning(recipe, run)
    pairs = run.once("examples.jsonl", stages.gather, recipe.examples, start=start)
    held_out = run.once("held_out.jsonl", stages.gather, recipe.examples, start=start, held_out=True)
    made = run.once("reward-model", stages.train, recipe.trainer, start=start, selected=pairs)
    told.measured(run.once("metrics.json", stages.examine, recipe.trainer, made=made, pairs=held_out))


def beginning(recipe: FineTune | TrainReward, run: Run) -> Artifact:
    """The model that a job starts from: one that exists, or a new one with seeded random weights."""
    if recipe.policy.config is None:
        return run.once("start", stages.adopt, recipe.policy, probed=False)
    return run.once("start", stages.invent, recipe.policy, examples=recipe.examples)


JOBS: dict[str, Callable[..., None]] = {"align": align, "sft": fine_tune, "reward-model": train_reward}


def run(loaded: Loaded, told: Told) -> None:
    """Runs a recipe and those it needs first, each from where it was left."""
    for one in [*loaded.needs, loaded]:
        with beside(one.path), Run.opened(one) as opened:
            told.opened(opened, one)
            JOBS[one.recipe.job](one.recipe, opened, told)
            told.closed(opened, one)
