"""How large a model is, by config.json and the headers of its weights: parameters, and bytes of a token by purpose.

Where the weights are not here, their shapes are those of the model that transformers makes of config.json.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raft.core import library_options
from raft.models import checkpoint, imagined, loading

NAMES = {  # what config.json calls by several names
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim"),
}
CACHING = ("full_attention", "sliding_attention", "chunked_attention")  # kinds of layers that have a cache
OUTPUT = ("lm_head.weight", "lm_head.bias")


@dataclass(frozen=True)
class Model:
    """config.json of a model, and the shapes of its weights by name. What config.json does not tell is None."""

    config: Mapping[str, Any]
    shapes: Mapping[str, Sequence[int]]

    def parameters(self, output: bool = True) -> int:
        """The number of parameters, with or without the output layer; a tied output layer is the embedding."""
        counts = output and self.config.get("tie_word_embeddings") is not True
        return sum(math.prod(shape) for name, shape in self.shapes.items() if counts or name not in OUTPUT)

    def adapters(self, lora: Mapping[str, Any]) -> int | None:
        """How many numbers LoRA trains: of each matrix that is adapted, its rank times both sides."""
        targets = lora.get("target_modules") or _adapted(self.config.get("model_type", ""))
        if targets is None:
            return None
        sides = (sum(shape) for name, shape in self.shapes.items() if len(shape) == 2 and _is_adapted(name, targets))
        return int(lora.get("r", 8)) * sum(sides)

    def together(self) -> int:
        """The most parameters that a rank gathers of a sharded model: two layers, and all that is in none."""
        layers: dict[str, int] = {}
        for name, shape in self.shapes.items():
            found = re.search(r"\.(\d+)\.", name)
            layers[found[1] if found else ""] = layers.get(found[1] if found else "", 0) + math.prod(shape)
        return layers.pop("", 0) + sum(sorted(layers.values())[-2:])

    def cached(self, size: int) -> int | None:
        """Bytes that a token leaves in the cache: a key and a value of each head in each layer."""
        layers, heads, head = self._number("layers"), self._number("heads"), self.head()
        if layers is None or heads is None or head is None:
            return None
        if kinds := self.config.get("layer_types"):
            layers = sum(kind in CACHING for kind in kinds)
        shared = self.config.get("multi_query") and not self.config.get("new_decoder_architecture")
        kept = 1 if shared else self._number("kv_heads") or heads
        return 2 * layers * kept * head * size

    def head(self) -> int | None:
        """The size of an attention head; None where heads have no key and value of their own."""
        heads, width = self._number("heads"), self._number("width")
        if not heads or width is None or "kv_lora_rank" in self.config:
            return None
        return self.config.get("head_dim") or width // heads

    def passing(self, size: int) -> int | None:
        """Bytes of a token in a forward pass at its widest: four rows of the states, three of the inner layer."""
        width = self._number("width")
        return None if width is None else size * (4 * width + 3 * self._inner(width))

    def kept(self, mixed: bool, checkpointed: bool) -> int | None:
        """Bytes of a token that training keeps for the way back; a count as in Korthikanti et al. 2022, 2205.05198.

        Weights are float32, so a layer keeps 4 rows of the states in float32 whatever the precision: what its two norms
        read and make. In the precision of the products it keeps 7 more (two inputs, query, key, value, and the output
        of attention twice), and 4 rows of a gated inner layer. If `checkpointed`, a layer keeps one row in float32, and
        one layer is whole.
        """
        layers, width, size = self._number("layers"), self._number("width"), 2 if mixed else 4
        if layers is None or width is None:
            return None
        layer = 4 * 4 * width + size * (7 * width + 4 * self._inner(width))
        return layers * 4 * width + layer if checkpointed else layers * layer

    def logits(self) -> int | None:
        """Bytes of a token whose likelihood is asked, in float32: the logits, their log-probabilities, and a gradient
        or, where nothing is learned, a copy."""
        vocabulary = self.config.get("vocab_size")
        return None if vocabulary is None else 3 * 4 * vocabulary

    def _number(self, what: str) -> int | None:
        return next((self.config[name] for name in NAMES[what] if isinstance(self.config.get(name), int)), None)

    def _inner(self, width: int) -> int:
        return self._number("inner") or 4 * width  # the default of GPT-2 and its successors


def read(folder: Path) -> Model:
    """The model of a folder, with or without its weights. UserError if their sizes are unknown."""
    shapes = checkpoint.shapes(folder) if checkpoint.has_weights(folder) else imagined.shapes(folder)
    weights = {name: shape for name, shape in shapes.items() if not loading.OLD_BUFFERS.search(name)}
    return replace(described(folder), shapes=weights)


def described(folder: Path) -> Model:
    """The model of a folder by its config.json, without the shapes of its weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Model(config | (config.get("text_config") or {}), {})


def _is_adapted(weight: str, targets: str | Sequence[str]) -> bool:
    module = weight.removesuffix(".weight")
    if targets == "all-linear":
        return re.search(r"\.\d+\.", module) is not None
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(f".{module}".endswith(f".{target}") for target in targets)


def _adapted(kind: str) -> list[str] | None:
    """The modules that peft adapts by itself in a type of model."""
    return library_options.ask("peft")["targets"].get(kind)
