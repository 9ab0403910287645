"""Layer-wise learning rates: the nearer the images, the smaller."""

from fnmatch import fnmatch

from torch import nn

from ..encoders import Encoder


def layer_decay_groups(
    encoder: Encoder, head: nn.Module, *, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict]:
    """Parameter groups of an encoder and its head, with a learning rate for each depth.

    The head and whatever follows the last layer learn at `learning_rate`, the layer before at `layer_decay` times that,
    and so on down to the stem (Clark et al., "ELECTRA", ICLR 2020; for ViTs Bao et al., "BEiT", ICLR 2022). Layers are
    the blocks of a ViT and the stages of a convolutional network. Frozen parameters are left out. Weight decay spares
    parameters with one dimension and those that timm's `no_weight_decay` names.

    Args:
        encoder ([`Encoder`]): What is fine-tuned.
        head (`nn.Module`): Its classifier.
        learning_rate (`float`): Of the head.
        layer_decay (`float`): Factor per layer, in (0, 1]; 1 for the same rate everywhere.
        weight_decay (`float`): At least 0.

    Returns:
        `list[dict]` with `params`, `lr` and `weight_decay`, as torch optimizers take it.

    Raises:
        ValueError: `layer_decay` is out of range.
    """
    check_layer_decay(layer_decay)
    numbers, top = layer_numbers(encoder)
    spared = getattr(encoder.backbone, "no_weight_decay", set)()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in encoder.backbone.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not any(fnmatch(name, pattern) for pattern in spared)
            key = layer_decay ** (top - numbers[name]), weight_decay if decays else 0.0
            groups.setdefault(key, []).append(parameter)
    for parameter in head.parameters():
        groups.setdefault((1.0, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def check_layer_decay(factor: float) -> None:
    """Raises a ValueError for what is no factor per layer."""
    if not 0 < factor <= 1:
        raise ValueError(f"layer_decay is {factor}: the factor per layer must lie in (0, 1], as in 0.75")


def layer_numbers(encoder: Encoder) -> tuple[dict[str, int], int]:
    """Depth of each parameter of an encoder's backbone by name, and that of the head.

    0 is the stem, 1 … n are the layers, and n + 1 is what follows them, the head included.
    """
    layers = _layers(encoder)
    numbers, reached = {}, 0
    for name, _ in encoder.backbone.named_parameters():
        found = next((place for place, layer in enumerate(layers, 1) if name.startswith(f"{layer}.")), None)
        reached = max(reached, found or 0)
        # What lies between two layers goes with the lower one.
        numbers[name] = found or (reached if reached < len(layers) else len(layers) + 1)
    return numbers, len(layers) + 1


def _layers(encoder: Encoder) -> list[str]:
    """Names of the layers in order. Stages named by a number stand for the whole list of blocks that they are in."""
    layers: dict[str, None] = {}
    for stage in encoder.stage_names[:-1]:
        parent, _, own = stage.rpartition(".")
        if parent and own.isdigit():
            blocks = encoder.backbone.get_submodule(parent)
            layers |= dict.fromkeys(f"{parent}.{name}" for name, _ in blocks.named_children())
        else:
            layers[stage] = None
    return list(layers)
