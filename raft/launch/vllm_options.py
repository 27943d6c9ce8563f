"""What every vLLM engine of raft starts with, in this process or as a server of its own: decided once, here."""

import os
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raft.core import library_options
from raft.core.options import suggest
from raft.models import model_folder

DEFAULT_CONTEXT = 4096  # tokens, where the model reads that many
SPEED = (
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "kv_cache_memory_bytes",
    "max_parallel_loading_workers",
    "disable_log_stats",
    "cpu_offload_gb",
)
IN_PROCESS = {  # for an engine in this process; a server decides these for itself
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: both cores, no pickling, a start in seconds
    "VLLM_CONFIGURE_LOGGING": "0",
}


def faults(engine_args: Mapping[str, Any], ours: Container[str]) -> Iterator[tuple[str, str]]:
    """Faults of the options `engine_args`, which go to vLLM as they are; `ours` are those that only raft sets."""
    for name in engine_args:
        if name in ours:
            yield f"engine_args.{name}", "is decided by the run itself; remove it"
        elif name not in (known := library_options.ask("vllm")["engine"]):
            yield f"engine_args.{name}", f"vLLM has no such option; {suggest(name, list(known))[:200]}"


def environment() -> dict[str, str]:
    """What any engine reads from the environment when it is imported or built; GiB of cache as the user has it."""
    room = str(max(1, host_memory() // 2**30 // 8))  # touched only as it fills
    return {
        "VLLM_CPU_ATTN_SPLIT_KV": "0",  # with it, a response's floats depend on how full the batch is
        "VLLM_NO_USAGE_STATS": "1",  # nothing leaves the machine
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", room),
    }


def host_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may have: the machine's, or less where its container has a limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of either version of Linux's control groups
        with suppress(OSError, ValueError):  # "max" is no limit
            memory = min(memory, int((groups / file).read_text()))
    return memory


def cpu_defaults(context: int) -> dict[str, Any]:
    """Seeded sampling crashes on a CPU when a prompt is read in parts, so every prompt is read whole."""
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, context),
        "max_num_seqs": 1024,
    }


def default_context(folder: Path) -> int:
    """The context of an engine, in tokens, at most DEFAULT_CONTEXT, where no option says more."""
    return min(model_folder.positions(folder) or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def shape(folder: Path) -> dict[str, Any]:
    """What an engine is built for: the config of a model as transformers reads it, but for what no engine asks it.

    Published models are of older versions of transformers, with other names and gaps, and mostly in bfloat16; what
    training saves is in float32. An engine serves both.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    return {name: value for name, value in config.items() if name not in UNASKED}


UNASKED = {"_name_or_path", "dtype", "transformers_version", "use_cache"}
