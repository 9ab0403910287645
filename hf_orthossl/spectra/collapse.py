"""Say in words which parts of a model have collapsed, completely or in part, as far as its spectra show it."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from .spectrum import FeatureSpectrum, WeightSpectrum
from .stages import EMBEDDING, ENDS, INPUT, PATCH_TOKENS, REPRESENTATION, short_name

Weights = Mapping[str, WeightSpectrum]
Features = Mapping[str, FeatureSpectrum]

# Below this share of its directions, a layer counts as strongly collapsed; `SpectraCallback` warns at the same share.
STRONG = 0.1
# The most names in a sentence.
_NAMED = 5


def complete_collapse(weights: Weights, features: Features, show: Callable[[str], str] = short_name) -> list[str]:
    """Return sentences about what does not vary at all: layers at which all images are equal, and zero weights.

    Args:
        weights (mapping of `str` to [`WeightSpectrum`]): Spectra by parameter name.
        features (mapping of `str` to [`FeatureSpectrum`]): Spectra by layer, in the model's order.
        show (`Callable`, defaults to [`short_name`]): Returns the name of a layer or parameter as it is written.

    Returns:
        `list[str]`: Empty if every layer and every weight has at least one direction. The first sentence is about the
        representation, if that has collapsed.
    """
    layers, matrices = _equal_features(features, show), _without_directions(weights, show)
    if layers and weights and not matrices:
        layers.append(f"None of the {len(weights)} weight matrices is zero or constant.")
    return layers + matrices


def partial_collapse(weights: Weights, features: Features) -> list[str]:
    """Return sentences about directions without variance, beside others that have some, and about low effective ranks.

    What a LayerNorm removes by construction, and what a sample of N images cannot show, is not counted.

    Args:
        weights (mapping of `str` to [`WeightSpectrum`]): Spectra by parameter name.
        features (mapping of `str` to [`FeatureSpectrum`]): Spectra by layer, in the model's order.
    """
    sentences = []
    layers = {name: f for name, f in features.items() if name != INPUT and f.num_positive}
    lost = {name: f for name, f in layers.items() if f.exact and f.num_positive < f.most_positive}
    if lost:
        where = [
            f"{short_name(name)} in {f.most_positive - f.num_positive} of {f.most_positive}" for name, f in lost.items()
        ]
        sentences.append(f"No variance in some directions: {_listed(where)}.")
    strong = {name: f for name, f in layers.items() if f.effective_rank < STRONG * f.most_positive}
    if strong:
        where = [f"{short_name(name)} {f.effective_rank:.1f} of {f.most_positive}" for name, f in strong.items()]
        sentences.append(f"Effective rank below {STRONG:.0%} of the highest possible: {_listed(where)}.")
    matrices = {name: w for name, w in weights.items() if 0 < w.num_positive < w.most_positive}
    if matrices:
        worst = max(matrices, key=lambda name: matrices[name].most_positive - matrices[name].num_positive)
        one, w = len(matrices) == 1, matrices[worst]
        sentences.append(
            f"{len(matrices)} of the {len(weights)} weight matrices {'has' if one else 'have'} lost directions, "
            f"{short_name(worst)} the most: {w.most_positive - w.num_positive} of {w.most_positive}."
        )
    return sentences


def removed_note(features: Features) -> list[str]:
    """Return a sentence that names the layers whose norm removes a direction by construction; empty without any."""
    where = {name: f for name, f in features.items() if f.removed_by_norm and f.num_vectors > f.most_positive}
    return [
        f"{short_name(name)}: {f.removed_by_norm} of the {f.dim} dimensions {_has(f.removed_by_norm)} no variance by "
        "construction, because a norm subtracts the mean over the channels. This is no collapse."
        for name, f in where.items()
    ]


def remedies(weights: Weights, features: Features) -> list[str]:
    """Return sentences on what to try after a complete collapse; empty without one."""
    if is_constant(features, INPUT):
        return ["Train on images that differ: look at some of the files, and at how they were read."]
    if not complete_collapse(weights, features):
        return []
    return [
        "Measure the untrained backbone in the same way (`orthossl spectra BACKBONE --untrained`): if it does not vary "
        "either, the architecture or its input is the cause.",
        "Otherwise train with a lower learning rate, less weight decay, a larger γ of the orthogonality penalty, or "
        "another method.",
    ]


def _equal_features(features: Features, show: Callable[[str], str]) -> list[str]:
    equal = [name for name, f in features.items() if f.num_positive == 0]
    if not equal:
        return []
    images = f"all {features[equal[0]].num_images:,} images"
    hidden = [name for name in features if name not in ENDS]
    sentences = []
    if REPRESENTATION in equal:
        sentences.append(
            f"The representations of {images} are equal: they have no variance, and have collapsed completely."
        )
        sentences += _where(features, hidden, equal, show)
    else:
        own = [show(name) for name in equal if name not in (EMBEDDING, PATCH_TOKENS)]
        if own:
            sentences.append(f"At {_listed(own)}, {images} are equal: the features have no variance.")
        if PATCH_TOKENS in equal:
            sentences.append(f"The patch tokens of {images} are equal: patches cannot be told apart.")
        if EMBEDDING in equal:
            sentences.append(f"The embeddings of {images} are equal: the projector has collapsed.")
    return sentences


def _where(features: Features, hidden: list[str], equal: list[str], show: Callable[[str], str]) -> list[str]:
    """Return a sentence on the layer at which images become equal, for a representation that is."""
    if is_constant(features, INPUT):
        return [
            "The images themselves are equal (their pixels have no variance), so that no encoder could tell them "
            "apart: the cause is the data, or how they were read."
        ]
    alive = [name for name in hidden if name not in equal]
    if alive:
        following = hidden[hidden.index(alive[-1]) + 1 :]
        first = following[0] if following else REPRESENTATION
        return [f"The images still differ at {_listed(map(show, alive))}, and no longer at {show(first)}."]
    return [f"They are equal from the first measured layer on, {show(hidden[0])}."] if hidden else []


def _without_directions(weights: Weights, show: Callable[[str], str]) -> list[str]:
    zero = [name for name, w in weights.items() if float(w.singular_values[0]) == 0]
    constant = [name for name, w in weights.items() if name not in zero and w.num_positive == 0 < w.most_positive]
    sentences = []
    for names, what in ((zero, "zero"), (constant, "constant, with the same weights for all inputs")):
        if names:
            one = len(names) == 1
            number = "The" if one and len(weights) == 1 else f"{len(names)} of the {len(weights)}"
            matrices = "weight matrix" if len(weights) == 1 else "weight matrices"
            named = _listed(show(name) for name in names)
            sentences.append(f"{number} {matrices} {'is' if one else 'are'} {what}: {named}.")
    return sentences


def is_constant(features: Features, layer: str) -> bool:
    """Return whether all images are equal at a layer; `False` if it was not measured."""
    return layer in features and features[layer].num_positive == 0


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def _listed(names: Iterable[str]) -> str:
    """Return names as "a, b and c", or the first of them and how many more there are."""
    shown: Sequence[str] = list(names)
    if len(shown) > _NAMED + 1:
        return f"{', '.join(shown[:_NAMED])} and {len(shown) - _NAMED} more"
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]
