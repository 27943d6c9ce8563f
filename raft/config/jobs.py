"""What a recipe of each job says: dataclasses, whose fields are the keys, and their faults."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from raft.core import library_options
from raft.core.errors import UserError
from raft.core.options import faults_of_range, faults_of_text, only, section, sections, short, source, suggest
from raft.core.protocols import (
    can_continue,
    can_shard,
    comparable,
    gpus,
    makes,
    makes_pairs,
    needs_logprobs,
    takes_pairs,
    takes_signed,
)
from raft.core.records import Response
from raft.core.registry import DPO, PAIRS, faults_of_types, find, refused
from raft.core.remote_folder import fault_of_url
from raft.launch.local import Local
from raft.metrics.diagnostics import Alerts
from raft.models import reasoning
from raft.models.jinja import is_day

FOLDER_NAME = re.compile(r"(?![.\s])[^/]+(?<!\s)")
HELD_OUT = 256  # prompts that are held out, where a recipe does not say
RANKS = "the reward compares the responses of one prompt and says nothing between prompts"
NO_TREND = f"{RANKS}, so it has no trend in length to take out; remove it"
TRACKERS = ("tensorboard", "trackio", "wandb")
SET_BY_RAFT = {  # options of trackers
    "tensorboard": {"log_dir"}, "wandb": {"id", "resume", "config"}, "trackio": {"resume", "config"},
}  # fmt: skip


def no_policy(trainer: Any) -> str | None:
    """Why a trainer is not one of a job: align."""
    return None if makes(trainer) == "policy" else "this trainer makes a reward model, not a policy"


def no_policy_of_examples(trainer: Any) -> str | None:
    """Why a trainer is not one of a job: sft."""
    if takes_pairs(trainer):
        return f"learns from pairs, and a job: sft from single responses ({DPO})"
    if needs_logprobs(trainer):
        return "learns from the log-probabilities of the policy that generated; examples have none"
    return no_policy(trainer)


def no_reward_model(trainer: Any) -> str | None:
    """Why a trainer is not one of a job: reward-model."""
    if makes(trainer) == "reward-model":
        return None
    way = f" ({DPO})" if takes_pairs(trainer) else ""
    return f"makes a policy, and a job: reward-model a reward model{way}"


def no_pairs(selection: Any) -> str | None:
    """Why a selection is not one of a job: label."""
    return None if makes_pairs(selection) else "makes no pairs"


@dataclass(frozen=True, kw_only=True)
class Start:
    """The model that a job starts from: a hub id or a folder (`model`), what another recipe makes (`recipe`),
    or a new one with seeded random weights (`config`, as transformers' AutoConfig takes it, and a byte-level
    tokenizer of `vocab_size` pieces trained on the job's own texts)."""

    model: str | None = source("model", None)
    revision: str | None = None
    config: dict[str, Any] | None = None
    vocab_size: int = 1024
    chat_template: str | None = source("file", None)

    def faults(self) -> Iterator[tuple[str, str]]:
        if (self.model is None) == (self.config is None):
            yield (
                "model",
                "give exactly one of model (hub id or folder), recipe (another recipe), config (random weights)",
            )
        if self.config is not None and "model_type" not in self.config:
            yield "config", "has no model_type; name the architecture, for instance model_type: llama"
        if self.chat_template is not None and self.config is None:
            yield "chat_template", "is for a new model (config); a model that exists brings its own"
        if self.chat_template is not None:
            yield from faults_of_text("chat_template", self.chat_template)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out prompts, answered by every policy with the same seeds. Selection never sees the reward `gold`.

    `count` is HELD_OUT where it is left out, or a quarter of the different prompts if that is less (all of `prompts`).
    `kl` measures how far each policy has come from the first one. `references` are responses that somebody wrote, and
    whose perplexity each policy is asked for.
    """

    prompts: Any = section("prompts", None)
    count: int | None = None
    k: int = 4
    every: int = 1
    gold: Any = section("reward", None)
    kl: bool = True
    references: Any = section("examples", None)

    @staticmethod
    def fitting(usable: int, own: bool) -> int:
        """How many of the usable prompts are held out without `count`; `own`: `prompts` are for this alone."""
        return max(1, min(HELD_OUT, usable if own else usable // 4))

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, count=(1, float("inf")), k=(1, 4096), every=(1, float("inf")))
        yield from only_responses(self.references, "references", "perplexity is of single responses")


def only_responses(examples: Any, key: str, why: str) -> Iterator[tuple[str, str]]:
    """The faults of an examples section of which every row is to be one response."""
    if getattr(examples, "pairs", None) is not None:
        yield f"{key}.pairs", f"{why}; remove it, and name their column in response"
    if getattr(examples, "held_out", 0):
        yield f"{key}.held_out", "all its rows are used; remove it, and name a file of those rows alone"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Which winners of earlier iterations are learned from again: the best of each prompt so far.

    `max_age` is how many iterations back they may come from; 0: none.
    """

    max_age: int = only("replay", 0)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, max_age=(0, float("inf")))


