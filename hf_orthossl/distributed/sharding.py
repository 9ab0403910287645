"""Gather weights that FSDP2 shards over processes: a single one, or a whole module on the main process."""

import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, TypeGuard, TypeVar, cast

import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:  # importing it takes a second
    from torch.distributed.tensor import DTensor

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def block_classes(module: nn.Module) -> list[str]:
    """Return the class names of the innermost blocks of a network, the units that FSDP2 shards.

    A block is an element of a `Sequential` or `ModuleList` that has at least two layers itself: a residual block, a
    transformer layer.
    """
    blocks: dict[str, nn.Module] = {}
    for container in module.modules():
        if isinstance(container, nn.Sequential | nn.ModuleList):
            for child in container:
                if not isinstance(child, nn.Sequential | nn.ModuleList) and _layers(child) > 1:
                    blocks.setdefault(type(child).__name__, child)
    outer = {
        name
        for name, block in blocks.items()
        if any(type(inner).__name__ in blocks for inner in block.modules() if inner is not block)
    }
    return [name for name in blocks if name not in outer]


def is_sharded(weight: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a weight is a `DTensor`, such as `torch.distributed.fsdp.fully_shard` makes."""
    # Importing the module takes a second; until it is imported, no such tensor exists.
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(weight, tensors.DTensor)


def full_tensor(weight: Tensor) -> Tensor:
    """Return a weight, gathered if it is sharded; its gradient needs no communication."""
    return weight.full_tensor() if is_sharded(weight) else weight


def shard_like(whole: Tensor, weight: "DTensor") -> "DTensor":
    """Return a whole tensor, which is the same on all processes, sharded as a weight is; nothing is communicated."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = weight.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=weight.placements)


def has_sharded_weights(module: nn.Module) -> bool:
    """Return whether a module has weights that are sharded over processes (FSDP2)."""
    return any(is_sharded(parameter) for parameter in module.parameters())


def gather_module(module: ModuleT, names: Collection[str] | None = None) -> ModuleT | None:
    """Return a module with unsharded weights, on the main process.

    All processes must call it: the weights are gathered on all of them, one after the other, and only the main process
    stores them, so that no other process ever holds more than one whole weight. Weights that are not sharded are not
    copied.

    Args:
        module (`nn.Module`): The module, outside of its forward pass.
        names (collection of `str`, *optional*): Names of the parameters to gather, as in `named_parameters`; all
            other parameters are left on the meta device. By default all are gathered.

    Returns:
        `nn.Module`, *optional*: The module itself if none of its weights is sharded; else a copy without gradients and
        without FSDP's hooks on the main process, and `None` on all other processes.
    """
    if not has_sharded_weights(module):
        return module
    main = dist.get_rank() == 0
    whole: dict[int, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        wanted = names is None or name in names
        value = parameter.detach()
        if not wanted:
            value = value.to("meta")
        elif is_sharded(value):
            value = value.full_tensor()
        if main:
            # A DTensor on the meta device is still a DTensor: an empty tensor like its local one is made instead.
            value = value.to_local().new_empty(parameter.shape) if is_sharded(value) else value
            whole[id(parameter)] = nn.Parameter(value, requires_grad=False)
    return cast(ModuleT, _copy(module, whole, {})) if main else None


def _layers(module: nn.Module) -> int:
    return sum(bool(inner._parameters) for inner in module.modules())


def _copy(module: nn.Module, weights: Mapping[int, nn.Parameter], copies: dict[int, nn.Module]) -> nn.Module:
    """Return a copy of a module with other weights, as `nn.DataParallel` does; FSDP does not support deep copies."""
    from torch.distributed.fsdp import FSDPModule

    if id(module) in copies:
        return copies[id(module)]
    # fully_shard puts two classes, its own and FSDPModule, before a module's class.
    kind = cast(type[nn.Module], type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module))
    copy = copies[id(module)] = kind.__new__(kind)
    # Attributes `__composable_api_…` of torch's composable APIs belong to the module that FSDP runs.
    copy.__dict__ = {name: value for name, value in module.__dict__.items() if not name.startswith("__composable")}
    copy._parameters = {name: p if p is None else weights[id(p)] for name, p in module._parameters.items()}
    copy._buffers = module._buffers.copy()
    copy._modules = {
        name: child if child is None else _copy(child, weights, copies) for name, child in module._modules.items()
    }
    for name, hooks in module.__dict__.items():
        if name.endswith("_hooks") and isinstance(hooks, dict):
            own = {key: hook for key, hook in hooks.items() if not _is_fsdp_hook(hook)}
            setattr(copy, name, OrderedDict(own))
    return copy


def _is_fsdp_hook(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")
