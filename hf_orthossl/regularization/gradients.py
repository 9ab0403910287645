"""Gradients of a penalty put in place at once, without a loss that it is a part of."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def add_gradient(penalty: Tensor, weights: Sequence[Tensor], modules: Sequence[nn.Module]) -> None:
    """Adds the gradient of a penalty to the `.grad` of the parameters it depends on.

    Args:
        penalty (`torch.Tensor` of shape `()`): its graph is freed.
        weights (sequence of `torch.Tensor`): what it is a penalty of.
        modules (sequence of `torch.nn.Module`): their owners, whose parameters computed weights come from.
    """
    if not penalty.requires_grad:
        return
    leaves = {}
    for weight, module in zip(weights, modules, strict=True):
        for leaf in [weight] if weight.is_leaf else module.parameters():
            if leaf.requires_grad:
                leaves[id(leaf)] = leaf
    # Not backward(): under DDP that would set off hooks that expect a forward pass.
    gradients = torch.autograd.grad(penalty, list(leaves.values()), allow_unused=True)
    for leaf, gradient in zip(leaves.values(), gradients, strict=True):
        if gradient is None:
            continue
        if leaf.grad is not None:
            leaf.grad.add_(gradient)
        else:
            # In the parameter's own memory order, as autograd leaves it: optimizers are slower on others.
            same = gradient.stride() == leaf.stride()
            leaf.grad = gradient if same else torch.empty_like(leaf).copy_(gradient)