@dataclass(frozen=True, kw_only=True)
class Store:
    """How a run is kept. `mirror` is a URL for fsspec, such as s3://bucket/prefix.

    What is finished is uploaded into the folder of the run's name there, and `raft pull URL/NAME` brings it back. With
    `compress` the responses of finished iterations are compressed (responses.jsonl.zst), without losing a bit.
    """

    mirror: str | None = None
    compress: bool = False

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.mirror is not None and (fault := fault_of_url(self.mirror)) is not None:
            yield "mirror", fault


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every recipe has. `variables` are for its own interpolations: `${variables.data}/prompts.jsonl`.

    `date` (2026-01-31) is what chat templates write as today's; without it that is the day on which the run begins.
    """

    name: str
    seed: int = 0
    date: str | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    launch: Any = section("launch", Local())
    store: Store = field(default_factory=Store)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from refused(self)
        if self.date is not None and not is_day(self.date):
            yield "date", f"{self.date!r} is no day; write it as 2026-01-31"
        if not FOLDER_NAME.fullmatch(self.name) or not self.name.isprintable() or len(self.name.encode()) > 200:
            yield "name", f"{short(self.name)} is no folder name; letters, digits, - and _ are safe, 200 bytes at most"
        each = getattr(self.launch, "gpus_per_worker", None)
        if each is not None and (wanted := gpus(getattr(self, "generator", None))) > each:
            yield (
                "launch.gpus_per_worker",
                f"{each}, but generator.engine_args.tensor_parallel_size splits the policy over {wanted}; give as many",
            )
        if getattr(self.launch, "shard", None) == "fsdp" and hasattr(self, "trainer") and not can_shard(self.trainer):
            yield (
                "launch.shard",
                "fsdp shards the weights of full fine-tuning, not of this trainer; allowed: auto, none",
            )


@dataclass(frozen=True, kw_only=True)
class Align(Job):
    """job: align. The loop: draw prompts, generate, score, select, train; again.

    `keep_policies` says which policies stay on disk beside the first: the `last`, the last and the `best`, or `all`.
    `best_by` says by which reward of the held-out answers a policy is the best.
    """

    job: Literal["align"] = "align"
    policy: Start
    iterations: int = 5
    train_from: Literal["previous", "first"] = "previous"
    prompts: Any = section("prompts")
    generator: Any = section("generator")
    candidates: dict[str, Any] = sections("examples", default_factory=dict)
    sampling: Any = section("sampling", default_factory=lambda: find("sampling", "fixed")())
    reward: Any = section("reward")
    selection: Any = section("selection")
    trainer: Any = section("trainer", refuses=no_policy)
    replay: Replay = field(default_factory=Replay)
    evaluation: Evaluation = field(default_factory=Evaluation)
    alerts: Alerts = field(default_factory=Alerts)
    keep_policies: Literal["last", "best", "all"] = "best"
    best_by: Literal["reward", "gold"] = "reward"
    report_to: str | list[Any] = field(default_factory=list)

    @property
    def trackers(self) -> list[Any]:
        """The trackers, each by its name or with its options."""
        return [self.report_to] if isinstance(self.report_to, str) else self.report_to

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, iterations=(1, float("inf")))
        yield from self._faults_of_trackers()
        if self.policy.config is not None:
            yield (
                "policy.config",
                "random weights have learned nothing; make a policy with a job: sft recipe and name that",
            )
        if self.best_by == "gold" and self.evaluation.gold is None:
            yield "best_by", "gold, but there is none; name a reward in evaluation.gold, or use best_by: reward"
        if no_policy(self.trainer) is None:
            yield from self._faults_of_objective()
        if not comparable(self.reward):
            yield from self._faults_of_ranks()
        if getattr(self.sampling, "several", True):
            yield from self._faults_of_rounds()
        if self.candidates:
            yield from self._faults_of_candidates()
        if self.replay.max_age and (why := self._unlike_earlier()):
            yield "replay.max_age", f"{why}; remove it"

    def _faults_of_objective(self) -> Iterator[tuple[str, str]]:
        """What a selection makes and its trainer cannot learn from."""
        if makes_pairs(self.selection) and not takes_pairs(self.trainer):
            yield "selection.kind", f"makes preference pairs, but this trainer learns from single responses; {PAIRS}"
        elif takes_pairs(self.trainer) and not makes_pairs(self.selection):
            yield (
                "selection.kind",
                "picks single responses, but this trainer learns from pairs; allowed: all-pairs, best-vs-worst",
            )
        elif getattr(self.selection, "signed", False) and not takes_signed(self.trainer):
            yield (
                "selection.kind",
                "gives negative weights, and this trainer can only make responses more likely; allowed for the "
                "trainer: policy-gradient",
            )

    def _unlike_earlier(self) -> str | None:
        """Why winners of earlier iterations cannot be compared with those of this one."""
        if takes_pairs(self.trainer):
            return "keeps single responses, but this trainer learns from pairs"
        if getattr(self.selection, "signed", False):
            return "keeps the best responses, but selection.kind gives negative weights to others"
        if not comparable(self.reward):
            return "the reward compares the responses of one prompt and iteration, not those of several"
        return None

    def _faults_of_trackers(self) -> Iterator[tuple[str, str]]:
        for index, one in enumerate(self.trackers):
            name = one.get("name") if isinstance(one, dict) else one
            if name not in TRACKERS:
                yield f"report_to[{index}]", f"{name!r} is not a tracker; {suggest(str(name), list(TRACKERS))}"
            elif find_spec(str(name)) is None:
                yield f"report_to[{index}]", f"{name} is not installed here: pip install {name}"
            elif isinstance(one, dict):
                yield from self._faults_of_tracker(f"report_to[{index}]", str(name), one)

    def _faults_of_tracker(self, key: str, name: str, given: dict[Any, Any]) -> Iterator[tuple[str, str]]:
        options = {str(option): value for option, value in given.items() if option != "name"}
        try:
            known = library_options.ask(name)["tracker"] if options else {}
        except UserError:  # it cannot be asked; a tracker that fails is reported by the run, and does not stop it
            return
        own = SET_BY_RAFT[name]
        for option in options if known else ():
            if option in own:
                yield f"{key}.{option}", "raft sets this itself; leave it out"
            elif option not in known:
                yield f"{key}.{option}", f"unknown option of {name}; {suggest(option, [*(known.keys() - own)])}"
        yield from faults_of_types(key, options, known)

    def _faults_of_ranks(self) -> Iterator[tuple[str, str]]:
        """What does not go with a reward that compares only the responses of one prompt."""
        if getattr(self.selection, "across_prompts", False):
            yield "selection.kind", f"{RANKS}; allowed: best-of-k, softmax, random"
        if getattr(self.selection, "kl_coef", 0):
            yield "selection.kl_coef", f"{RANKS}, so a distance cannot be subtracted from it; remove it"
        if getattr(self.selection, "length_control", False):
            yield "selection.length_control", NO_TREND
        if getattr(self.selection, "by_order", False) and getattr(self.selection, "minimum", None) is not None:
            yield "selection.minimum", f"{RANKS}; remove it"
        if self.evaluation.gold is None:
            yield "evaluation.gold", f"{RANKS}, so it cannot compare policies; name a reward that can"

    def _faults_of_candidates(self) -> Iterator[tuple[str, str]]:
        """What does not go with responses that the policy did not make."""
        for name, examples in self.candidates.items():
            yield from only_responses(examples, f"candidates.{name}", "a candidate is a single response")
            forms = {part.is_chat for _, part in getattr(self.prompts, "parts", list)()}
            if forms and getattr(examples, "is_chat", None) not in (None, *forms):
                wanted = "chat" if forms == {True} else "text"
                yield f"candidates.{name}.format", f"prompts are read with format: {wanted}; give the same here"
        if not comparable(self.reward):
            yield "candidates", "the reward compares all responses of a prompt, and these are scored alone; remove it"
        if getattr(self.selection, "needs_draws", False):
            yield (
                "selection.kind",
                "reads a group as draws from the policy, which candidates are not; allowed: all but advantage and "
                "expected-best",
            )
        if needs_logprobs(self.trainer):
            yield (
                "trainer.kind",
                "learns from the log-probabilities of the policy that generated, and candidates have none; allowed: "
                "distillation, dpo, kto, sft",
            )

    def _faults_of_rounds(self) -> Iterator[tuple[str, str]]:
        """What does not go with groups that grow in rounds, as long as their rewards ask for it."""
        most, filters = getattr(self.sampling, "most", None), getattr(self.selection, "filters", [])
        if most is not None and most != self.generator.k:
            yield (
                "generator.k",
                f"{self.generator.k}, but sampling gives a prompt up to {most} responses; set k: {most}",
            )
        if not can_continue(self.generator):
            yield (
                "sampling.kind",
                "this generator might draw the same responses again in each round; one that draws with "
                "prompt.seed(seed, k) says can_continue = True (raft/core/protocols.py); allowed: fixed",
            )
        if not comparable(self.reward):
            yield "sampling.kind", "the reward compares all responses of a prompt, so they come at once; allowed: fixed"
        if not getattr(self.selection, "takes_uneven", False):
            yield (
                "selection.kind",
                "needs whole groups, and those of sampling.kind end where a response is good enough; allowed: "
                "best-of-k, which is the same for both",
            )
        if "tied" in filters:
            yield (
                "selection.filters",
                "tied needs whole groups, and those of sampling.kind end where a response is good enough; remove it: "
                "selection.minimum leaves out prompts whose best response is not good enough",
            )
        if getattr(self.selection, "kl_coef", 0):
            yield (
                "selection.kl_coef",
                "the distance is measured when all rounds are over, so they would go by another reward than selection; "
                "remove it",
            )
        if getattr(self.selection, "length_control", False):
            yield (
                "selection.length_control",
                "the trend in length is that of whole groups, so rounds would go by another reward than selection; "
                "remove it",
            )


@dataclass(frozen=True, kw_only=True)
class FineTune(Job):
    """job: sft. A policy fine-tuned on prompts with given responses."""

    job: Literal["sft"] = "sft"
    policy: Start
    examples: Any = section("examples")
    trainer: Any = section("trainer", refuses=no_policy_of_examples)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        if getattr(self.examples, "pairs", None) is not None:
            yield (
                "examples.pairs",
                "a job: sft learns from single responses; remove it, or use job: reward-model; for DPO see docs/dpo.md",
            )
        if getattr(self.examples, "held_out", 0):
            yield (
                "examples.held_out",
                "has no effect here but that these rows are not learned from: a job: sft evaluates nothing; remove it "
                "(job: reward-model and job: evaluate-reward evaluate on held-out rows)",
            )


@dataclass(frozen=True, kw_only=True)
class TrainReward(Job):
    """job: reward-model. A reward model trained on pairs of responses, the better one first.

    It is evaluated on the pairs of `evaluation`, or on those that `examples.held_out` sets aside.
    """

    job: Literal["reward-model"] = "reward-model"
    policy: Start
    examples: Any = section("examples")
    evaluation: Any = section("examples", None)
    trainer: Any = section("trainer", refuses=no_reward_model)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        if getattr(self.examples, "pairs", "columns") is None:
            yield (
                "examples.pairs",
                "say where pairs come from; allowed: columns (chosen and rejected), from_labels, or the layout "
                "of a published data set, such as hh-rlhf",
            )
        if self.evaluation is not None and getattr(self.examples, "held_out", False):
            yield "evaluation", "give evaluation or examples.held_out, not both"
        if self.evaluation is not None and getattr(self.evaluation, "pairs", None) is None:
            yield "evaluation.pairs", "say where pairs come from, as in examples"
        if getattr(self.evaluation, "held_out", False):
            yield "evaluation.held_out", "all of evaluation is evaluated on; remove it, or use examples.held_out"


@dataclass(frozen=True, kw_only=True)
class EvaluateReward(Job):
    """job: evaluate-reward. How often each of several rewards prefers the chosen response, on each of several sets."""

    job: Literal["evaluate-reward"] = "evaluate-reward"
    rewards: dict[str, Any] = sections("reward")
    sets: dict[str, Any] = sections("examples")

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        for option, named in (("rewards", self.rewards), ("sets", self.sets)):
            if len({name.casefold() for name in named}) < len(named):
                yield option, "two names differ only in case, which some file systems ignore"
        for name, one in self.sets.items():
            if getattr(one, "pairs", "columns") is None:
                yield f"sets.{name}.pairs", "say how to get pairs, such as columns (chosen and rejected)"


@dataclass(frozen=True, kw_only=True)
class Given:
    """Responses that somebody else made: rows as `raft score` takes them, or a run's responses.jsonl and prompts.

    With `reasoning: split` the thought before an answer is taken off; `reasoning_marks` as in `generator`.
    """

    path: str = source("file")
    prompts: str | None = source("file", None)
    reasoning: Literal["split", "keep"] = "split"
    reasoning_marks: list[str] | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from reasoning.faults(self.reasoning, self.reasoning_marks)

    def read(self, response: Response) -> Response:
        """A response as it is scored."""
        return response if self.reasoning == "keep" else reasoning.without_thought(response, self.reasoning_marks)


@dataclass(frozen=True, kw_only=True)
class Label(Job):
    """job: label. Responses, generated or given, judged into preference pairs that a reward-model job learns from.

    `responses` names those that exist. Without it, `policy`, `prompts` and `generator` must all be given.
    """

    job: Literal["label"] = "label"
    responses: Given | None = None
    policy: Start | None = None
    prompts: Any = section("prompts", None)
    generator: Any = section("generator", None)
    reward: Any = section("reward")
    selection: Any = section("selection", refuses=no_pairs)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        sources = {"policy": self.policy, "prompts": self.prompts, "generator": self.generator}
        for name, value in sources.items():
            if self.responses is not None and value is not None:
                yield name, "the responses are given, so none are generated; remove it, or remove responses"
            if self.responses is None and value is None:
                yield name, "missing; give policy, prompts and generator, or responses that exist"
        if getattr(self.selection, "kl_coef", 0):
            yield "selection.kl_coef", "this job has no first policy to measure the distance from; remove it"
        if getattr(self.selection, "length_control", False) and not comparable(self.reward):
            yield "selection.length_control", NO_TREND
        if self.policy is not None and self.policy.config is not None:
            yield "policy.config", "random weights have learned nothing; name an existing policy"
        parts = [] if self.prompts is None else self.prompts.parts()
        if len({part.is_chat for _, part in parts}) == 2:
            yield (
                "prompts",
                "some parts are chats and some texts, which cannot share a file of pairs; use one job for each",
            )


JOBS: dict[str, type] = {
    "label": Label,
    "align": Align,
    "sft": FineTune,
    "reward-model": TrainReward,
    "evaluate-reward": EvaluateReward,
}
# what a job leaves inside its run for other recipes, and the key of theirs that names it
JOB_OUTPUTS = {"sft": ("model", "policy"), "reward-model": ("model", "reward-model"), "label": ("path", "pairs.jsonl")}
# the artifact that a job without iterations makes last
JOB_RESULTS = {
    "sft": "policy", "reward-model": "metrics.json", "label": "pairs.jsonl", "evaluate-reward": "accuracy.md",
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "align": {"selection": {"kind": "best-of-k"}, "trainer": {"kind": "sft"}, "generator": {"kind": "vllm"}},
    "label": {"selection": {"kind": "best-vs-worst"}},
}
# what may change when a finished or stopped run goes on: it is in no artifact's key
MUTABLE_KEYS = ("name", "launch", "store", "iterations", "keep_policies", "best_by", "report_to", "alerts")
