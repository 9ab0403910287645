"""Measure the spectra of a model's weights and features in one pass over the images."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import ArrayLike, as_int, as_tensor
from ..distributed.collectives import all_gather_object, all_gather_rows
from ..messages import describe

# The measured matrices are exactly the regularized ones.
from ..regularization import select_matrices
from .covariance import MAX_DIM, SketchedCovariance, StreamingCovariance, covariance_for
from .layers import (
    EMBEDDING,
    POOLS,
    REPRESENTATION,
    LayerReader,
    as_vectors,
    batches,
    check_layers,
    evaluation_mode,
    samples,
)
from .measures import lidar
from .norms import removed_by_norms
from .report import SpectralReport
from .spectrum import FeatureSpectrum, WeightSpectrum

# The covariance of each layer's features.
Covariances = dict[str, StreamingCovariance | SketchedCovariance]


def spectral_report(
    model: nn.Module,
    images: ArrayLike | Iterable[Any] | None = None,
    *,
    layers: Sequence[str] | None = None,
    projector: nn.Module | None = None,
    views: ArrayLike | Iterable[ArrayLike] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    batch_size: int = 256,
    pool: str = "avg",
    max_dim: int = MAX_DIM,
    metadata: Mapping | None = None,
    shared: bool = False,
) -> SpectralReport:
    """Measure the spectra of a model's weights and, if images are given, of its features.

    The model runs in evaluation mode without gradients, one forward pass per batch; its modes are restored afterwards.
    Memory is O(D²) for the widest layer, whatever the number of images.

    Sharded weights (FSDP2's `DTensor`) are gathered one at a time: call it on all processes; all receive the result.

    Args:
        model (`nn.Module`): An `hf_orthossl` encoder, or any timm, transformers or torch model.
        images (`Tensor`, array or iterable, *optional*): Normalized images `(N, C, H, W)`, or batches of them: tensors,
            arrays, dicts with `pixel_values`, or tuples that begin with the images (any `DataLoader`). The paper uses
            4,096 test images. Without images, only the weights are measured.
        layers (sequence of `str`, *optional*): The layers to measure: `"input"`, stages, any module by name,
            `"class_token"` and `"patch_tokens"` of a vision transformer, `"representation"`, `"embedding"`. Defaults to
            the input, all stages, the patch tokens, the class token if it is not the representation, the
            representation and, with a projector, the embedding. Each patch token is a vector by itself; those of all
            images together show whether patches differ (dense collapse).
        projector (`nn.Module`, *optional*): Maps representations to embeddings.
        views (`Tensor`, array or iterable, *optional*): v augmented views of each of n images, shape
            `(n, v, C, H, W)`, or batches of them, for LiDAR of the representation and the embedding.
        include (`str` or sequence of `str`, *optional*): Patterns of weights, as in `select_matrices`; defaults to
            every matrix that is regularized.
        exclude (`str` or sequence of `str`, *optional*): Patterns of weights to omit.
        batch_size (`int`, defaults to 256): Images per batch, if `images` is one array.
        pool (`str`, defaults to `"avg"`): How a feature map or tokens become one vector per image: `"avg"` over
            positions, with as many dimensions as channels, or `"flatten"`, which makes the first stage of a CIFAR
            ResNet-18 65,536-dimensional and usually needs the sketch. Input pixels are always flattened, as in the
            paper (3,072 dimensions for CIFAR).
        max_dim (`int`, defaults to 8192): Above this many dimensions only the leading 128 eigenvalues are estimated,
            from a randomized sketch; the report notes it.
        metadata (mapping, *optional*): JSON values to store with the report, such as `model` (the name to show;
            defaults to the encoder's name or the class), `dataset` or `version`.
        shared (`bool`, defaults to `False`): Whether `images` and `views` are this process's share of them. All
            processes of the run must call this function, and all receive the report of all images.

    Returns:
        [`SpectralReport`]: With `table()`, `plot(path)` and `save(directory)`.

    Raises:
        TypeError: `model` is not a module, or an argument is not an array.
        ValueError: A layer or pattern matches nothing, images are not batches of finite floats or fewer than two, or
            the model's weights or features hold NaN or infinity.

    Example:
        >>> report = spectral_report(encoder, images, metadata={"dataset": "digits"})
        >>> print(report.table())
        >>> report.plot("spectra.png")
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {describe(model)}: pass load_encoder(…)")
    if projector is not None and not isinstance(projector, nn.Module):
        raise TypeError(f"projector must be a torch module, got {describe(projector)}")
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    batch_size, max_dim = as_int("batch_size", batch_size, at_least=1), as_int("max_dim", max_dim, at_least=1)
    if images is None and (layers is not None or views is not None):
        raise ValueError("layers and views need images: pass images, or omit both to measure the weights only")
    if layers is not None:
        check_layers(model, layers, projector)
    # This also matters for weights: in training mode, torch's spectral norm updates its vectors when a weight is read.
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
    """Return the spectrum of every weight matrix that `select_matrices` selects, by name.

    Args:
        model (`nn.Module`): Any module.
        include (`str` or sequence of `str`, *optional*): Patterns of names, as in `select_matrices`, such as
            `"layer4.*"`.
        exclude (`str` or sequence of `str`, *optional*): Patterns of names to omit.

    Raises:
        TypeError: `model` is not a module.
        ValueError: No weight is selected, or a weight holds NaN or infinity.

    Example:
        >>> weight_spectra(encoder)["layer4.0.conv2.weight"].effective_rank
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {describe(model)}: pass load_encoder(…)")
    spectra: dict[str, WeightSpectrum] = {}
    with torch.no_grad():
        for weight in select_matrices(model, include=include, exclude=exclude):
            try:
                spectra[weight.name] = WeightSpectrum.from_matrix(weight.matrix(), weight.group)
            except ValueError as error:
                raise ValueError(f"weight {weight.name!r}: {error}") from error
    return spectra


def _feature_spectra(
    reader: LayerReader,
    images: ArrayLike | Iterable[Any],
    views: ArrayLike | Iterable[ArrayLike] | None,
    batch_size: int,
    pool: str,
    max_dim: int,
    shared: bool,
) -> dict[str, FeatureSpectrum]:
    covariances, pools, tokens = feature_covariances(reader, images, batch_size, pool, max_dim)
    if shared:
        _combine(covariances)
    count = max((covariance.count // tokens[layer] for layer, covariance in covariances.items()), default=0)
    if count < 2:
        raise ValueError(f"images must contain at least 2 images for a covariance, got {count}")
    lidars = {} if views is None else _lidars(reader, views, batch_size, shared)
    spectra: dict[str, FeatureSpectrum] = {}
    known: dict[int, FeatureSpectrum] = {}
    for layer, covariance in covariances.items():
        try:
            # Layers that share a covariance also share its spectrum.
            spectrum = known.get(id(covariance)) or _spectrum(covariance, reader)
        except ValueError as error:
            raise ValueError(f"layer {layer!r}: {error}") from error
        known[id(covariance)] = spectrum
        spectra[layer] = replace(
            spectrum,
            num_images=covariance.count // tokens[layer],
            tokens_per_image=tokens[layer],
            pool=pools[layer],
            lidar=lidars.get(layer),
        )
    return spectra


def _spectrum(covariance: StreamingCovariance | SketchedCovariance, reader: LayerReader) -> FeatureSpectrum:
    spectrum = FeatureSpectrum.from_covariance(covariance)
    if isinstance(covariance, SketchedCovariance) or spectrum.num_positive == spectrum.dim:
        return spectrum
    removed = removed_by_norms(covariance, reader.model, reader.projector)
    return replace(spectrum, removed_by_norm=min(removed, spectrum.dim - spectrum.num_positive))


def feature_covariances(
    reader: LayerReader, images: ArrayLike | Iterable[Any], batch_size: int, pool: str, max_dim: int
) -> tuple[Covariances, dict[str, str], dict[str, int]]:
    """Pass over the images, and return each layer's covariance, its pooling, and its number of vectors per image.

    Args:
        reader ([`LayerReader`]): Reads the layers of the model.
        images (`Tensor`, array or iterable): See [`spectral_report`].
        batch_size (`int`): Images per batch, if `images` is one array.
        pool (`str`): `"avg"` or `"flatten"`.
        max_dim (`int`): The largest dimension for which the covariance is formed.
    """
    covariances: Covariances = {}
    pools: dict[str, str] = {}
    tokens: dict[str, int] = {}
    for batch in batches(images, batch_size):
        vectors: dict[str, Tensor] = {}
        dtypes: dict[str, torch.dtype] = {}
        for layer, output in reader.read(batch).items():
            dtypes[layer] = output.dtype
            vectors[layer], pools[layer] = samples(layer, output, pool)
            tokens[layer] = len(vectors[layer]) // len(batch)
        _add_batch(vectors, dtypes, covariances, _layer_before_representation(vectors), max_dim)
    return covariances, pools, tokens


def _layer_before_representation(layers: Iterable[str]) -> str | None:
    """Return the last stage if the layers are read in the model's order, else `None`."""
    names = list(layers)
    return names[names.index(REPRESENTATION) - 1] if REPRESENTATION in names[1:] else None


def _add_batch(
    vectors: dict[str, Tensor],
    dtypes: dict[str, torch.dtype],
    covariances: Covariances,
    before: str | None,
    max_dim: int,
) -> None:
    """Add one batch to every layer's covariance.

    A ResNet's representation is the average of its last stage: as long as the two agree to the last bit of the
    representation's dtype, they share one covariance; at the first batch in which they differ, it is copied.
    """
    same = before is not None and torch.equal(
        vectors[before].to(vectors[REPRESENTATION].dtype), vectors[REPRESENTATION]
    )
    last = None if before is None else covariances.get(before)
    if last is not None and covariances[REPRESENTATION] is last and not same:
        covariances[REPRESENTATION] = copy.deepcopy(last)
    for layer, rows in vectors.items():
        if layer not in covariances:
            if layer == REPRESENTATION and same and before is not None:
                covariances[layer] = covariances[before]
            else:
                covariances[layer] = covariance_for(rows.shape[1], max_dim, rows.device)
        if layer == REPRESENTATION and before is not None and covariances[layer] is covariances.get(before):
            continue
        try:
            covariances[layer].update(rows, dtypes[layer])
        except ValueError as error:
            raise ValueError(f"layer {layer!r} (do all images have the same size?): {error}") from error


def _combine(covariances: Covariances) -> None:
    """Merge the covariances of all processes."""
    _check_shares(covariances, "images")
    before = _layer_before_representation(covariances)
    last = None if before is None else covariances[before]
    one = last is not None and covariances[REPRESENTATION] is last
    # If the two agree only on some processes, they are separate on all.
    agreed = all(all_gather_object(one))
    if last is not None and one and not agreed:
        covariances[REPRESENTATION] = copy.deepcopy(last)
    for covariance in {id(covariance): covariance for covariance in covariances.values()}.values():
        covariance.combine()


def _check_shares(layers: Mapping[str, Any], name: str) -> None:
    if not all(all_gather_object(bool(layers))):
        raise ValueError(f"{name} must be at least as many as the processes: the share of one is empty")


def _lidars(
    reader: LayerReader, views: ArrayLike | Iterable[ArrayLike], batch_size: int, shared: bool
) -> dict[str, float]:
    """Return LiDAR of the representation and the embedding."""
    seen: dict[str, list[Tensor]] = {}
    for part in _view_parts(views, batch_size):
        outputs: dict[str, list[Tensor]] = {}
        for batch in batches(part.flatten(0, 1), batch_size):
            for layer, output in reader.read(batch).items():
                if layer in (REPRESENTATION, EMBEDDING):
                    outputs.setdefault(layer, []).append(as_vectors(output, "avg")[0].cpu())
        for layer, vectors in outputs.items():
            seen.setdefault(layer, []).append(torch.cat(vectors).unflatten(0, part.shape[:2]))
    embeddings = {layer: torch.cat(vectors) for layer, vectors in seen.items()}
    if shared:
        _check_shares(embeddings, "views")
        embeddings = {layer: all_gather_rows(vectors) for layer, vectors in embeddings.items()}
    return {layer: lidar(vectors) for layer, vectors in embeddings.items()}


def _view_parts(views: ArrayLike | Iterable[ArrayLike], batch_size: int) -> Iterable[Tensor]:
    """Yield checked batches `(n, v, C, H, W)` of views."""
    shape = "(n >= 2, v >= 2, C, H, W), or batches of them"
    if isinstance(views, Tensor | np.ndarray):
        views = as_tensor("views", views, 5, shape=shape, finite=False).split(batch_size)
    if isinstance(views, str | bytes) or not isinstance(views, Iterable):
        raise TypeError(f"views must be an array {shape}, got {describe(views)}: pass augmented images")
    for part in views:
        tensor = as_tensor("views", part, 5, shape=shape, finite=False)
        if tensor.shape[1] < 2:
            raise ValueError(f"views has shape {tuple(tensor.shape)}: pass {shape}")
        yield tensor


def _notes(features: dict[str, FeatureSpectrum], max_dim: int, reader: LayerReader) -> list[str]:
    notes = []
    capped = [f"{layer} ({f.dim})" for layer, f in features.items() if f.num_vectors == f.num_images <= f.dim]
    if capped:
        count = next(iter(features.values())).num_images
        notes.append(
            f"{count} images cap the rank of the features at {count - 1}, below the dimension of {', '.join(capped)}: "
            "this limit of the sample is no collapse; use more images to see beyond it."
        )
    for layer, f in features.items():
        if not f.exact:
            notes.append(
                f"{layer} has {f.dim} dimensions, more than max_dim = {max_dim}: its {len(f.eigenvalues)} leading "
                "eigenvalues are estimated from a randomized sketch, its effective rank and RankMe are lower bounds, "
                "and only its total variance is exact."
            )
    if reader.layers is None and not reader.found_stages:
        notes.append("No stages were recognized by name in this model: pass the names of its modules in layers.")
    return notes
