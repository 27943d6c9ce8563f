"""A model whose weights, gradients and optimiser state are sharded over the ranks of a training, by torch's FSDP2.

Each rank holds 1 / W of every weight. A block's weights are gathered while it computes, and its gradients are added
up (not averaged) where they are kept. All ranks must make the same calls in the same order.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from raft.core import ranks

T = TypeVar("T")
ROOT = "sharded_root"  # the attribute by which a model finds the module that puts its weights together


def shard(model: Any, device: Any) -> Any:
    """The model, in float32, sharded over the ranks; only rank 0 gives its weights, the others an empty one."""
    from torch import distributed, nn
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    class Root(nn.Module):
        def __init__(self, inner: Any):
            super().__init__()
            self.inner = inner

        def forward(self, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
            return function(self.inner, *arguments, **more)

    source = None if ranks.number() else model
    empty = _empty(model)
    root, mesh = Root(empty), init_device_mesh(device.type, (ranks.count(),))
    for block in _blocks(empty):
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh, reshard_after_forward=True)  # an optimiser made after a look has to see the shards
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way
    root.to_empty(device=device)
    given = {} if source is None else {f"inner.{name}": value for name, value in source.state_dict().items()}
    set_model_state_dict(root, given, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    buffers = {} if source is None else dict(source.named_buffers())
    for name, buffer in empty.named_buffers():
        if source is not None:
            buffer.copy_(buffers[name])
        distributed.broadcast(buffer, 0)
    vars(empty)[ROOT] = root  # not as a submodule, of which it is the parent
    assert not any(parameter.is_meta for parameter in empty.parameters())
    return empty


def within(model: Any, function: Callable[..., T], *arguments: Any, **more: Any) -> T:
    """What a function of the model says, which may call any part of it; sharded weights are gathered for it."""
    root = vars(model).get(ROOT)
    return function(model, *arguments, **more) if root is None else root(function, *arguments, **more)


def own(parameter: Any) -> Any:
    """The part of a parameter that this rank holds; all of it where nothing is sharded."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def whole(model: Any) -> Any:
    """On rank 0 the model with all its weights, on the others None. Sharded ones are gathered in host memory."""
    if ROOT not in vars(model):
        return None if ranks.number() else model
    state = {}
    for name, value in model.state_dict().items():
        full = value.full_tensor() if hasattr(value, "full_tensor") else value
        if not ranks.number():
            state[name] = full.cpu()
    if ranks.number():
        return None
    found = _empty(model)
    found.load_state_dict(state, assign=True)
    found.tie_weights()
    return found


def save_own(model: Any, folder: Path) -> None:
    """Writes what this rank holds of the weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    held = {name: own(parameter.detach()).contiguous() for name, parameter in model.named_parameters()}
    save_file(held, folder / "own.safetensors")


def load_own(model: Any, folder: Path) -> None:
    """Reads what this rank wrote."""
    import torch
    from safetensors.torch import load_file

    held = load_file(folder / "own.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own(parameter).copy_(held[name])


def _empty(model: Any) -> Any:
    """A model of the same class and config without numbers; the model itself where it has none."""
    import torch

    if next(model.parameters()).is_meta:
        return model
    with torch.device("meta"):
        return type(model)(model.config).eval()


def _blocks(model: Any) -> Any:
    """The layers of the model: its list of modules with the most weights."""
    from torch import nn

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda one: sum(parameter.numel() for parameter in one.parameters()), default=[])
