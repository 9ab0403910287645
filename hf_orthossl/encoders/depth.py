"""Find the layer that each parameter of an encoder belongs to: for learning rates by depth, and for what is frozen."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..messages import suggest
from ..regularization.selection import select_matrices
from .encoder import Encoder

# The form of `freeze` that names blocks from the top.
ALL_BUT_LAST = "all_but_last"


def layer_scales(encoder: Encoder, layer_decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter of an encoder's backbone, by name.

    It is 1 for what comes after the last layer, `layer_decay` for the last layer, its square for the one below, and so
    on down to the stem.

    Source: Clark et al., "ELECTRA", ICLR 2020; for ViTs Bao et al., "BEiT", ICLR 2022.

    Args:
        encoder ([`Encoder`]): The encoder.
        layer_decay (`float`): Factor per layer, in (0, 1].
    """
    numbers, top = layer_numbers(encoder)
    return {name: layer_decay ** (top - number) for name, number in numbers.items()}


def layer_numbers(encoder: Encoder) -> tuple[dict[str, int], int]:
    """Return the depth of each parameter of an encoder's backbone by name, and the depth of the head.

    Layers are the blocks of a ViT and the stages of a convolutional network. Depth 0 is the stem, 1 … n are the layers,
    and n + 1 is everything after them, including the head.
    """
    layers = _layers(encoder)
    numbers, reached = {}, 0
    for name, _ in encoder.backbone.named_parameters():
        depth = next((place for place, layer in enumerate(layers, 1) if name.startswith(f"{layer}.")), None)
        reached = max(reached, depth or 0)
        # Parameters between two layers are assigned to the lower one.
        numbers[name] = depth or (reached if reached < len(layers) else len(layers) + 1)
    return numbers, len(layers) + 1


def input_layers(encoder: Encoder) -> frozenset[str]:
    """Return the names of the weights of an encoder's backbone that read the images: the first convolution.

    timm names it in the configuration of a network, or several of them (CrossViT has one for each scale). Elsewhere it
    is the first linear or convolution layer in the order of the modules, as it is in timm's families of networks.
    """
    named = getattr(encoder.backbone, "default_cfg", None) or {}
    layers = named.get("first_conv") or ()
    layers = (layers,) if isinstance(layers, str) else layers
    known = {name for name, _ in encoder.backbone.named_parameters()}
    found = frozenset(f"{layer}.weight" for layer in layers) & known
    if found:
        return found
    first = select_matrices(encoder.backbone)[0].name
    return frozenset({first.partition("[")[0]})


def named_parameters(encoder: Encoder, patterns: Sequence[str]) -> frozenset[str]:
    """Return the parameters of an encoder's backbone that patterns name.

    Args:
        encoder ([`Encoder`]): The encoder.
        patterns (sequence of `str`): Shell patterns (`*`, `?`, `[…]`) of names of parameters, or of modules for all of
            their parameters, as the backbone's library names them: `layer1`, `blocks.[0-5]`, `*.bias`. Or
            `all_but_last=K`: the stem and all layers but the last K, where layers are the blocks of a ViT and the
            stages of a convolutional network.

    Returns:
        `frozenset[str]`: Names as in `encoder.backbone.named_parameters()`.

    Raises:
        ValueError: A pattern names nothing, or `all_but_last` has no number from 0 to the number of layers.
    """
    names = [name for name, _ in encoder.backbone.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        if pattern.partition("=")[0] == ALL_BUT_LAST:
            found |= _all_but_last(encoder, pattern)
            continue
        hits = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not hits:
            modules = [name for name, _ in encoder.backbone.named_modules() if name]
            near = suggest(pattern, [*modules, *names], otherwise=f"the first is {names[0]!r}, the last {names[-1]!r}")
            raise ValueError(
                f"freeze is {pattern!r}, which matches none of the {len(names)} parameters of {encoder.name!r}: {near}"
            )
        found |= hits
    return frozenset(found)


def _all_but_last(encoder: Encoder, pattern: str) -> set[str]:
    numbers, top = layer_numbers(encoder)
    layers, count = top - 1, pattern.partition("=")[2]
    if not re.fullmatch(r"\d{1,4}", count) or int(count) > layers:
        raise ValueError(
            f"freeze is {pattern!r}: it must be {ALL_BUT_LAST}=K with K from 0 to {layers}, the layers of "
            f"{encoder.name!r}"
        )
    return {name for name, number in numbers.items() if number <= layers - int(count)}


def _layers(encoder: Encoder) -> list[str]:
    """Return the names of the layers, in order. A stage with a numeric name means its whole list of blocks."""
    layers: dict[str, None] = {}
    for stage in encoder.stage_names[:-1]:
        parent, _, own = stage.rpartition(".")
        if parent and own.isdigit():
            blocks = encoder.backbone.get_submodule(parent)
            layers |= dict.fromkeys(f"{parent}.{name}" for name, _ in blocks.named_children())
        else:
            layers[stage] = None
    return list(layers)
