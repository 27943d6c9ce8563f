"""What every policy is asked, and what its figures say: the part of the loop that looks and does not learn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raft.config.jobs import Align
from raft.config.recipe import read_resolved
from raft.core.protocols import comparable
from raft.core.run_paths import RunPaths
from raft.metrics import reward_metrics
from raft.metrics.reward_metrics import Gain
from raft.pipeline import stages
from raft.pipeline.observer import Observer
from raft.pipeline.streaming_scores import streamed
from raft.store import measuring
from raft.store.compression import compress
from raft.store.keys import Artifact
from raft.store.runs import Folder, Run, metrics_rows

REWARDS = {"eval": "reward", "gold": "gold reward"}


class Evaluator:
    """The held-out prompts of a run, its examined rewards, and the figures of its policies so far.

    `stopped` says whether they end the run (`alerts.on_warning: stop`). They are those up to the policy that was looked
    at last, so a run that is walked through again stops where it stopped.
    """

    def __init__(self, recipe: Align, run: Run, first: Artifact, observer: Observer):
        self.recipe, self.run, self.first, self.observer = recipe, run, first, observer
        options = recipe.evaluation
        self.prompts = run.once(
            "evaluation.jsonl", stages.sample_eval_prompts, options.prompts or recipe.prompts, policy=first,
            count=options.count, own=options.prompts is not None,
        )  # fmt: skip
        stages.tell_drops(observer, self.prompts, "sample_eval_prompts")
        self.references: Artifact | None = None
        self.examiner = replace(recipe.generator, k=options.k)
        self.first_answers: Artifact | None = None
        self.before: dict[str, Artifact | None] = {"before": None}
        self.figures: list[Artifact] = []
        self.stopped = False

    def examine(self) -> None:
        """Checks the rewards, for which a judge gets the first requests of the run, and reads the references."""
        recipe, run, observer, options = self.recipe, self.run, self.observer, self.recipe.evaluation
        rewards = {"reward": recipe.reward, "evaluation.gold": options.gold}
        known = {name: reward for name, reward in rewards.items() if reward is not None}
        limit = getattr(recipe.generator, "max_tokens", None)
        observer.on_checks(
            run.once("doctor.jsonl", stages.diagnose, known, prompts=self.prompts, policy=self.first, max_tokens=limit)
        )
        if options.gold is None and any(it.evaluation.gold.exists() for it in RunPaths(run.folder).iterations()):
            observer.on_notice(
                "evaluation.gold is not in this recipe, so metrics.jsonl, the curve and the last lines leave out the "
                "gold scores that the run has; give it again, in the recipe or on the command line, and they are back"
            )
        if options.references is not None:
            self.references = run.once("references.jsonl", stages.load_examples, options.references, start=self.first)
            stages.tell_drops(observer, self.references, "load_examples")

    def evaluate(self, it: Folder, policy: Artifact, **training: Artifact) -> None:
        """Measures a policy, and the responses that it was trained on (scores, responses, selected).

        Of several rounds these are the first, and all of them are `all_scores` and `all_responses`.
        """
        made = self._generate_and_score(it, policy) if self._is_due(it) else {}
        more: dict[str, Artifact | None] = {}
        if training:
            more = {"policy": policy, "first_answers": self.first_answers, **self.before, **training}
        else:
            self.first_answers = made.get("answers") or it.existing("evaluation/responses.jsonl")
        self.figures.append(it.once("metrics.json", measuring.measure, **more, **made))
        learned = {"all_before": training["all_scores"]} if "all_scores" in training else {}
        self.before = {"before": training.get("scores"), **learned}
        rows = measuring.rows_of(self.run.folder, self.figures)
        means = measuring.held_out_means(self.run.folder, up_to=it.number)
        known = reward_metrics.on_common_prompts(rows, means)
        alerts = [] if it.shared else self.recipe.alerts.judge(known)  # of another recipe, perhaps another reward
        best = best_policy(self.run, self.run.rebuild_metrics())
        self.run.prune(self.recipe.keep_policies, best)
        self.run.link_best(best)
        self.observer.on_iteration_end(it, alerts)
        if self.run.mirror is not None:
            self.run.mirror.iteration_ended()
        if self.recipe.store.compress:
            compress(self.run, it.folder)
        self.stopped = bool(self.recipe.alerts.stopping(alerts))

    def _generate_and_score(self, it: Folder, policy: Artifact) -> dict[str, Artifact]:
        """The held-out prompts answered by a policy, both rewards of the answers, and how likely texts are under it."""
        options, prompts = self.recipe.evaluation, self.prompts
        own = self.recipe.reward if comparable(self.recipe.reward) else None
        rewards = {"eval": own, "gold": options.gold}
        scored = {name: (measuring.SCORES[name], reward) for name, reward in rewards.items() if reward is not None}
        with streamed(it, "evaluation/responses.jsonl", dict(scored.values()), prompts):
            answers = it.once(
                "evaluation/responses.jsonl", stages.generate, self.examiner, policy=policy, prompts=prompts,
                stream="evaluation",
            )  # fmt: skip
        made = {"answers": answers}
        for name, (file, reward) in scored.items():
            limit = measuring.MaxFailed(
                fraction=self.recipe.selection.max_failed_fraction,
                of=f"held-out answers of policy {it.number}",
                reward=REWARDS[name],
            )
            made[name] = it.once(file, stages.score, reward, prompts=prompts, responses=answers, limit=limit)
        if options.kl and policy is not self.first:
            made["likelihoods"] = it.once(
                "evaluation/likelihoods.jsonl", stages.logprobs, self.first, policy=policy, prompts=prompts,
                responses=answers,
            )  # fmt: skip
        if self.references is not None:
            made["references"] = it.once(
                "evaluation/references.jsonl", stages.reference_logprobs, policy=policy, references=self.references
            )
        return made

    def _is_due(self, it: Folder) -> bool:
        """Whether a policy is evaluated; once measured it stays as it was, whatever `iterations` has become since."""
        if it.shared:
            return False
        if it.is_done("metrics.json"):
            return "answers" in it.existing("metrics.json").stamp["key"]["inputs"]
        last = it.number == self.recipe.iterations
        return it.number % self.recipe.evaluation.every == 0 or last or it.is_done("evaluation/responses.jsonl")


def best_policy(run: Run, rows: Sequence[dict[str, Any]]) -> int:
    """The policy with the highest held-out reward, or gold where `best_by` says so or the reward compares no policies.

    Policies are compared on the prompts that all of them have a reward for. Those of a run that this one branched off
    had perhaps another reward, and are not this run's to delete. `rows` are those of metrics.jsonl.
    """
    own = [row for row in rows if not run.iteration(row["iteration"]).shared]
    key = compared_by(run.folder, own)
    own = [row for row in own if key in row]
    numbers = {row["iteration"] for row in own}
    means = measuring.held_out_means(run.folder)[key]
    own = reward_metrics.on_common_prompts(own, {key: {at: one for at, one in means.items() if at in numbers}})
    return max(own, key=lambda row: row[key], default=rows[-1])["iteration"]


def compared_by(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """The figure of metrics.jsonl by which the policies of a run are compared."""
    recipe = read_resolved(folder) if RunPaths(folder).resolved.exists() else {}
    return reward_metrics.held_out_key(rows, recipe.get("best_by", "reward"))


def gains(run: Run, policy: int | None = None) -> dict[str, tuple[int, Gain]]:
    """A policy, else the last one that is evaluated, and how it compares with the first, by each figure of both.

    Figures are those of metrics.jsonl: scores of a reward that the recipe no longer names may still be there.
    """
    found: dict[str, tuple[int, Gain]] = {}
    measured = {key for row in metrics_rows(run.folder) for key in row}
    for key, means in measuring.held_out_means(run.folder).items():
        if key not in measured:
            continue
        last = max(means, default=0) if policy is None else policy
        same = last > 0 and {0, last} <= means.keys() and len(means[0]) == len(means[last])
        if same and (gain := reward_metrics.gain(means[0], means[last])) is not None:
            found[key] = last, gain
    return found
