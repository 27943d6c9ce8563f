"""The ranks of a training: processes that share the forward passes of a step, each with all weights or a part of them.

A step's loss is the sum over its forward passes, so rank r of W takes passes r, r + W, r + 2W ... and gradients are
added up, not averaged. No rank has to have as many passes as another, unless weights are sharded: then all compute
together. Without a process group there is one rank.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

BUCKET = 1 << 24  # numbers that are added up at once: 64 MB of float32
PATIENCE = timedelta(minutes=30)  # longest wait for another rank

T = TypeVar("T")
_shards = False


@contextmanager
def joined(rank: int, count: int, address: str, shard: bool = False) -> Iterator[None]:
    """Inside the block this process is one of `count` ranks, which meet at the address `host:port` of rank 0.

    With `shard` trainers shard weights over the ranks, if all of them say so.
    """
    global _shards
    if count == 1:
        yield
        return
    import torch
    from torch import distributed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, f"tcp://{address}", rank=rank, world_size=count, timeout=PATIENCE)
    try:
        found: list[Any] = [None] * count
        distributed.all_gather_object(found, shard)
        _shards = any(found)
        yield
    finally:
        _shards = False
        distributed.destroy_process_group()


def count() -> int:
    """How many ranks there are."""
    group = _group()
    return group.get_world_size() if group else 1


def number() -> int:
    """Which rank this process is; rank 0 alone writes and reports."""
    group = _group()
    return group.get_rank() if group else 0


def sharded() -> bool:
    """Whether weights are sharded over the ranks."""
    return _shards


def first(value: T) -> T:
    """What rank 0 says, on every rank."""
    group = _group()
    if group is None:
        return value
    found = [value]
    group.broadcast_object_list(found, 0)
    return found[0]


def wait() -> None:
    """Returns once every rank is here."""
    if (group := _group()) is not None:
        group.barrier()


def own(items: Sequence[T]) -> Sequence[T]:
    """The items that this rank takes."""
    return items[number() :: count()]


def add_up(parameters: Sequence[Any]) -> None:
    """Replaces the gradient of each parameter by the sum over all ranks."""
    group = _group()
    if group is None:
        return
    import torch

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in parameters]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        group.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def total(numbers: dict[str, float]) -> dict[str, float]:
    """The sums of numbers over all ranks, added in the order of the ranks; a rank may lack all of them."""
    group = _group()
    if group is None:
        return numbers
    found: list[dict[str, float]] = [{} for _ in range(count())]
    group.all_gather_object(found, numbers)
    return {name: sum(one[name] for one in found if name in one) for name in found[0]}


def merged(found: dict[T, float]) -> dict[T, float]:
    """What all ranks have found, on every rank."""
    group = _group()
    if group is None:
        return found
    parts: list[dict[T, float]] = [{} for _ in range(count())]
    group.all_gather_object(parts, found)
    return {name: value for part in parts for name, value in part.items()}


def _buckets(gradients: list[Any]) -> Iterator[list[Any]]:
    """The gradients in groups of one number format, each of about BUCKET numbers."""
    bucket: list[Any] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.numel() > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def _group() -> Any:
    """torch.distributed, if there is a process group."""
    distributed = sys.modules.get("torch.distributed")
    ready = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if ready else None
