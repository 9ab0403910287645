"""Gradient checkpointing: a backbone recomputes its activations in the backward pass instead of keeping them.

timm and transformers have a switch for it, and call `torch.utils.checkpoint`. What they leave out is added here: layers
whose forward pass changes more than its output (the running statistics of batch norm) must not change it twice.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Attributes that hold what a layer had before its recomputation.
_HELD, _VERSIONS = "_held_statistics", "_buffer_versions"


def keep_statistics(network: nn.Module) -> None:
    """Have the layers of a network change their buffers in the first forward pass only, not when it is recomputed.

    Batch norm leaves its running statistics alone while it is recomputed. Any other layer that changes a buffer in
    every forward pass would compute something else the second time, or count it twice: its recomputation raises a
    `ValueError`.

    Args:
        network (`nn.Module`): The network, in place; a second call adds nothing.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            before, after = _hold_statistics, _release_statistics
        elif any(True for _ in module.buffers(recurse=False)):
            before, after = _note_buffers, _compare_buffers
        else:
            continue
        if before not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(before)
            # Also called where a recomputation ends early, which it does by an exception.
            module.register_forward_hook(after, always_call=True)


def _is_recomputing() -> bool:
    """Return whether this thread is in a backward pass, where a forward pass is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def _hold_statistics(module: Any, inputs: Any) -> None:
    if _is_recomputing():
        setattr(module, _HELD, (module.momentum, module.num_batches_tracked))
        # A momentum of 0 instead of no tracking, so that the layer saves the same tensors for backward.
        module.momentum, module.num_batches_tracked = 0.0, None


def _release_statistics(module: Any, inputs: Any, output: Any) -> None:
    if held := module.__dict__.pop(_HELD, None):
        module.momentum, module.num_batches_tracked = held


def _note_buffers(module: nn.Module, inputs: Any) -> None:
    if _is_recomputing():
        versions = {name: (buffer, buffer._version) for name, buffer in module.named_buffers(recurse=False)}
        setattr(module, _VERSIONS, versions)


def _compare_buffers(module: nn.Module, inputs: Any, output: Any) -> None:
    for name, (buffer, version) in module.__dict__.pop(_VERSIONS, {}).items():
        if buffer._version != version:
            raise ValueError(
                f"gradient_checkpointing recomputes {type(module).__name__}, which changes its buffer {name!r} in "
                "every forward pass: train without --gradient_checkpointing, or with another backbone"
            )
