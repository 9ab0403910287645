"""Walks a model once and fills a report."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

# Sideways, and the only such import: the spectra of the weights are those of exactly the matrices regularized.
from hf_orthossl.regularization import select_matrices

from ..distributed.collectives import all_gather_object, all_gather_rows
from .covariance import MAX_DIM, SketchedCovariance, StreamingCovariance, covariance_for
from .layers import EMBEDDING, POOLS, REPRESENTATION, LayerReader, as_vectors, batches, check_layers, evaluation_mode
from .measures import lidar
from .report import SpectralReport
from .spectrum import FeatureSpectrum, WeightSpectrum


def spectral_report(
    model: nn.Module,
    images: Tensor | Iterable | None = None,
    *,
    layers: Sequence[str] | None = None,
    projector: nn.Module | None = None,
    views: Tensor | Iterable[Tensor] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    batch_size: int = 256,
    pool: str = "avg",
    max_dim: int = MAX_DIM,
    metadata: Mapping | None = None,
    shared: bool = False,
) -> SpectralReport:
    """
    Spectra of a model's weights and, if images are given, of its features, in one forward pass per batch.

    The model runs in evaluation mode without gradients; its modes are restored afterwards. Memory is O(D²) for
    the widest layer, whatever the number of images.

    Sharded weights (`DTensor`, of FSDP2) are gathered one at a time: all processes must call, and all get the result.

    Args:
        model (`nn.Module`): an `hf_orthossl` encoder, or any timm, transformers or torch model.
        images (`Tensor` or iterable, *optional*): normalised images `(N, 3, H, W)`, or batches of them: tensors,
            dicts with `pixel_values`, or tuples that begin with the images (any `DataLoader`). The paper takes
            4,096 test images. Without images, only the weights are measured.
        layers (sequence of `str`, *optional*): whose features: `"input"`, stages, any module by name,
            `"representation"`, `"embedding"`. Defaults to the input, all stages, the representation and, with a
            projector, the embedding.
        projector (`nn.Module`, *optional*): maps representations to embeddings.
        views (`Tensor` or iterable, *optional*): `(n, v, 3, H, W)`, v augmented views of each of n images, or batches
            of such, for LiDAR of the representation and the embedding.
        include, exclude (`str` or sequence of `str`, *optional*): patterns of weights, as in `select_matrices`.
            Defaults to every matrix that is regularized.
        batch_size (`int`, *optional*, defaults to 256): how `images` is cut if it is one tensor.
        pool (`str`, *optional*, defaults to `"avg"`): how a feature map or tokens become one vector per image:
            `"avg"` over positions, giving as many dimensions as channels, or `"flatten"`, which makes the first
            stage of a CIFAR ResNet-18 65,536-dimensional and mostly needs the sketch. Input pixels are always
            flattened, as in the paper (3,072 dimensions for CIFAR).
        max_dim (`int`, *optional*, defaults to 8192): above so many dimensions only the leading 128 eigenvalues
            are estimated, from a randomized sketch; the report notes it.
        metadata (mapping, *optional*): JSON values to keep with the report, such as `model` (the name to show;
            defaults to the encoder's name or the class), `dataset` or `version`.
        shared (`bool`, *optional*, defaults to `False`): `images` and `views` are this process's share of them. All
            processes of the run call, and all get the report of all images.

    Returns:
        [`SpectralReport`].

    Raises:
        ValueError: if a layer or pattern names nothing, images are not batches of finite floats or fewer than two,
            or the model's weights or features hold NaN or infinity.

    Example:

    ```python
    >>> report = spectral_report(encoder, images, metadata={"dataset": "digits"})
    >>> print(report.table())
    >>> report.plot("spectra.png")
    ```
    """
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    if batch_size < 1 or max_dim < 1:
        raise ValueError(f"batch_size and max_dim must be at least 1, got {batch_size} and {max_dim}")
    if images is None and (layers is not None or views is not None):
        raise ValueError("layers and views need images: pass images, or choose weights with include")
    if layers is not None:
        check_layers(model, layers, projector)
    # Also for the weights: torch's spectral norm, in training mode, moves its vectors when a weight is read.
    with evaluation_mode(model):
        report = SpectralReport(weights=weight_spectra(model, include, exclude))
    if images is not None:
        reader = LayerReader(model, layers, projector)
        try:
            with evaluation_mode(model, projector):
                report.features = _feature_spectra(reader, images, views, batch_size, pool, max_dim, shared)
        finally:
            reader.close()
        report.notes = _notes(report.features, max_dim, reader)
        report.metadata["num_images"] = next(iter(report.features.values())).num_images
    name = getattr(model, "name", None)
    report.metadata = {
        "model": name if isinstance(name, str) else type(model).__name__,
        **report.metadata,
        **(metadata or {}),
    }
    return report


def weight_spectra(
    model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> dict[str, WeightSpectrum]:
    """
    Spectrum of every weight matrix that `select_matrices` chooses, by name.

    Args:
        model (`nn.Module`): any module.
        include, exclude (`str` or sequence of `str`, *optional*): patterns of names, as in `select_matrices`.

    Raises:
        ValueError: if nothing is chosen, or a weight holds NaN or infinity.
    """
    spectra = {}
    with torch.no_grad():
        for weight in select_matrices(model, include=include, exclude=exclude):
            try:
                spectra[weight.name] = WeightSpectrum.from_matrix(weight.matrix(), weight.group)
            except ValueError as error:
                raise ValueError(f"weight {weight.name!r}: {error}") from error
    return spectra


def _feature_spectra(
    reader: LayerReader,
    images: Tensor | Iterable,
    views: Tensor | Iterable[Tensor] | None,
    batch_size: int,
    pool: str,
    max_dim: int,
    shared: bool,
) -> dict[str, FeatureSpectrum]:
    covariances, pools = feature_covariances(reader, images, batch_size, pool, max_dim)
    if shared:
        _combine(covariances)
    count = max((covariance.count for covariance in covariances.values()), default=0)
    if count < 2:
        raise ValueError(f"images must hold at least 2 images for a covariance, got {count}")
    lidars = {} if views is None else _lidars(reader, views, batch_size, shared)
    spectra, known = {}, {}
    for layer, covariance in covariances.items():
        try:
            # Layers that share a covariance share its spectrum.
            spectrum = known.get(id(covariance)) or FeatureSpectrum.from_covariance(covariance)
        except ValueError as error:
            raise ValueError(f"layer {layer!r}: {error}") from error
        known[id(covariance)] = spectrum
        spectra[layer] = replace(spectrum, pool=pools[layer], lidar=lidars.get(layer))
    return spectra


def feature_covariances(
    reader: LayerReader, images: Tensor | Iterable, batch_size: int, pool: str, max_dim: int
) -> tuple[dict[str, StreamingCovariance | SketchedCovariance], dict[str, str]]:
    """The pass over the images: each layer's covariance, and how it was made one vector per image."""
    covariances, pools = {}, {}
    for batch in batches(images, batch_size):
        vectors = {}
        for layer, output in reader.read(batch).items():
            # The paper's input spectrum is that of all pixels, whatever is done to feature maps.
            vectors[layer], pools[layer] = as_vectors(output, "flatten" if layer == "input" else pool)
        _take_in(vectors, covariances, _layer_before_representation(vectors), max_dim)
    return covariances, pools


def _layer_before_representation(layers: Iterable[str]) -> str | None:
    """The last stage, in a model whose layers are read in order."""
    names = list(layers)
    return names[names.index(REPRESENTATION) - 1] if REPRESENTATION in names[1:] else None


def _take_in(vectors: dict[str, Tensor], covariances: dict, before: str | None, max_dim: int) -> None:
    """
    Adds one batch to every layer's covariance.

    A ResNet's representation is its last stage averaged: as long as the two agree to the last bit of the
    representation's type, they share one covariance; at the first batch where they do not, it is copied.
    """
    same = before is not None and torch.equal(
        vectors[before].to(vectors[REPRESENTATION].dtype), vectors[REPRESENTATION]
    )
    if before in covariances and covariances[REPRESENTATION] is covariances[before] and not same:
        covariances[REPRESENTATION] = copy.deepcopy(covariances[before])
    for layer, rows in vectors.items():
        if layer not in covariances:
            shared = layer == REPRESENTATION and same
            covariances[layer] = covariances[before] if shared else covariance_for(rows.shape[1], max_dim, rows.device)
        if layer == REPRESENTATION and covariances[layer] is covariances.get(before):
            continue
        try:
            covariances[layer].update(rows)
        except ValueError as error:
            raise ValueError(f"layer {layer!r} (do all images have the same size?): {error}") from error


def _combine(covariances: dict[str, StreamingCovariance | SketchedCovariance]) -> None:
    """Takes in the images of the other processes."""
    _check_shares(covariances, "images")
    before = _layer_before_representation(covariances)
    one = before is not None and covariances[REPRESENTATION] is covariances[before]
    # Where the two agree on some processes only, they are two on all.
    agreed = all(all_gather_object(one))
    if one and not agreed:
        covariances[REPRESENTATION] = copy.deepcopy(covariances[before])
    for covariance in {id(covariance): covariance for covariance in covariances.values()}.values():
        covariance.combine()


def _check_shares(found: Iterable[str], name: str) -> None:
    if not all(all_gather_object(bool(found))):
        raise ValueError(f"{name} must be at least as many as there are processes: a share of them is empty")


def _lidars(reader: LayerReader, views: Tensor | Iterable[Tensor], batch_size: int, shared: bool) -> dict[str, float]:
    seen: dict[str, list[Tensor]] = {}
    parts = views.split(batch_size) if isinstance(views, Tensor) and views.ndim else views
    for part in parts:
        if part.ndim != 5 or part.shape[1] < 2:
            raise ValueError(f"views must be (n >= 2, v >= 2, 3, H, W), got the shape {tuple(part.shape)}")
        found: dict[str, list[Tensor]] = {}
        for batch in batches(part.flatten(0, 1), batch_size):
            for layer, output in reader.read(batch).items():
                if layer in (REPRESENTATION, EMBEDDING):
                    found.setdefault(layer, []).append(as_vectors(output, "avg")[0].cpu())
        for layer, vectors in found.items():
            seen.setdefault(layer, []).append(torch.cat(vectors).unflatten(0, part.shape[:2]))
    found = {layer: torch.cat(vectors) for layer, vectors in seen.items()}
    if shared:
        _check_shares(found, "views")
        found = {layer: all_gather_rows(vectors) for layer, vectors in found.items()}
    return {layer: lidar(vectors) for layer, vectors in found.items()}


def _notes(features: dict[str, FeatureSpectrum], max_dim: int, reader: LayerReader) -> list[str]:
    notes = []
    capped = [f"{layer} ({f.dim})" for layer, f in features.items() if f.num_images <= f.dim]
    if capped:
        count = next(iter(features.values())).num_images
        notes.append(
            f"{count} images cap the rank of the features at {count - 1}, below the dimension of {', '.join(capped)}: "
            "use more images to tell the cap from a collapse."
        )
    for layer, f in features.items():
        if not f.exact:
            notes.append(
                f"{layer} has {f.dim} dimensions, more than max_dim = {max_dim}: its {len(f.eigenvalues)} leading "
                "eigenvalues are estimated from a randomized sketch, its effective rank and RankMe are lower bounds, "
                "and only its total variance is exact."
            )
    if reader.layers is None and not reader.found_stages:
        notes.append("No stages were recognized by name in this model: name some of its modules in layers.")
    return notes
