"""Gradients of a penalty put in place at once, without a loss that it is a part of."""

import torch
from torch import Tensor


def add_gradient(penalty: Tensor) -> None:
    """Adds the gradient of a penalty to the `.grad` of the parameters it depends on.

    Args:
        penalty (`torch.Tensor` of shape `()`): its graph is freed.
    """
    if not penalty.requires_grad:
        return
    leaves = _leaves(penalty)
    # Not backward(): under DDP that would set off hooks that expect a forward pass.
    for leaf, gradient in zip(leaves, torch.autograd.grad(penalty, leaves), strict=True):
        if leaf.grad is not None:
            leaf.grad.add_(gradient)
        else:
            # In the parameter's own memory order, as autograd leaves it: optimizers are slower on others.
            same = gradient.stride() == leaf.stride()
            leaf.grad = gradient if same else torch.empty_like(leaf).copy_(gradient)


def _leaves(tensor: Tensor) -> list[Tensor]:
    """What a tensor was computed from and collects gradients, wherever it is kept: a weight may be computed itself."""
    leaves, seen, waiting = [], set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves
