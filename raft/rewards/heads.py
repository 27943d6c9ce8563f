"""How a reward is read from the hidden states of a language model: one small module for each published head.

| head | tensors | outputs | models |
|---|---|---|---|
| classifier | score.weight | a linear map of the last token | Skywork, ca-reward, hh_rlhf_rm_open_llama_3b |
| attributes | score.weight, score.bias | the same with a bias, an output for each attribute | Decision-Tree-Reward |
| regression | regression_head.weight | a linear map of the last token | UltraRM |
| mlp | score.0, score.2 | two layers | INF-ORM |
| quantile | regression_layer, gating with norms | means over quantiles, weighted by a gate on the prompt | QRM |
| objectives | regression_layer, gating without norms | an output for each objective, weighted so | ArmoRM |
| value | v_head.summary | one layer, or several | GRM |
| token | lm_head.weight | the logit of one vocabulary id | Nemotron-Reward |

Heads work in float32 on the hidden state after the final norm: bfloat16 cannot tell near rewards apart.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import batch_norm, linear, relu

from raft.core.errors import UserError
from raft.models.checkpoint import Checkpoint

HELPSTEER = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]  # attributes, where there are five

CLASSES = {  # config.architectures -> head; transformers' own ...ForSequenceClassification are classifiers
    "LlamaRewardModel": "regression",
    "INFORMForSequenceClassification": "mlp",
    "LlamaForRewardModelWithGating": "quantile",  # of ArmoRM, too, whose gate has no norms
    "Gemma2ForQuantileSequenceClassification": "quantile",
    "LlamaForDecisionTreeRewardModel": "attributes",
    "Gemma2ForDecisionTreeRewardModel": "attributes",
}
MARKS = {  # a head by tensors that no other has, the most telling first
    "quantile": "regression_layer.weight",
    "value": "v_head.summary",
    "regression": "regression_head.weight",
    "mlp": "score.0.weight",
    "attributes": "score.bias",
    "classifier": "score.weight",
}
TENSORS = {
    "classifier": r"score\.weight",
    "attributes": r"score\.(weight|bias)",
    "regression": r"regression_head\.weight",
    "mlp": r"score\.\d+\.(weight|bias)",
    "value": r"v_head\.summary\..*",
    "quantile": r"regression_layer\.weight|gating\..*|reward_transform_matrix",
    "objectives": r"regression_layer\.weight|gating\..*|reward_transform_matrix",
}
NORM = re.compile(r"gating\.layers\.\d+\.running_mean")  # in the gate of a QRM, and in no ArmoRM
OBJECTIVES = [  # of ArmoRM, in the order of its card
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
ENCODER_MARKS = ("classifier.", "classification_head.")  # of BERT and its kin, whose head transformers reads

Tensors = dict[str, torch.Tensor]


class Head(torch.nn.Module):
    """Hidden states to outputs; `names` are the outputs' names, `tensors` what of the checkpoint is the head's."""

    names: Sequence[str] = ("reward",)
    width: int = 0  # how many outputs the tensors give

    def __init__(self, tensors: Tensors):
        super().__init__()
        self.tensors = sorted(tensors)
        self.used: set[str] = set()  # what was asked for by `present`
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def present(self, name: str) -> str:
        """The name, if the head has a tensor of it; else KeyError."""
        if name not in self.tensors:
            raise KeyError(name)
        self.used.add(name)
        return name

    def of(self, name: str) -> torch.Tensor:
        """The tensor of this name in the checkpoint."""
        return getattr(self, name.replace(".", "_"))

    def fault(self, ids: Sequence[int]) -> str | None:
        """Why this head cannot read a conversation, None where it can."""
        return None

    def places(self, ids: Sequence[int]) -> list[int]:
        """The tokens of a conversation whose hidden states are read, the last one at the end."""
        return [len(ids) - 1]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The outputs [rows, names] of the hidden states at these places [rows, places, width]."""
        return self.read(hidden[:, -1].float())

    def read(self, last: torch.Tensor) -> torch.Tensor:
        """The outputs of the hidden states of the last tokens [rows, width]."""
        raise NotImplementedError


class Linear(Head):
    """One linear map, with or without a bias; `prefix` is the tensors' name."""

    def __init__(self, tensors: Tensors, prefix: str, bias: bool = False, names: Sequence[str] = ("reward",)):
        super().__init__(tensors)
        self.names = names
        self.weight, self.bias = self.present(f"{prefix}.weight"), self.present(f"{prefix}.bias") if bias else None
        self.width = len(tensors[self.weight])

    def read(self, last: torch.Tensor) -> torch.Tensor:
        return linear(last, self.of(self.weight), None if self.bias is None else self.of(self.bias))


class Layers(Head):
    """Linear maps with a ReLU between each two of them: `prefix.0`, `prefix.2`, ..."""

    def __init__(self, tensors: Tensors, prefix: str, count: int, names: Sequence[str] = ("reward",)):
        super().__init__(tensors)
        self.names = names
        self.layers = [
            [self.present(f"{prefix}.{place}.{part}") for part in ("weight", "bias")]
            for place in range(0, 2 * count, 2)
        ]
        self.width = len(tensors[self.layers[-1][0]])

    def read(self, last: torch.Tensor) -> torch.Tensor:
        for number, (weight, bias) in enumerate(self.layers):
            last = linear(relu(last) if number else last, self.of(weight), self.of(bias))
        return last


class Gated(Head):
    """Several outputs, weighted by a gate: an MLP that reads where the question ends, so by the prompt alone.

    Its last layer goes through a softmax at a temperature. The first output is the reward, then come the weighted ones.
    """

    def __init__(self, tensors: Tensors, config: Any, end_of_question: list[int]):
        super().__init__(tensors)
        self.end_of_question, self.mark = end_of_question, ENDS_OF_QUESTION[config.model_type]
        self.present("regression_layer.weight")
        self.present("gating.logit_scale")
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

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scaled = (self.gate(hidden[:, 0].float()) / self.temperature).softmax(1) * self.of("gating.logit_scale")
        found = super().forward(hidden)
        return torch.cat([(scaled * self.transformed(found)).sum(1, keepdim=True), found], 1)

    def gate(self, h: torch.Tensor) -> torch.Tensor:
        """The last layer of the gate [rows, outputs] of the states where questions end [rows, width]."""
        raise NotImplementedError

    def transformed(self, found: torch.Tensor) -> torch.Tensor:
        """The outputs that the gate weighs [rows, outputs]."""
        return found @ self.of("reward_transform_matrix") if "reward_transform_matrix" in self.tensors else found

    def _gate_at(self, ids: Sequence[int]) -> int | None:
        mark = self.end_of_question
        places = range(len(ids) - len(mark), -1, -1)
        return next((at for at in places if list(ids[at : at + len(mark)]) == mark), None)


class Quantile(Gated):
    """QRM (arXiv:2409.10164): each attribute's mean over its quantiles. The gate has batch normalisation after each
    ReLU, in eval mode."""

    def __init__(self, tensors: Tensors, config: Any, end_of_question: list[int]):
        super().__init__(tensors, config, end_of_question)
        outputs, self.quantiles = len(tensors["regression_layer.weight"]), int(getattr(config, "num_quantiles", 19))
        if outputs % self.quantiles:
            raise UserError(f"regression_layer.weight has {outputs} rows, no multiple of {self.quantiles} quantiles")
        self.names = ["reward", *attributes(config, outputs // self.quantiles)]
        self.maps, self.norms = self._gate_layers(self.hidden)

    def _gate_layers(self, hidden: int) -> tuple[list[str], list[str]]:
        """The names of the gate's linear maps, and of the normalisations between them."""
        names = {name.rpartition(".")[0] for name in self.tensors if name.startswith("gating.layers.")}
        places = sorted(names, key=lambda name: int(name.split(".")[2]))
        maps = [name for name in places if f"{name}.running_mean" not in self.tensors]
        norms = [name for name in places if name not in maps]
        if (len(maps), len(norms)) != (hidden + 1, hidden):
            raise UserError(f"the gate has {len(maps)} linear maps and {len(norms)} norms; its config says {hidden}")
        for name in maps:
            self.present(f"{name}.weight")
        for name in norms:
            for part in ("weight", "bias", "running_var"):
                self.present(f"{name}.{part}")
        self.present(f"{maps[-1]}.bias")
        return maps, norms

    def read(self, last: torch.Tensor) -> torch.Tensor:
        means = linear(last, self.of("regression_layer.weight")).unflatten(1, (-1, self.quantiles)).mean(2)
        return super().transformed(means)

    def transformed(self, found: torch.Tensor) -> torch.Tensor:
        return found  # what is named is transformed already

    def gate(self, h: torch.Tensor) -> torch.Tensor:
        for name, norm in zip(self.maps[:-1], self.norms, strict=True):
            h = relu(linear(h, self.of(f"{name}.weight")))
            mean, variance = self.of(f"{norm}.running_mean"), self.of(f"{norm}.running_var")
            h = batch_norm(h, mean, variance, self.of(f"{norm}.weight"), self.of(f"{norm}.bias"))
        return linear(h, self.of(f"{self.maps[-1]}.weight"), self.of(f"{self.maps[-1]}.bias"))


class Objectives(Gated):
    """ArmoRM (arXiv:2406.12845): a regression for each objective. The gate weighs them after a matrix that takes out
    what verbosity brings, and has a bias and a ReLU in each layer; the objectives are named as they were regressed."""

    def __init__(self, tensors: Tensors, config: Any, end_of_question: list[int]):
        super().__init__(tensors, config, end_of_question)
        outputs = len(tensors["regression_layer.weight"])
        self.names = ["reward", *(OBJECTIVES if outputs == len(OBJECTIVES) else attributes(config, outputs))]
        self.present("reward_transform_matrix")
        self.layers = [
            [self.present(f"gating.layers.{place}.{part}") for part in ("weight", "bias")]
            for place in range(self.hidden + 1)
        ]
        self.width = 1 + outputs

    def read(self, last: torch.Tensor) -> torch.Tensor:
        return linear(last, self.of("regression_layer.weight"))

    def gate(self, h: torch.Tensor) -> torch.Tensor:
        for number, (weight, bias) in enumerate(self.layers):
            h = linear(relu(h) if number else h, self.of(weight), self.of(bias))
        return h


def attributes(config: Any, count: int) -> list[str]:
    """The names of `count` outputs: those of the config, else HelpSteer2's five, else numbers."""
    given = [str(getattr(config, "id2label", {}).get(at, "")) for at in range(count)]
    if all(given) and not any(name.startswith("LABEL_") for name in given):
        return given
    return HELPSTEER if count == len(HELPSTEER) else [f"attribute_{at}" for at in range(count)]


def choose(name: str, asked: str, config: Any, checkpoint: Checkpoint) -> str:
    """The head of a checkpoint. UserError where what is asked for, the architecture and the tensors disagree."""
    architecture = (config.architectures or ["none"])[0]
    marks = [*MARKS.items(), *(("classifier", mark) for mark in ENCODER_MARKS)]
    found = next((head for head, mark in marks if any(one.startswith(mark) for one in checkpoint.names)), None)
    if found == "quantile" and not any(map(NORM.fullmatch, checkpoint.names)):
        found = "objectives"
    if asked == "token":
        return _language_model(name, checkpoint, found, config)
    if found is None:
        raise UserError(_headless(name, architecture))
    if asked != "auto":
        if found != asked:
            raise UserError(f"reward.head: {asked}, but the checkpoint of {name} holds the tensors of head: {found}")
        return found
    known = CLASSES.get(architecture, "classifier" if architecture.endswith("ForSequenceClassification") else None)
    if found == "objectives" and known == "quantile":
        return found  # QRM took over ArmoRM's name
    if found == "value" or known == found:
        return found
    if known is None:
        raise UserError(
            f"{name} is a {architecture}, which raft does not know as a reward model; its checkpoint holds the "
            f"tensors of head: {found}. If its card says that this is how it is read, say so with reward.head: {found}"
        )
    raise UserError(
        f"{name} is a {architecture}, which reads head: {known}, but its checkpoint holds {_tensor_of(found)}, which "
        f"belongs to head: {found}; one of the two would be left out. If the card of the model agrees with the "
        f"checkpoint, say reward.head: {found}"
    )


def _tensor_of(head: str) -> str:
    return "the tensor " + MARKS["quantile" if head == "objectives" else head]


def _language_model(name: str, checkpoint: Checkpoint, found: str | None, config: Any) -> str:
    if found is not None:
        raise UserError(f"reward.head: token, but the checkpoint of {name} holds the tensors of head: {found}")
    if "lm_head.weight" not in checkpoint.names and not config.tie_word_embeddings:
        raise UserError(f"{name} has no lm_head.weight, so no token has a logit; it is no language model")
    return "token"


def _headless(name: str, architecture: str) -> str:
    if architecture == "InternLM2ForRewardModel":
        return (
            f"{name} is an {architecture}: neither its architecture nor its tokenizer is in transformers, and raft "
            "runs no code from elsewhere; use another reward model"
        )
    return (
        f"{name} is a {architecture} without the head of a reward model: its rewards would be made up. Name a reward "
        "model; if its card says that the reward is the logit of a token (Nemotron-Reward), say reward.head: token"
    )


def build(kind: str, name: str, config: Any, checkpoint: Checkpoint, tokenizer: Any, label: Any) -> Head:
    """The head of this kind, from the checkpoint. UserError where tensors are missing or of another shape."""
    try:
        head = _built(kind, config, checkpoint, tokenizer, label)
    except KeyError as fault:
        raise UserError(f"{name}: head: {kind} lacks the tensor {fault}; its rewards would be made up") from None
    _check_whole(kind, name, head)
    bad = [one for one, tensor in head.named_buffers() if not torch.isfinite(tensor).all()]
    if bad:
        raise UserError(
            f"{name} has a head with weights that are NaN or infinite ({bad[0]}); the checkpoint is damaged"
        )
    return head.float()


def _check_whole(kind: str, name: str, head: Head) -> None:
    """UserError if the head leaves out a tensor of its own, or has other outputs than it should."""
    if isinstance(head, Quantile):
        return  # checks its layers itself
    left_over = sorted(set(head.tensors) - head.used)
    if left_over:
        raise UserError(f"{name}: head: {kind} does not read {left_over[0]}; its config.json says fewer layers")
    if head.width != len(head.names):
        raise UserError(f"{name}: head: {kind} has {head.width} outputs, where {len(head.names)} belongs")


def _built(kind: str, config: Any, checkpoint: Checkpoint, tokenizer: Any, label: Any) -> Head:
    if kind == "token":
        tied = next((one for one in checkpoint.names if one.endswith("embed_tokens.weight")), "")
        name = "lm_head.weight" if "lm_head.weight" in checkpoint.names else tied
        if int(label or 0) >= (known := checkpoint.shape(name)[0]):
            raise UserError(f"reward.label: {label} is no token; the vocabulary has 0 to {known - 1}")
        return Linear({"token.weight": checkpoint.row(name, int(label or 0))}, "token")
    tensors = checkpoint.tensors(one for one in checkpoint.names if re.fullmatch(TENSORS[kind], one))
    if kind in ("quantile", "objectives"):
        return (Quantile if kind == "quantile" else Objectives)(tensors, config, _end_of_question(config, tokenizer))
    if kind == "mlp":
        return Layers(tensors, "score", 2, _labels(config, tensors["score.2.weight"]))
    if kind == "value" and "v_head.summary.weight" in tensors:
        return Linear(tensors, "v_head.summary", bias=True)
    if kind == "value":
        return Layers(tensors, "v_head.summary", 1 + int(getattr(config, "vhead_num_layers", 1)))
    if kind == "regression":
        return Linear(tensors, "regression_head")
    return Linear(tensors, "score", kind == "attributes", _labels(config, tensors["score.weight"]))


def _labels(config: Any, weight: torch.Tensor) -> list[str]:
    """The names of a map's outputs. UserError if the config promises another number of them."""
    count = len(weight)
    if count != config.num_labels:
        raise UserError(f"the head has {count} outputs, but config.json says num_labels: {config.num_labels}")
    return ["reward"] if count == 1 else attributes(config, count)


def _end_of_question(config: Any, tokenizer: Any) -> list[int]:
    mark = ENDS_OF_QUESTION.get(config.model_type)
    if mark is None:
        allowed = ", ".join(ENDS_OF_QUESTION)
        raise UserError(f"a gated head on {config.model_type}: raft does not know its template; known: {allowed}")
    return tokenizer(mark, add_special_tokens=False)["input_ids"]
