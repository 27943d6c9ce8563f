"""Reward heads: how a reward is read from the hidden states of a language model, one class for each published head.

A head names its recipe key, the architectures in config.json that have it, the tensor by which a checkpoint shows it,
and all tensors that are its own; `read` is its formula. `HEADS` lists them: the choices of `reward.head`, the search of
`choose` and the table in docs/reward-models.md follow it.

Heads work in float32 on the hidden state after the final norm: bfloat16 cannot tell near rewards apart.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Self

from raft.core.errors import UserError
from raft.models.checkpoint import Checkpoint

if TYPE_CHECKING:  # a recipe asks for the names of heads, and must not wait for torch
    from torch import Tensor

HELPSTEER = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]  # attributes, where there are five
ARMO = [  # the objectives of ArmoRM, in the order of its card
    "helpsteer-helpfulness", "helpsteer-correctness", "helpsteer-coherence", "helpsteer-complexity",
    "helpsteer-verbosity", "ultrafeedback-overall_score", "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness", "ultrafeedback-honesty", "ultrafeedback-helpfulness", "beavertails-is_safe",
    "prometheus-score", "argilla-overall_quality", "argilla-judge_lm", "code-complexity", "code-style",
    "code-explanation", "code-instruction-following", "code-readability",
]  # fmt: skip
ENDS_OF_QUESTION = {  # where the gate of a QRM reads: the beginning of the last of these
    "llama": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma2": "<end_of_turn>\n<start_of_turn>model\n",
}


class Head:
    """Hidden states to outputs. `names` are the outputs' names; `weights` are its tensors by their checkpoint names."""

    name: ClassVar[str]  # in a recipe: reward.head
    architectures: ClassVar[tuple[str, ...]] = ()  # in config.json; without any, the tensors alone decide
    signature: ClassVar[
        str
    ]  # the pattern of a tensor that shows the head; of two that match, the first in HEADS counts
    tensors: ClassVar[str]  # the pattern of the tensors that are its own

    names: Sequence[str] = ("reward",)
    width: int = 0  # how many outputs the tensors give

    def __init__(self, weights: "dict[str, Tensor]", config: Any, tokenizer: Any):
        self.weights = {name: tensor.float() for name, tensor in weights.items()}
        self.used: set[str] = set()  # the tensors that the formula reads

    @classmethod
    def load(cls, config: Any, checkpoint: Checkpoint, tokenizer: Any, label: Any) -> Self:
        """The head with its tensors from a checkpoint. KeyError: one is missing."""
        own = checkpoint.tensors(name for name in checkpoint.names if re.fullmatch(cls.tensors, name))
        return cls(own, config, tokenizer)

    def use(self, name: str) -> str:
        """The name of a tensor that the formula reads. KeyError: the head does not have it."""
        if name not in self.weights:
            raise KeyError(name)
        self.used.add(name)
        return name

    def to(self, device: str) -> None:
        """Moves the tensors to a device."""
        self.weights = {name: tensor.to(device) for name, tensor in self.weights.items()}

    def linear(self, hidden: "Tensor", weight: str, bias: str | None = None) -> "Tensor":
        """A linear map by the tensors of these names."""
        from torch.nn.functional import linear

        return linear(hidden, self.weights[weight], None if bias is None else self.weights[bias])

    def fault(self, ids: Sequence[int]) -> str | None:
        """Why this head cannot read a conversation, None where it can."""
        return None

    def places(self, ids: Sequence[int]) -> list[int]:
        """The positions of the tokens whose hidden states are read, the last token at the end."""
        return [len(ids) - 1]

    def __call__(self, hidden: "Tensor") -> "Tensor":
        """The outputs [rows, names] of the hidden states at these positions [rows, positions, width]."""
        return self.read(hidden[:, -1].float())

    def read(self, last: "Tensor") -> "Tensor":
        """The outputs of the hidden states of the last tokens [rows, width]."""
        raise NotImplementedError


class Layers(Head):
    """Linear maps with a ReLU between each two of them."""

    prefixes: ClassVar[tuple[str, ...]]  # of the names of each map's weight and bias
    bias: ClassVar[bool] = False
    labelled: ClassVar[bool] = False  # whether config.json names the outputs, and counts them

    def __init__(self, weights: "dict[str, Tensor]", config: Any, tokenizer: Any):
        super().__init__(weights, config, tokenizer)
        self.layers = [
            (self.use(f"{prefix}.weight"), self.use(f"{prefix}.bias") if self.bias else None)
            for prefix in self.maps(config)
        ]
        self.width = len(self.weights[self.layers[-1][0]])
        if self.labelled:
            self.names = labels(config, self.width)

    def maps(self, config: Any) -> Sequence[str]:
        """The prefixes of the linear maps, in order."""
        return self.prefixes

    def read(self, last: "Tensor") -> "Tensor":
        for number, (weight, bias) in enumerate(self.layers):
            last = self.linear(last.relu() if number else last, weight, bias)
        return last


class Classifier(Layers):
    """A linear map of the last token, as transformers' ...ForSequenceClassification have it.

    Of an encoder (BERT and its kin), which has another head, transformers reads the outputs (`rewards.runner`).
    """

    name = "classifier"
    architectures: ClassVar[tuple[str, ...]] = ("*ForSequenceClassification",)
    signature = r"score\.weight|classifier\.|classification_head\."
    tensors = r"score\.weight"
    prefixes = ("score",)
    labelled = True


class Attributes(Classifier):
    """A linear map with a bias, an output for each attribute."""

    name = "attributes"
    architectures = ("LlamaForDecisionTreeRewardModel", "Gemma2ForDecisionTreeRewardModel")
    signature = r"score\.bias"
    tensors = r"score\.(weight|bias)"
    bias = True


class Regression(Layers):
    """A linear map of the last token under a name of its own."""

    name = "regression"
    architectures = ("LlamaRewardModel",)
    signature = tensors = r"regression_head\.weight"
    prefixes = ("regression_head",)


class MLP(Layers):
    """Two layers."""

    name = "mlp"
    architectures = ("INFORMForSequenceClassification",)
    signature = r"score\.0\.weight"
    tensors = r"score\.\d+\.(weight|bias)"
    prefixes = ("score.0", "score.2")
    bias = labelled = True


class Value(Layers):
    """A value head: one layer, or the several that config.json counts."""

    name = "value"
    signature = r"v_head\.summary"
    tensors = r"v_head\.summary\..*"
    bias = True

    def maps(self, config: Any) -> Sequence[str]:
        if "v_head.summary.weight" in self.weights:
            return ["v_head.summary"]
        inner = int(getattr(config, "vhead_num_layers", 1))
        return [f"v_head.summary.{place}" for place in range(0, 2 * (1 + inner), 2)]


class Token(Layers):
    """The logit of one vocabulary id: a row of the output embeddings."""

    name = "token"
    signature = r"(?!)"  # every language model has an lm_head; only the recipe can say that it is a reward
    tensors = r"lm_head\.weight"
    prefixes = ("token",)

    @classmethod
    def load(cls, config: Any, checkpoint: Checkpoint, tokenizer: Any, label: Any) -> Self:
        tied = next((name for name in checkpoint.names if name.endswith("embed_tokens.weight")), "")
        name = "lm_head.weight" if "lm_head.weight" in checkpoint.names else tied
        if int(label or 0) >= (size := checkpoint.shape(name)[0]):
            raise UserError(f"reward.label: {label} is not a token; the vocabulary has 0 to {size - 1}")
        return cls({"token.weight": checkpoint.row(name, int(label or 0))}, config, tokenizer)


