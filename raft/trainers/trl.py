"""Preference optimisation on pairs of responses, with the losses of TRL's DPOTrainer and KTOTrainer.

    reward of a response = beta * (log p(response | prompt) - log p_ref(response | prompt))
    kind: dpo, sigmoid: mean over the pairs of a step of -log sigmoid(reward of chosen - reward of rejected)
    kind: kto: mean over the responses of a step of 1 - sigmoid(reward - z) if chosen, 1 - sigmoid(z - reward) if not

The reference p_ref is the policy that training starts from; what it says is computed once, before the first step. TRL
computes the loss of each forward pass, from the tokens that were generated; all else is hf_trainer's. So a step is
exactly `batch_size` pairs of a keyed shuffle, and no loss depends on the number of forward passes.

DPO: Rafailov et al. 2023, arXiv:2305.18290. KTO: Ethayarajh et al. 2024, arXiv:2402.01306.
"""

import copy
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from raft.core import device as devices
from raft.core import library_options, ranks, signals
from raft.core.errors import UserError, install_extra
from raft.core.options import faults_of_range
from raft.core.protocols import Advance, Dropped
from raft.core.records import Pair
from raft.core.timing import part
from raft.models import chat_templates, packing, weight_check
from raft.trainers import hf_trainer, microbatches
from raft.trainers.batches import Order, Texts, unlearnable
from raft.trainers.hf_trainer import Batch, TrainerOptions

NO_TRL = f"TRL is not installed here; {install_extra('trl')}"
RESERVED_ARGS = re.compile(
    hf_trainer.RESERVED_ARGS.pattern
    + r"|beta|loss_type|max_length|truncation_mode|pad.*|precompute_.*|dataset_.*|model_init_kwargs|trust_remote_code"
    r"|activation_offloading|sync_ref_model|ref_model_.*|use_liger_kernel|liger_kernel_config"
)
LOSSES = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}  # what reads label_smoothing
WHOLE = {"aot", "aot_unpaired", "sft"}  # what is no mean over the pairs of a step
NUMBERS = {  # what is measured of a step, and what TRL calls it
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "kl": "kl",
}


@dataclass(frozen=True, kw_only=True)
class PairTrainer(TrainerOptions):
    """What both kinds share. `batch_size` counts pairs; where a side of a pair is too long, the pair is left out."""

    takes_pairs: ClassVar[bool] = True
    reserved_args: ClassVar[re.Pattern[str]] = RESERVED_ARGS

    learning_rate: float = 1.0e-6
    num_train_epochs: int = 1
    packing: bool = False
    beta: float = 0.1  # the higher, the nearer the policy stays to the reference

    @property
    def can_shard(self) -> bool:
        """Whether weights can be sharded: TRL reads those of the output layer by itself."""
        return False

    def faults(self) -> Iterator[tuple[str, str]]:
        if find_spec("trl") is None:
            yield "kind", NO_TRL
            return
        yield from super().faults()
        if not 0 < self.beta < np.inf:
            yield "beta", f"{self.beta!r} is out of range; it must be above 0, and is mostly 0.01 to 0.5"
        if self.packing:
            yield "packing", "TRL's losses read padded rows; remove it"

    def check(self) -> None:
        """UserError if transformers, torch's optimiser or TRL refuses `args`; without any, nothing is imported.

        TRL looks at some of them only when it computes a loss, so it computes one.
        """
        super().check()
        if self.args:
            with hf_trainer.refused("args"), tempfile.TemporaryDirectory() as folder:
                _try(self, Path(folder))

    def losses(self, *given: Any) -> "Losses":
        """What a trainer of TRL computes, with these options, of what `Losses` is given."""
        raise NotImplementedError

    def fit(
        self, start: Path, examples: Iterable[Pair], out: Path, seed: int, advance: Advance, dropped: Dropped,
        checkpoints: Path | None,
    ) -> dict[str, float]:  # fmt: skip
        """Writes the trained policy, its tokenizer and its probe into `out`; see protocols.Trainer."""
        out.mkdir(parents=True, exist_ok=True)
        tokenizer = chat_templates.load_tokenizer(str(start))
        model = hf_trainer.ready(self, hf_trainer.load(self, start, seed))
        chat_templates.check_rows(tokenizer, model, str(start))
        pairs, limit = Pairs(out), microbatches.longest(self, model)
        pairs.read(tokenizer, examples, limit, dropped)
        texts = pairs.excerpts()
        before = weight_check.of_engines(model, texts)
        order = Order(len(pairs), self.batch_size, self.num_train_epochs, seed)
        losses = self.losses(model, tokenizer, pairs, limit[0], out, seed)
        with part("reference"), devices.fits("the reference", hf_trainer.ADVICE):
            losses.look(model, order)
        model = hf_trainer.adapt(self, model, "CAUSAL_LM")
        _require_plain_head(model)
        steps = hf_trainer.Steps(order, losses.batches)
        measured = hf_trainer.fit(self, model, steps, losses, out, seed, advance, checkpoints, losses.begin)
        if hf_trainer.save_policy(self, model, tokenizer, start, out, texts, before) is None:
            return {}
        return {**hf_trainer.summary(measured, order), "train/tokens": pairs.learned}


