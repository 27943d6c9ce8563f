"""The accelerator: which one there is, how torch is set on it, whose turn it is, and what happens if memory is short.

Generator, reward model and trainer share one GPU's memory by turns. On a CPU everything fits side by side and
releasing is a no-op.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from raft.core import signals
from raft.core.errors import UserError
from raft.core.protocols import release, uses_device

# Intel's library of matrix products otherwise adds up in another order with another number of threads, so that a
# reward's last bits depended on how many cores a process has. Read when torch first multiplies; it costs no time.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

FULL = ("out of memory", "error in memory profiling", "no available memory for the cache blocks")  # as errors say it

_holder: Any = None


def take(component: Any) -> None:
    """Makes the component (or, with None, the caller) the only component that holds accelerator memory.

    What uses no device, such as a remote reward, may work while the holder does: it takes nothing from it.
    """
    global _holder
    signals.check()
    if not uses_device(component):
        return
    if _holder is not None and _key(_holder) != _key(component):
        release(_holder)
        free_cache()
    _holder = component


def current() -> Literal["cpu", "cuda"]:
    """Where models compute. UserError for a GPU that torch cannot use, rather than computing on the CPU.

    Sets torch as every stage has it, whatever was imported before: cuDNN's attention, torch's first choice on Hopper
    and Blackwell, plans again for each new shape and has given gradients that are NaN (pytorch#196678).
    """
    if _built_for_cpu():
        return "cpu"
    import torch

    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)
        return "cuda"
    if torch.version.cuda and os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/dev/nvidia0").exists():
        raise UserError(
            f"there is a GPU, but torch {torch.__version__} cannot use it: its driver must be one for CUDA "
            f"{torch.version.cuda} (nvidia-smi names the newest that it knows), and the container must be started with "
            "access to it; to compute on the CPU all the same: CUDA_VISIBLE_DEVICES= raft ..."
        )
    return "cpu"


@cache
def _built_for_cpu() -> bool:
    """Known without importing torch, which takes seconds; asked once, as reading a version takes 10 ms."""
    return version("torch").endswith("+cpu")


def count() -> int:
    """How many GPUs this process sees, 1 on a CPU."""
    if current() == "cpu":
        return 1
    import torch

    return torch.cuda.device_count()


def cores(place: int, of: int) -> list[int]:
    """Part `place` of `of` of this process's cores, or one that it shares with other parts."""
    own = sorted(os.sched_getaffinity(0))
    return own[place * len(own) // of : (place + 1) * len(own) // of] or [own[place % len(own)]]


def require(name: str) -> None:
    """UserError if torch has no such device on this machine."""
    import torch

    try:
        torch.zeros(1, device=name)
    except Exception as fault:  # of any class: not compiled in, no driver, no such number
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise UserError(
            f"generator.device: {name} is not on this machine ({reason}); leave the key out, or name another"
        ) from fault


def dtype_of(option: str) -> str:
    """The number format that a model is read in: `auto` is bfloat16 on a GPU and float32 on a CPU."""
    return ("bfloat16" if current() == "cuda" else "float32") if option == "auto" else option


def is_full(fault: BaseException) -> bool:
    """Whether an error says that memory is short."""
    return any(phrase in str(fault).lower() for phrase in FULL)


@contextmanager
def fits(what: str, advice: str) -> Iterator[None]:
    """A block that takes the accelerator's memory: running out of it is a UserError, for torch and vLLM."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as fault:  # torch.OutOfMemoryError is a RuntimeError
        if isinstance(fault, UserError) or not is_full(fault):
            raise
        reason = str(fault).splitlines()[0]
        raise UserError(
            f"{what} does not fit the memory of the device ({reason}); {advice}; nvidia-smi shows what else is on the "
            "GPU, and raft check what each turn takes"
        ) from fault


@contextmanager
def deterministic_switches_kept() -> Iterator[None]:
    """Restores torch's determinism switches, so that a stage does not change later stages."""
    import torch

    names = (
        "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC",
        "FLASH_ATTENTION_DETERMINISTIC",
    )  # fmt: skip
    before = {name: os.environ.get(name) for name in names}
    algorithms, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def free_cache() -> None:
    """Gives what torch keeps for itself back to the accelerator."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _key(component: Any) -> Any:
    return getattr(component, "device_key", id(component))