class Gated(Head):
    """Several outputs, weighted by a gate: an MLP that reads where the question ends, so by the prompt alone.

    Its last layer goes through a softmax at a temperature. The first output is the reward, then come the weighted ones.
    """

    architectures: ClassVar[tuple[str, ...]] = ("LlamaForRewardModelWithGating",)  # QRM took over ArmoRM's name
    tensors = r"regression_layer\.weight|gating\..*|reward_transform_matrix"

    def __init__(self, weights: "dict[str, Tensor]", config: Any, tokenizer: Any):
        super().__init__(weights, config, tokenizer)
        if config.model_type not in ENDS_OF_QUESTION:
            allowed = ", ".join(ENDS_OF_QUESTION)
            raise UserError(f"a gated head on {config.model_type}: raft does not know its template; known: {allowed}")
        self.mark = ENDS_OF_QUESTION[config.model_type]
        self.end_of_question: list[int] = tokenizer(self.mark, add_special_tokens=False)["input_ids"]
        self.use("regression_layer.weight")
        self.use("gating.logit_scale")
        self.temperature = float(getattr(config, "gating_temperature", 1.0 if config.model_type == "gemma2" else 10.0))
        self.hidden = int(getattr(config, "gating_n_hidden", 3))

    def fault(self, ids: Sequence[int]) -> str | None:
        if self._gate_at(ids) is not None:
            return None
        return (
            f"no question ends in it: the gate reads where {self.mark!r} begins; use the tokenizer and chat template "
            "that the model was published with"
        )

    def places(self, ids: Sequence[int]) -> list[int]:
        at = self._gate_at(ids)
        assert at is not None, "what cannot be read was asked for by `fault`"
        return [at, *super().places(ids)]

    def __call__(self, hidden: "Tensor") -> "Tensor":
        import torch

        scale = self.weights["gating.logit_scale"]
        scaled = (self.gate(hidden[:, 0].float()) / self.temperature).softmax(1) * scale
        outputs = super().__call__(hidden)
        return torch.cat([(scaled * self.transformed(outputs)).sum(1, keepdim=True), outputs], 1)

    def gate(self, h: "Tensor") -> "Tensor":
        """The last layer of the gate [rows, outputs] of the states where questions end [rows, width]."""
        raise NotImplementedError

    def transformed(self, outputs: "Tensor") -> "Tensor":
        """The outputs that the gate weighs [rows, outputs]."""
        matrix = self.weights.get("reward_transform_matrix")
        return outputs if matrix is None else outputs @ matrix

    def _gate_at(self, ids: Sequence[int]) -> int | None:
        mark = self.end_of_question
        places = range(len(ids) - len(mark), -1, -1)
        return next((at for at in places if list(ids[at : at + len(mark)]) == mark), None)