@dataclass(frozen=True, kw_only=True)
class DPO(PairTrainer):
    """Direct preference optimisation: the losses of TRL's DPOTrainer, by their names there.

    `label_smoothing` is the share of pairs that are thought to be the wrong way round. Several losses are added up,
    with `args: {loss_weights: [...]}`.
    """

    loss_type: LOSSES | list[LOSSES] = "sigmoid"
    label_smoothing: float = 0.0

    @property
    def loss_types(self) -> list[str]:
        """The losses by name."""
        return [self.loss_type] if isinstance(self.loss_type, str) else [*self.loss_type]

    def known_args(self) -> dict[str, list[str]]:
        return {**super().known_args(), **library_options.ask("trl")["dpo"]}

    def training_arguments(self, **settings: Any) -> Any:
        from trl import DPOConfig

        return DPOConfig(
            **settings, beta=self.beta, loss_type=self.loss_types, label_smoothing=self.label_smoothing,
            precompute_ref_log_probs=True,
        )  # fmt: skip

    def losses(self, *given: Any) -> "Losses":
        return DPOLosses(self, *given)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, label_smoothing=(0, 0.5))
        named = set(self.loss_types)
        if not named:
            yield "loss_type", "names no loss; the usual one is sigmoid"
        if self.label_smoothing and not named & SMOOTHED:
            yield "label_smoothing", f"only {', '.join(sorted(SMOOTHED))} read it; remove it, or set loss_type: robust"
        if "exo_pair" in named and not self.label_smoothing:
            yield "label_smoothing", "exo_pair needs one above 0, such as 0.001"
        if "robust" in named and self.label_smoothing == 0.5:
            yield "label_smoothing", "0.5 says that the pairs tell nothing, and robust divides by 0; lower it"
        if named & WHOLE and self.max_tokens_per_microbatch is not None:
            yield (
                "max_tokens_per_microbatch",
                f"{', '.join(sorted(named & WHOLE))} takes a step in one forward pass; remove it, and lower batch_size "
                "if memory is too small",
            )


@dataclass(frozen=True, kw_only=True)
class KTO(PairTrainer):
    """Kahneman-Tversky optimisation: the loss of TRL's KTOTrainer; chosen responses are desirable, rejected ones not.

    z is beta times the distance from the reference, estimated on prompts of the step with the responses to others, as
    TRL does; there, and nowhere else, a response is cut at the limit.
    """

    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @property
    def estimates(self) -> bool:
        """Whether the loss has the distance z in it."""
        return self.loss_type == "kto"

    def known_args(self) -> dict[str, list[str]]:
        return {**super().known_args(), **library_options.ask("trl")["kto"]}

    def training_arguments(self, **settings: Any) -> Any:
        from trl import KTOConfig

        return KTOConfig(
            **settings, beta=self.beta, loss_type=self.loss_type, desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight, precompute_ref_log_probs=True,
        )  # fmt: skip

    def losses(self, *given: Any) -> "Losses":
        return KTOLosses(self, *given)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, desirable_weight=(0, np.inf), undesirable_weight=(0, np.inf))
        if self.estimates and self.batch_size == 1:
            yield "batch_size", "1: the distance is estimated with responses to other prompts of the step; raise it"


