"""Whose turn it is on the accelerator: generator, reward model and trainer share one GPU's memory by turns.

On a CPU everything fits side by side and releasing is a no-op.
"""

from typing import Any

from raft import stopping
from raft.contracts import release

_holder: Any = None


def take(component: Any) -> None:
    """Makes the component (or, with None, whoever asks) the only one that holds accelerator memory."""
    global _holder
    stopping.check()
    if _holder is not None and _key(_holder) != _key(component):
        release(_holder)
        _free_cache()
    _holder = component


def _key(component: Any) -> Any:
    return getattr(component, "device_key", id(component))


def _free_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
