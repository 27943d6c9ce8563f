"""Who answers where vLLM cannot: transformers, for an architecture or heads that the installed vLLM does not run."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from raft.generators.sampling import Sampling
from raft.generators.transformers import Transformers
from raft.generators.vllm import VLLM
from raft.generators.vllm_plugin import architectures
from raft.store.keys import Artifact

OWN = ("max_model_len", "batch_invariant", "engine_args")  # options of vLLM for which transformers has no use


def supported_or_transformers(generator: Any, policy: Artifact, notice: Callable[[str], None]) -> Any:
    """The generator itself, or transformers with the same sampling where vLLM lacks what the policy needs.

    Policies of a run share their architecture, so the first one decides for all; the key of the responses names
    the generator that made them.
    """
    lacking = _lacking(policy.path) if type(generator) is VLLM else None
    if lacking is None:
        return generator
    unused = [f"generator.{name}" for name in OWN if getattr(generator, name)]
    notice(
        f"vLLM cannot run {lacking}, so transformers answers in its place (generator.kind: transformers), which is "
        "slower" + (f"; {', '.join(unused)} is for vLLM alone and left out" if unused else "")
    )
    sampling = {item.name: getattr(generator, item.name) for item in fields(Sampling)}
    return Transformers(dtype=generator.dtype, **sampling)


def _lacking(folder: Path) -> str | None:
    """What of a model vLLM cannot run, None if it runs it."""
    if (architecture := architectures.lacking(folder)) is not None:
        return architecture
    if (size := architectures.lacking_heads(folder)) is None:
        return None
    return f"attention heads of size {size} on a CPU (it runs {', '.join(map(str, architectures.HEADS))})"