def _require_plain_head(model: Any) -> None:
    """UserError if an adapter is on the output layer."""
    if type(model.get_output_embeddings()).__module__.startswith("peft."):
        raise UserError(
            "trainer.lora: TRL multiplies by the weights of the output layer by itself, so an adapter on it would not "
            "be trained; take it out of target_modules and modules_to_save"
        )


class Pairs:
    """Pairs as tokens on the disk: of each the prompt, the chosen and the rejected response."""

    def __init__(self, folder: Path):
        self.texts = Texts(folder)

    def __len__(self) -> int:
        return len(self.texts) // 3

    def read(self, tokenizer: Any, pairs: Iterable[Pair], limit: tuple[int, str], dropped: Dropped) -> None:
        """Keeps what can be learned and names the rest through `dropped`. UserError if nothing is left."""
        reasons = set()
        for pair in pairs:
            prompt = chat_templates.encode_prompt(tokenizer, pair.prompt)
            sides = {
                name: chat_templates.trained_tokens(tokenizer, side, pair.messages is not None)
                for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected))
            }
            why = {
                name: chat_templates.unembedded(tokenizer, [*prompt, *side]) or unlearnable(prompt, side, limit)
                for name, side in sides.items()
            }
            reason = next((f"{name}: {fault}" for name, fault in why.items() if fault is not None), None)
            if reason is None:
                for text in (prompt, *sides.values()):
                    self.texts.append(text)
            else:
                dropped(pair.prompt_id, pair.index, reason)
                reasons.add(reason)
        if not len(self):
            raise UserError(
                f"there is no pair to train on ({'; '.join(sorted(reasons)[:3]) or 'none was given'}); "
                "raise trainer.max_length, or loosen the selection"
            )

    def prompt(self, pair: int) -> list[int]:
        """The tokens of a pair's prompt."""
        return self.texts[3 * pair].tolist()

    def response(self, place: int) -> list[int]:
        """The tokens of a response; those of pair p are at the places 2p (chosen) and 2p + 1 (rejected)."""
        return self.texts[_text(place)].tolist()

    def length(self, pair: int, place: int) -> int:
        """Tokens of a pair's prompt with a response."""
        return sum(self.texts.lengths([3 * pair, _text(place)]))

    def sizes(self, members: Sequence[int] | np.ndarray) -> list[int]:
        """Tokens of each of these pairs in a batch, the padding of its shorter side included."""
        return [2 * max(self.length(pair, 2 * pair + side) for side in (0, 1)) for pair in members]

    @property
    def learned(self) -> int:
        """Response tokens in all."""
        return sum(self.texts.lengths([_text(place) for place in range(2 * len(self))]))

    def excerpts(self) -> list[list[int]]:
        """The ends of the first chosen texts: what the policy is probed with."""
        few = range(min(len(self), weight_check.COUNT))
        return [[*self.prompt(pair), *self.response(2 * pair)][-weight_check.LENGTH :] for pair in few]


