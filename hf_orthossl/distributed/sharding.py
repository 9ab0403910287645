"""Read the weights that FSDP2 shards over processes: one gathered, or a whole module on the main process."""

import sys
from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING, TypeGuard

import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:  # importing it takes a second
    from torch.distributed.tensor import DTensor


def block_classes(module: nn.Module) -> list[str]:
    """Return the class names of the innermost blocks that a network is a sequence of: the units that FSDP2 shards.

    A block is an element of a `Sequential` or `ModuleList` with at least two layers of its own: a residual block, a
    layer of a transformer.
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


def is_sharded(weight: Tensor) -> TypeGuard["DTensor"]:
    """Return whether a weight is a `DTensor`, as `torch.distributed.fsdp.fully_shard` makes them."""
    # Importing the module takes a second; before it is imported there is no such tensor.
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(weight, tensors.DTensor)


def full_tensor(weight: Tensor) -> Tensor:
    """Return the weight, gathered if it is sharded: differentiable, without communication in the backward pass."""
    return weight.full_tensor() if is_sharded(weight) else weight


def has_sharded_weights(module: nn.Module) -> bool:
    """Return whether a module has weights of which each process holds a part (FSDP2)."""
    return any(is_sharded(parameter) for parameter in module.parameters())


def gather_module(module: nn.Module, names: Collection[str] | None = None) -> nn.Module | None:
    """Return a module with its whole weights, on the main process.

    Call it on all processes: each weight in turn is put together on all of them and kept by the main one, so that no
    other ever holds more than one whole weight. What is not sharded is taken as it is, without a copy.

    Args:
        module (`nn.Module`): In train or eval mode, outside of its forward pass.
        names (collection of `str`, *optional*): Parameters wanted, named as in `named_parameters`; others are left on
            the meta device. All of them by default.

    Returns:
        `nn.Module`: The module itself if nothing of it is sharded; else, on the main process, a copy without gradients
        and without FSDP's hooks, and on the others `None`.
    """
    if not has_sharded_weights(module):
        return module
    main = dist.get_rank() == 0
    whole: dict[int, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        wanted = names is None or name in names
        if is_sharded(parameter) and wanted:
            value = parameter.detach().full_tensor()
        else:
            value = parameter.detach() if wanted else parameter.detach().to("meta")
        if main:
            # Of its local tensor: a DTensor on the meta device is one still.
            value = value.to_local().new_empty(parameter.shape) if is_sharded(value) else value
            whole[id(parameter)] = nn.Parameter(value, requires_grad=False)
    return _copy(module, whole, {}) if main else None


def _layers(module: nn.Module) -> int:
    return sum(bool(inner._parameters) for inner in module.modules())


def _copy(module: nn.Module, weights: dict[int, Tensor], copies: dict[int, nn.Module]) -> nn.Module:
    """Return the module with other weights: as `nn.DataParallel` replicates one, for FSDP refuses a deep copy."""
    from torch.distributed.fsdp import FSDPModule

    if id(module) in copies:
        return copies[id(module)]
    # fully_shard puts a class of its own, and FSDPModule, before a module's class.
    kind = type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module)
    copy = copies[id(module)] = kind.__new__(kind)
    # What torch's composable engines note in a module, `__composable_api_…`, is of the module that they run.
    copy.__dict__ = {name: value for name, value in module.__dict__.items() if not name.startswith("__composable")}
    copy._parameters = {name: p if p is None else weights[id(p)] for name, p in module._parameters.items()}
    copy._buffers = module._buffers.copy()
    copy._modules = {
        name: child if child is None else _copy(child, weights, copies) for name, child in module._modules.items()
    }
    for name, hooks in module.__dict__.items():
        if name.endswith("_hooks") and isinstance(hooks, dict):
            own = {key: hook for key, hook in hooks.items() if not _is_engines(hook)}
            setattr(copy, name, OrderedDict(own))
    return copy


def _is_engines(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")
