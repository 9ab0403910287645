"""Find the parameters that a network uses, by the graph of one pass of one image."""

from torch import Tensor, nn


def unused_parameters(module: nn.Module, output: Tensor) -> list[str]:
    """Return the trainable parameters of a module on which an output does not depend, by its graph.

    Args:
        module (`nn.Module`): The module.
        output (`Tensor`): What it computed, with gradients enabled.
    """
    used, seen, left = set(), set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the node that accumulates a parameter's gradient
            used.add(id(node.variable))
        left.extend(before for before, _ in node.next_functions)
    return [name for name, p in module.named_parameters() if p.requires_grad and used and id(p) not in used]
