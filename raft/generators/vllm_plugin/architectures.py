"""Which architectures vLLM runs: its own, and those that raft adds by the entry point `vllm.general_plugins`.

vLLM calls `register` in every process of its own, in raft's or in a server's. Classes are named and not imported,
so that it costs nothing where they are not needed.
"""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from raft.core import device, library_options
from raft.models import model_sizes

PLUGINS = "vllm.general_plugins"
MODELS = {"GPTNeoForCausalLM": "raft.generators.vllm_plugin.gpt_neo:GPTNeoForCausalLM"}
HEADS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # sizes that vLLM's attention has on a CPU
BACKEND = "vllm.model_executor.models.transformers"  # where vLLM has the classes that run transformers' models
ISOLATED = {
    name: f"raft.generators.vllm_plugin.transformers_backend:{name}"
    for name in ("TransformersForCausalLM", "TransformersMoEForCausalLM")
}


def register() -> None:
    """Adds the models, and puts raft's classes in the place of those of the Transformers backend."""
    from vllm.model_executor.models.registry import ModelRegistry, _LazyRegisteredModel

    for architecture, target in MODELS.items():
        ModelRegistry.register_model(architecture, target)
    for architecture, model in list(ModelRegistry.models.items()):
        if isinstance(model, _LazyRegisteredModel) and model.module_name == BACKEND and model.class_name in ISOLATED:
            ModelRegistry.register_model(architecture, ISOLATED[model.class_name])


def lacking(folder: Path) -> str | None:
    """The architecture of a model folder if the installed vLLM cannot run it, else None.

    Only the names in config.json decide, never an attempt. Where they are missing, or another plug-in may
    have added them, vLLM is left to say itself what it cannot do.
    """
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    if not names or _plugged_in():
        return None
    known = {*MODELS, *library_options.ask("vllm")["architectures"]}
    return None if any(name in known or _wrapped(name) for name in names) else names[0]


def lacking_heads(folder: Path) -> int | None:
    """The size of a model's attention heads if vLLM has no kernel for it on this machine, a CPU; else None."""
    if device.current() != "cpu":
        return None
    size = model_sizes.described(folder).head()
    return None if size in HEADS else size


def _wrapped(architecture: str) -> bool:
    """Whether vLLM's Transformers backend takes it: vLLM's own rule, which asks transformers' class."""
    import transformers

    model: Any = getattr(transformers, architecture, None)
    is_model = isinstance(model, type) and issubclass(model, transformers.PreTrainedModel)
    return is_model and bool(model.is_backend_compatible() or model._can_set_attn_implementation())


def _plugged_in() -> bool:
    return any(not entry.value.startswith(("vllm.", "raft.")) for entry in entry_points(group=PLUGINS))