class Quantile(Gated):
    """QRM (arXiv:2409.10164): each attribute's mean over its quantiles. The gate has batch normalisation after each
    ReLU, in eval mode."""

    name = "quantile"
    architectures = (*Gated.architectures, "Gemma2ForQuantileSequenceClassification")
    signature = r"gating\.layers\.\d+\.running_mean"

    def __init__(self, weights: "dict[str, Tensor]", config: Any, tokenizer: Any):
        super().__init__(weights, config, tokenizer)
        outputs, self.quantiles = len(weights["regression_layer.weight"]), int(getattr(config, "num_quantiles", 19))
        if outputs % self.quantiles:
            raise UserError(f"regression_layer.weight has {outputs} rows, no multiple of {self.quantiles} quantiles")
        self.names = ["reward", *attributes(config, outputs // self.quantiles)]
        self.width = len(self.names)
        self.maps, self.norms = self._gate_layers()
        self.used = {*weights}  # checked here, layer by layer

    def _gate_layers(self) -> tuple[list[str], list[str]]:
        """The names of the gate's linear maps, and of the normalisations between them."""
        names = {name.rpartition(".")[0] for name in self.weights if name.startswith("gating.layers.")}
        places = sorted(names, key=lambda name: int(name.split(".")[2]))
        maps = [name for name in places if f"{name}.running_mean" not in self.weights]
        norms = [name for name in places if name not in maps]
        if (len(maps), len(norms)) != (self.hidden + 1, self.hidden):
            raise UserError(
                f"the gate has {len(maps)} linear maps and {len(norms)} norms; its config says {self.hidden}"
            )
        for name in maps:
            self.use(f"{name}.weight")
        for name in norms:
            for part in ("weight", "bias", "running_var"):
                self.use(f"{name}.{part}")
        self.use(f"{maps[-1]}.bias")
        return maps, norms

    def read(self, last: "Tensor") -> "Tensor":
        means = self.linear(last, "regression_layer.weight").unflatten(1, (-1, self.quantiles)).mean(2)
        return super().transformed(means)

    def transformed(self, outputs: "Tensor") -> "Tensor":
        return outputs  # what is named is transformed already

    def gate(self, h: "Tensor") -> "Tensor":
        from torch.nn.functional import batch_norm

        for name, norm in zip(self.maps[:-1], self.norms, strict=True):
            mean, variance, weight, bias = (
                self.weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            )
            h = batch_norm(self.linear(h, f"{name}.weight").relu(), mean, variance, weight, bias)
        return self.linear(h, f"{self.maps[-1]}.weight", f"{self.maps[-1]}.bias")


class Objectives(Gated):
    """ArmoRM (arXiv:2406.12845): a regression for each objective. The gate weighs them after a matrix that takes out
    what verbosity brings, and has a bias and a ReLU in each layer; the objectives are named as they were regressed."""

    name = "objectives"
    signature = r"regression_layer\.weight"

    def __init__(self, weights: "dict[str, Tensor]", config: Any, tokenizer: Any):
        super().__init__(weights, config, tokenizer)
        outputs = len(weights["regression_layer.weight"])
        self.names = ["reward", *(ARMO if outputs == len(ARMO) else attributes(config, outputs))]
        self.use("reward_transform_matrix")
        self.layers = [
            (self.use(f"gating.layers.{place}.weight"), self.use(f"gating.layers.{place}.bias"))
            for place in range(self.hidden + 1)
        ]
        self.width = 1 + outputs

    def read(self, last: "Tensor") -> "Tensor":
        return self.linear(last, "regression_layer.weight")

    def gate(self, h: "Tensor") -> "Tensor":
        for number, (weight, bias) in enumerate(self.layers):
            h = self.linear(h.relu() if number else h, weight, bias)
        return h


# The most telling signature first.
HEADS: dict[str, type[Head]] = {
    head.name: head for head in (Quantile, Objectives, Value, Regression, MLP, Attributes, Classifier, Token)
}

SERVED: tuple[type[Head], ...] = (Classifier, Attributes)  # what vLLM's server computes


def attributes(config: Any, count: int) -> list[str]:
    """The names of `count` outputs: those of the config, else HelpSteer2's five, else LABEL_0 ... of transformers."""
    known = getattr(config, "id2label", {})
    names = [str(known.get(at) or f"LABEL_{at}") for at in range(count)]
    given = not any(name.startswith("LABEL_") for name in names)
    return HELPSTEER if not given and count == len(HELPSTEER) else names


def labels(config: Any, count: int) -> list[str]:
    """The names of a map's outputs. UserError if the config promises another number of them."""
    if count != config.num_labels:
        raise UserError(f"the head has {count} outputs, but config.json says num_labels: {config.num_labels}")
    return named(config, count)


def named(config: Any, count: int) -> list[str]:
    """The names of `count` outputs, of which a single one is the reward."""
    return ["reward"] if count == 1 else attributes(config, count)


def choose(model: str, asked: str, config: Any, checkpoint: Checkpoint) -> type[Head]:
    """The head of a checkpoint. UserError where the recipe, the architecture and the tensors disagree."""
    architecture = (config.architectures or ["none"])[0]
    shown = {head: _shown(head, checkpoint) for head in HEADS.values()}
    found = next((head for head, tensor in shown.items() if tensor), None)
    if asked == Token.name:
        _check_language_model(model, checkpoint, found, config)
        return Token
    if found is None:
        raise UserError(_headless(model, architecture))
    if asked != "auto":
        if found.name != asked:
            raise UserError(
                f"reward.head: {asked}, but the checkpoint of {model} holds the tensors of head: {found.name}"
            )
        return found
    expected = _heads_of(architecture)
    if not found.architectures or found in expected:
        return found
    if not expected:
        raise UserError(
            f"{model} is a {architecture}, which raft does not know as a reward model; its checkpoint holds the "
            f"tensors of head: {found.name}. If its card says that this is how it is read, say so with "
            f"reward.head: {found.name}"
        )
    raise UserError(
        f"{model} is a {architecture}, which reads head: {' or '.join(head.name for head in expected)}, but its "
        f"checkpoint holds the tensor {shown[found]}, which belongs to head: {found.name}; one of the two would be "
        f"left out. If the card of the model agrees with the checkpoint, say reward.head: {found.name}"
    )


def choose_served(model: str, asked: str, config: Any) -> type[Head]:
    """The head of a model that vLLM serves, whose tensors are not here. UserError: vLLM does not compute it."""
    architecture = (config.architectures or ["none"])[0]
    found = [HEADS[asked]] if asked != "auto" else _heads_of(architecture)
    if len(found) == 1 and found[0] in SERVED and not set(_heads_of(architecture)) - {*SERVED}:
        return found[0]
    name = " or ".join(head.name for head in found) or "none that raft knows"
    served = ", ".join(head.name for head in SERVED)
    raise UserError(
        f"{model} is a {architecture}, head: {name}, and vLLM's server computes only head: {served}; leave reward.url "
        "out, and raft loads the model itself"
    )


def _shown(head: type[Head], checkpoint: Checkpoint) -> str | None:
    """The tensor of a checkpoint that shows the head."""
    return next((name for name in sorted(checkpoint.names) if re.match(head.signature, name)), None)


def _heads_of(architecture: str) -> list[type[Head]]:
    """The heads that list an architecture, by its whole name before its pattern."""
    exact = [head for head in HEADS.values() if architecture in head.architectures]
    return exact or [
        head for head in HEADS.values() if any(fnmatchcase(architecture, one) for one in head.architectures)
    ]


def _check_language_model(model: str, checkpoint: Checkpoint, found: type[Head] | None, config: Any) -> None:
    if found is not None:
        raise UserError(f"reward.head: token, but the checkpoint of {model} holds the tensors of head: {found.name}")
    if "lm_head.weight" not in checkpoint.names and not config.tie_word_embeddings:
        raise UserError(f"{model} has no lm_head.weight, so no token has a logit; it is not a language model")


def _headless(model: str, architecture: str) -> str:
    if architecture == "InternLM2ForRewardModel":
        return (
            f"{model} is an {architecture}: neither its architecture nor its tokenizer is in transformers, and raft "
            "runs no code from elsewhere; use another reward model"
        )
    return (
        f"{model} is a {architecture} without the head of a reward model: its rewards would be arbitrary. Name "
        "another; if its card says that the reward is the logit of a token (Nemotron-Reward), say reward.head: token"
    )


def build(kind: type[Head], model: str, config: Any, checkpoint: Checkpoint, tokenizer: Any, label: Any) -> Head:
    """The head of this class, from the checkpoint. UserError where tensors are missing or of another shape."""
    try:
        head = kind.load(config, checkpoint, tokenizer, label)
    except KeyError as fault:
        raise UserError(f"{model}: head: {kind.name} lacks the tensor {fault}; rewards would be arbitrary") from None
    if left_over := sorted({*head.weights} - head.used):
        raise UserError(f"{model}: head: {kind.name} does not read {left_over[0]}; its config.json says fewer layers")
    if head.width != len(head.names):
        raise UserError(f"{model}: head: {kind.name} has {head.width} outputs, where {len(head.names)} belongs")
    damaged = [name for name, tensor in head.weights.items() if not tensor.isfinite().all()]
    if damaged:
        raise UserError(
            f"{model} has a head with weights that are NaN or infinite ({damaged[0]}); the checkpoint is damaged"
        )
    return head
