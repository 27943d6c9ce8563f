"""Reward-ranked fine-tuning (RAFT, Dong et al. 2023, arXiv:2304.06767), as one reads it. Read this file first.

`once(artifact, stage, section, **inputs)` makes an artifact only if the same section and inputs have not
made it already. That is why a killed run goes on by the same command: everything below is simply run again.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from raft.config import preflight
from raft.config.jobs import JOB_OUTPUTS, Align, FineTune, TrainReward
from raft.config.recipe import Loaded
from raft.core import timing
from raft.core.user_code import importable_from
from raft.generators.fallback import supported_or_transformers
from raft.models import chat_templates
from raft.pipeline import candidates, stages
from raft.pipeline.evaluate_reward import evaluate_reward
from raft.pipeline.evaluation import Evaluator
from raft.pipeline.label import label
from raft.pipeline.observer import Observer
from raft.pipeline.replay_buffer import replay
from raft.pipeline.sampling import sample
from raft.store import timeline
from raft.store.compression import compress
from raft.store.keys import Artifact
from raft.store.measuring import MaxFailed
from raft.store.mirror import mirrored
from raft.store.replay import continued
from raft.store.runs import Folder, Run
from raft.store.stamps import require


def align(recipe: Align, run: Run, observer: Observer) -> None:
    """job: align. Folder i makes policy i out of policy i - 1, and evaluates policy i."""
    start = run.iteration(0)
    first = policy = start.once("policy", stages.link_model, recipe.policy, probed=True)
    recipe = replace(recipe, generator=supported_or_transformers(recipe.generator, first, observer.on_notice))
    evaluation = Evaluator(recipe, run, first, observer)
    limit = MaxFailed(fraction=recipe.selection.max_failed_fraction)
    pool = run.once("pool.jsonl", stages.collect, recipe.prompts, policy=first, held_out=evaluation.prompts)
    stages.tell_drops(observer, pool, "collect")
    others = candidates.collected(recipe, run, observer, start=first, pool=pool, held_out=evaluation.prompts)
    stages.tell_sizes(observer, recipe, pool, run.iteration(1).is_done("prompts.jsonl"), evaluation.prompts)
    evaluation.examine()
    evaluation.evaluate(start, policy)
    winners: list[Artifact] = []
    for it in run.iterations(recipe.iterations):
        if evaluation.stopped:
            return
        prompts = it.once("prompts.jsonl", stages.draw, recipe.prompts, pool=pool)
        sampled = sample(recipe, it, policy, prompts, others, limit)
        made = {"prompts": prompts, "responses": sampled.responses}
        reference = likelihoods(recipe, it, first, policy, **made)
        rated = {**made, "scores": sampled.scores, "reference": reference}
        selected = it.once("selected.jsonl", stages.select, recipe.selection, **rated)
        learned = with_earlier(recipe, it, selected, winners)
        origin = policy if recipe.train_from == "previous" else first
        policy = it.once("policy", stages.train, recipe.trainer, start=origin, selected=learned)
        evaluation.evaluate(it, policy, **sampled.figures, selected=selected)


def likelihoods(
    recipe: Align, it: Folder, first: Artifact, policy: Artifact, prompts: Artifact, responses: Artifact
) -> Artifact | None:
    """The reference stage, only if the selection shapes its reward by the distance from the first policy.

    A shared iteration has been selected already, perhaps without it.
    """
    if recipe.selection.kl_coef == 0 or it.shared:
        return None
    return it.once("reference.jsonl", stages.logprobs, first, policy=policy, prompts=prompts, responses=responses)


def with_earlier(recipe: Align, it: Folder, selected: Artifact, winners: list[Artifact]) -> Artifact:
    """What is trained on: the winners of an iteration, and those of up to `replay.max_age` iterations before it."""
    earlier = winners[: recipe.replay.max_age]
    winners.insert(0, selected)
    if not earlier or it.shared:
        return selected
    return it.once("replayed.jsonl", replay, recipe.replay, selected=selected, earlier=earlier)


def fine_tune(recipe: FineTune, run: Run, observer: Observer) -> None:
    """job: sft."""
    start = beginning(recipe, run)
    if recipe.examples.is_chat and not run.is_done("examples.jsonl"):
        notice_end(start, observer)
    examples = run.once("examples.jsonl", stages.load_examples, recipe.examples, start=start)
    stages.tell_drops(observer, examples, "load_examples")
    policy = run.once("policy", stages.train, recipe.trainer, start=start, selected=examples)
    stages.tell_drops(observer, policy, "train")
    observer.on_result(policy)


def notice_end(start: Artifact, observer: Observer) -> None:
    """Says so if the chat template ends answers with no token."""
    tokenizer = chat_templates.load_tokenizer(str(start.path))
    if tokenizer.chat_template and not chat_templates.writes_end(tokenizer):
        observer.on_notice(
            f"the chat template writes no token behind an answer, so {tokenizer.eos_token} is taught as its end"
        )


def train_reward(recipe: TrainReward, run: Run, observer: Observer) -> None:
    """job: reward-model."""
    start = beginning(recipe, run)
    pairs = run.once("examples.jsonl", stages.load_examples, recipe.examples, start=start)
    stages.tell_drops(observer, pairs, "load_examples")
    aside, own = (recipe.examples, True) if recipe.evaluation is None else (recipe.evaluation, False)
    held_out = run.once("held_out.jsonl", stages.load_eval_pairs, aside, start=start, held_out=own)
    stages.tell_drops(observer, held_out, "load_eval_pairs")
    made = run.once("reward-model", stages.train, recipe.trainer, start=start, selected=pairs)
    stages.tell_drops(observer, made, "train")
    observer.on_result(
        run.once("metrics.json", stages.evaluate_reward_model, recipe.trainer, made=made, pairs=held_out)
    )


def beginning(recipe: FineTune | TrainReward, run: Run) -> Artifact:
    """The model that a job starts from: one that exists, or a new one with seeded random weights."""
    if recipe.policy.config is None:
        return run.once("start", stages.link_model, recipe.policy, probed=False)
    return run.once("start", stages.init_model, recipe.policy, examples=recipe.examples)


JOBS: dict[str, Callable[..., None]] = {
    "align": align,
    "sft": fine_tune,
    "reward-model": train_reward,
    "evaluate-reward": evaluate_reward,
    "label": label,
}


def run(loaded: Loaded, observer: Observer) -> None:
    """Runs a recipe and those it needs first, each from where it was left."""
    began = timing.BEGAN
    for one in [*loaded.needs, loaded]:
        job = JOBS[one.recipe.job]
        with (
            importable_from(one.path),
            continued(one, partial(job, one.recipe, observer=Observer())) as opened,
            mirrored(opened, one.recipe.store, observer.on_notice),
        ):
            observer.on_run_begin(opened, one)
            for warning in preflight.at_start(one):
                observer.on_warning(warning)
            try:
                job(one.recipe, opened, observer)
            finally:
                timeline.record(opened.folder, began)
            if one.recipe.store.compress:
                compress(opened, opened.folder)
            if one is not loaded:
                made = opened.existing(JOB_OUTPUTS[one.recipe.job][1])
                require(made.place, made.stamp)  # the next recipe reads it by its name
            observer.on_run_end(opened, one)
        began = time.time()