def _text(place: int) -> int:
    return 3 * (place // 2) + 1 + place % 2


class Quiet:
    """What a trainer of TRL would do when it is made, but raft does by itself or not at all."""

    def _prepare_dataset(self, dataset: Any, *ignored: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *ignored: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        pass


Place = tuple[int, int]  # the pair of a prompt, and the place of a response, mostly one of that pair


class Losses(ABC):
    """What TRL computes of pairs: first what the reference says of them, then the loss of each forward pass.

    Called, it is hf_trainer's `Loss`; `begin` is its `Before`.
    """

    def __init__(
        self, options: PairTrainer, model: Any, tokenizer: Any, pairs: Pairs, limit: int, out: Path, seed: int
    ):  # fmt: skip
        self.options, self.pairs = options, pairs
        self.capacity = options.resolved()["max_tokens_per_microbatch"]
        self.trl = _made(self.kind(), options, model, tokenizer, limit, out, seed)
        self.reference: dict[Place, float] = {}  # log-probabilities, in nats

    @abstractmethod
    def kind(self) -> Any:
        """The class of TRL's trainer."""

    @abstractmethod
    def look(self, model: Any, order: Order) -> None:
        """Notes what the model, which is the reference still, says of the responses."""

    @abstractmethod
    def batches(self, members: np.ndarray) -> list[Batch]:
        """The forward passes of a step of these pairs."""

    def begin(self, model: Any, batches: list[Batch]) -> None:  # noqa: B027 (DPO needs nothing)
        """Called with this rank's batches when a step begins."""

    def __call__(self, model: Any, batch: Batch) -> dict[str, Any]:
        """A batch's share of the step's loss, and of the numbers that TRL logs."""
        share = batch["share"]
        loss = self.trl.compute_loss(model, {name: batch[name] for name in batch if name not in ("share", "others")})
        said: dict[str, float] = {}
        self.trl.log(said)
        self.trl.state.log_history.clear()
        numbers = {name: said[theirs] for name, theirs in NUMBERS.items() if theirs in said}
        return {"loss": loss * share, **{name: value * share for name, value in numbers.items()}}

    def collated(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows padded as TRL pads them."""
        return dict(self.trl.data_collator(rows))

    def asked(
        self, items: Sequence[Any], sizes: list[int], ask: Callable[[list[Any]], dict[Place, float]]
    ) -> dict[Place, float]:  # fmt: skip
        """What `ask` says of all items, in forward passes of like lengths, which the ranks share."""
        found: dict[Place, float] = {}
        for places in ranks.own(packing.rows(sizes, self.capacity)):
            signals.check()
            with hf_trainer.looking(self.options):
                found |= ask([items[place] for place in places])
        return ranks.merged(found)


class DPOLosses(Losses):
    """What DPOTrainer computes."""

    options: DPO

    def kind(self) -> Any:
        from trl import DPOTrainer

        class Trainer(Quiet, DPOTrainer):
            pass

        return Trainer

    def look(self, model: Any, order: Order) -> None:
        def ask(members: list[int]) -> dict[Place, float]:
            batch = hf_trainer.tensors(self.collated([self._row(pair) for pair in members]), hf_trainer.device())
            sides = self.trl.compute_ref_log_probs(model, batch)
            return {
                (pair, 2 * pair + side): logprob
                for side, logprobs in enumerate(sides)
                for pair, logprob in zip(members, logprobs.tolist(), strict=True)
            }

        every = range(len(self.pairs))
        self.reference = self.asked(every, self.pairs.sizes(every), ask)

    def batches(self, members: np.ndarray) -> list[Batch]:
        whole = WHOLE & set(self.options.loss_types)
        split = [range(len(members))] if whole else packing.rows(self.pairs.sizes(members), self.capacity)
        return [
            {**self.collated([self._row(members[at]) for at in places]), "share": len(places) / len(members)}
            for places in split
        ]

    def _row(self, pair: int) -> dict[str, Any]:
        prompt, sides = self.pairs.prompt(pair), [self.pairs.response(2 * pair + side) for side in (0, 1)]
        row = {"prompt_ids": prompt, "chosen_ids": sides[0], "rejected_ids": sides[1]}
        if not self.reference:
            return row
        logprobs = [self.reference[pair, 2 * pair + side] for side in (0, 1)]
        return {**row, "ref_chosen_logps": logprobs[0], "ref_rejected_logps": logprobs[1]}


class KTOLosses(Losses):
    """What KTOTrainer computes. The distance of a step is that of all its forward passes together."""

    options: KTO

    def kind(self) -> Any:
        from trl import KTOTrainer

        class Trainer(Quiet, KTOTrainer):
            distance: Any = None  # of the step, in nats

            def _compute_kl_logps(self, model: Any, batch: Any) -> Any:
                """Less those of the reference, which `_row` says are 0, they are the distance."""
                return None if self.distance is None else self.distance.expand(len(batch["label"]))

        return Trainer

    def look(self, model: Any, order: Order) -> None:
        def ask(places: list[Place]) -> dict[Place, float]:
            batch = self.collated([self._row(pair, place, reference=0.0) for pair, place in places])
            logprobs = _logprobs(model, hf_trainer.tensors(batch, hf_trainer.device()))
            return dict(zip(places, logprobs.tolist(), strict=True))

        wanted = {(place // 2, place) for place in range(2 * len(self.pairs))}
        if self.options.estimates:
            wanted.update(place for number in range(len(order)) for place in _others(order.step(number)))
        places = sorted(wanted)
        self.reference = self.asked(places, [self.pairs.length(*place) for place in places], ask)

    def batches(self, members: np.ndarray) -> list[Batch]:
        others = _others(members)
        return [
            self._batch(members[places], [others[at] for at in (*places, *(len(members) + place for place in places))],
                len(places) / len(members))
            for places in packing.rows(self.pairs.sizes(members), self.capacity)
        ]  # fmt: skip

    def _batch(self, members: np.ndarray, others: list[Place], share: float) -> Batch:
        own = self.collated([self._row(*place) for place in _own(members)])
        more = {"others": self.collated([self._row(*place) for place in others])} if self.options.estimates else {}
        return {**own, **more, "share": share}

    def _row(self, pair: int, place: int, reference: float | None = None) -> dict[str, Any]:
        return {
            "prompt_ids": self.pairs.prompt(pair),
            "completion_ids": self.pairs.response(place),
            "label": place % 2 == 0,
            "ref_logps": self.reference[pair, place] if reference is None else reference,
            "ref_KL_logps": 0.0,
        }

    def begin(self, model: Any, batches: list[Batch]) -> None:
        """Estimates the distance on the whole step."""
        import torch

        if not self.options.estimates:
            return
        model.train()
        distance = 0.0
        with torch.no_grad():
            for batch in batches:
                others = hf_trainer.tensors(batch["others"], hf_trainer.device())
                distance += float((_logprobs(model, others) - others["ref_logps"]).mean() * batch["share"])
        self.trl.distance = torch.tensor(ranks.total({"": distance})[""], device=hf_trainer.device())


def _own(members: np.ndarray) -> list[Place]:
    """The responses of pairs with their own prompts: all that are chosen, then all that are rejected."""
    return [(pair, 2 * pair + side) for side in (0, 1) for pair in members.tolist()]


def _others(members: np.ndarray) -> list[Place]:
    """The same prompts, each with the response that stands before its own; the first with the last."""
    own = _own(members)
    return [(pair, place) for (pair, _), (_, place) in zip(own, [own[-1], *own[:-1]], strict=True)]


def _logprobs(model: Any, batch: Batch) -> Any:
    """Log-probabilities of whole responses [rows], by the output layer that TRL has put on the model."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs.sum(1)


def _made(kind: Any, options: PairTrainer, model: Any, tokenizer: Any, limit: int, out: Path, seed: int) -> Any:
    """A trainer of TRL. It gives the model an output layer that computes log-probabilities, and turns off dropout.

    What it writes into the configs of the model (a padding token, no cache) is taken out again.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    arguments = hf_trainer.arguments_of(options, 1, out, seed)
    arguments.per_device_train_batch_size = 2  # KTOTrainer refuses 1; the batches are ours
    arguments.max_length = limit
    own = copy.deepcopy(tokenizer)
    own.pad_token = own.convert_ids_to_tokens(0)  # the mask hides it
    configs = [vars(one) for one in (model.config, model.config.get_text_config(), model.generation_config)]
    kept = [dict(config) for config in configs]
    rows = Dataset.from_dict({"prompt_ids": [[0]]})  # it looks for images there
    with hf_trainer.refused("args"), devices.deterministic_switches_kept():
        made = kind(model=model, args=arguments, processing_class=own, train_dataset=rows)
    for config, before in zip(configs, kept, strict=True):
        config.update(before)
    made.remove_callback(PrinterCallback)
    return made


def _try(options: PairTrainer, folder: Path) -> None:
    """Computes a loss of made-up pairs with a model of one layer."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    free = {name: value for name, value in options.args.items() if name != "router_aux_loss_coef"}  # of experts alone
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4, **sizes)).to(hf_trainer.device())
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    pairs, order = Pairs(folder), Order(2, 2, 1, 0)
    for text in ([0], [1], [0, 1]) * 2:
        pairs.texts.append(text)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="a")
    losses = replace(options, args=free).losses(model, tokenizer, pairs, 8, folder, 0)
    losses.look(model, order)
    batches = [hf_trainer.tensors(batch, hf_trainer.device()) for batch in losses.batches(order.step(0))]
    losses.begin(model, batches)
    for batch in batches:
        losses(model, batch)
