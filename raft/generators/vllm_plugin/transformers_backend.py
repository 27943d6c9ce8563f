"""vLLM's Transformers backend, kept from changing what transformers itself does in the same process.

For an architecture without code of its own, GPT-NeoX (Pythia) for instance, vLLM builds transformers' model, and
makes the class of its decoder compilable: in place, for the whole process. After that a model of that class
which is not part of an engine cannot be built ("Current vLLM config is not set") or called ("no attribute
do_not_compile"): the policy could generate but never be trained in the same process. Here the change reaches
only models that an engine builds.
"""

from typing import Any

from torch import nn
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.models import transformers as backend


class Apart:
    """Mixed into a class of the backend."""

    def _decorate_cls_for_torch_compile(self, cls: Any, *arguments: Any, **options: Any) -> None:
        build = cls.__init__
        super()._decorate_cls_for_torch_compile(cls, *arguments, **options)  # type: ignore[misc]
        if cls.__init__ is not build:  # it is decorated once, however many engines there are
            keep_apart(cls, build)


def keep_apart(cls: Any, build: Any) -> None:
    """Gives models outside of an engine the class's own `__init__`, which is `build`, and the usual `__call__`."""
    engines_build, engines_call = cls.__init__, cls.__call__

    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        inside = get_current_vllm_config_or_none() is not None
        (engines_build if inside else build)(self, *arguments, **options)

    def __call__(self: Any, *arguments: Any, **options: Any) -> Any:
        inside = "do_not_compile" in vars(self)
        return (engines_call if inside else nn.Module.__call__)(self, *arguments, **options)

    cls.__init__, cls.__call__ = __init__, __call__


# vLLM asks for the names of these classes, so they stay.
class TransformersForCausalLM(Apart, backend.TransformersForCausalLM):
    """Dense models."""


class TransformersMoEForCausalLM(Apart, backend.TransformersMoEForCausalLM):
    """Mixtures of experts."""
