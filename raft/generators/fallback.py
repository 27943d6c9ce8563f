"""Who answers where vLLM cannot: transformers, for an architecture that the installed vLLM does not run."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from raft.generators.sampling import Sampling
from raft.generators.transformers import Transformers
from raft.generators.vllm import VLLM
from raft.generators.vllm_plugin import architectures
from raft.store.keys import Artifact

OWN = ("max_model_len", "batch_invariant", "engine_args")  # options of vLLM for which transformers has no use


def supported_or_transformers(generator: Any, policy: Artifact, notice: Callable[[str], None]) -> Any:
    """The generator itself, or transformers with the same sampling where vLLM lacks the policy's architecture.

    Policies of a run share their architecture, so the first one decides for all; the key of the responses names
    the generator that made them.
    """
    lacking = architectures.lacking(policy.path) if type(generator) is VLLM else None
    if lacking is None:
        return generator
    unused = [f"generator.{name}" for name in OWN if getattr(generator, name)]
    notice(
        f"vLLM cannot run {lacking}, so transformers answers in its place (generator.kind: transformers), which is "
        "slower" + (f"; {', '.join(unused)} is for vLLM alone and left out" if unused else "")
    )
    sampling = {item.name: getattr(generator, item.name) for item in fields(Sampling)}
    return Transformers(dtype=generator.dtype, **sampling)
