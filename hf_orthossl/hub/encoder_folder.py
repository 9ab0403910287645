"""Write the encoder folder of a run: weights, card and spectra, loadable without this package."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from .. import __version__
from ..configuration import AUTO
from ..data import ImageDataset, ImageSource
from ..data.locations import EMBEDDED
from ..data.unreadable import Unreadable
from ..encoders import Encoder, export_encoder
from ..encoders.embedding import normalized_batches
from ..encoders.export import OWN_FILES
from ..evaluation import Result, write_results
from ..files import replace_file, replacing_folder
from ..modeling import SSLModel
from ..regularization import select_matrices
from ..spectra import SpectralReport, last_weights, plot_representations, plot_spectra, spectral_report
from ..spectra.report import ARRAYS, SCALARS
from .card.render import FIGURE, MAP, START_FIGURE, render_card
from .client import hub_id, public_name
from .encoder_record import EncoderRecord, package_commit
from .measurements import RESULTS, public_result
from .publish import FIGURES

CARD = "README.md"
# What describes the weights beside it, and is of no use without them.
DESCRIBED = (CARD, RESULTS, SCALARS, ARRAYS, *FIGURES)
# The most images whose features are measured.
SPECTRA_IMAGES = 1024
# The fewest that have a covariance.
REHEARSAL_IMAGES = 2


def write_encoder_folder(
    model: SSLModel,
    folder: str | Path,
    *,
    source: ImageSource | None,
    results: Sequence[Result] = (),
    training: dict | None = None,
    spectra_images: int | None = SPECTRA_IMAGES,
    encoder: Encoder | None = None,
    start: SpectralReport | None = None,
) -> Path:
    """Write the encoder of a trained model with its origin, results, spectra and card.

    The folder contains `config.json`, `model.safetensors` and other files needed for loading, `results.json`,
    `spectra.json`, `spectra.safetensors`, `spectra.png`, for labelled images a map of the classes
    (`representations.png`), and the card, `README.md`.

    Args:
        model ([`SSLModel`]): The trained model; only its encoder is exported.
        folder (`str` or `Path`): Folder to write. Its files are replaced; the owner's text in the card is kept.
        source ([`ImageSource`], *optional*): Training data, whose images are also used for the feature spectra. A local
            folder is recorded without its path.
        results (sequence of [`Result`], *optional*): Results for the card; local folders are recorded without their
            path.
        training (`dict`, *optional*): Settings of the training as [`training_record`] returns them, JSON values;
            `"pretrained"` states whether the initial weights were published ones.
        spectra_images (`int`, *optional*, defaults to 1024): Maximum number of images for the feature spectra; none are
            measured for a stream. `None` leaves out all spectra, of the weights too.
        encoder ([`Encoder`], *optional*): The encoder with gathered weights, from
            [`~distributed.sharding.gather_module`], if the model's are sharded.
        start ([`SpectralReport`], *optional*): Spectra of the weights that the run started from, which are then drawn
            together with those of the end.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: The weights are sharded and `encoder` is missing.
        OSError: The folder cannot be written; an earlier encoder in it remains intact.

    Example:
        >>> write_encoder_folder(model, "runs/mine/encoder", source=load_source("digits"))
    """
    encoder = encoder or model.encoder
    record = _record(model, source, training or {})
    folder = Path(folder)
    # As a whole, so that no card ever describes other weights than those beside it.
    with replacing_folder(folder, (*OWN_FILES, *DESCRIBED)) as unfinished:
        export_encoder(encoder, unfinished, metadata=record.to_dict())
        if results:
            write_results(unfinished / RESULTS, [public_result(result) for result in results])
        if spectra_images is not None:
            with _Seen(encoder) as seen:
                report = training_spectra(encoder, source, spectra_images, metadata=_about(record), seen=seen)
            report.save(unfinished)
            report.plot(unfinished / FIGURE)
            seen.draw(source, unfinished / MAP)
            if start is not None:
                plot_spectra({"start": start, "end": report}, unfinished / START_FIGURE)
        _write_card(unfinished, folder)
    return folder


def training_spectra(
    encoder: Encoder,
    source: ImageSource | None,
    images: int = SPECTRA_IMAGES,
    *,
    metadata: dict[str, Any] | None = None,
    seen: "_Seen | None" = None,
) -> SpectralReport:
    """Return the spectra of an encoder, on images that it is trained on; of the weights alone for a stream.

    Args:
        encoder ([`Encoder`]): The encoder.
        source ([`ImageSource`], *optional*): The images.
        images (`int`, defaults to 1024): Maximum number of images.
        metadata (`dict`, *optional*): What the report says of itself.
        seen (`_Seen`, *optional*): Keeps the labels of the images.
    """
    unreadable: list[Unreadable] = []
    batches = _images(encoder, source, images, unreadable)
    batches = batches if seen is None or batches is None else seen.labelled(batches)
    report = spectral_report(encoder, batches, metadata=metadata or {})
    if unreadable:
        # Their names are those of local files, which are not published.
        report.notes.append(f"{len(unreadable):,} further images cannot be read and were left out.")
    return report


class _Seen:
    """Keep representations and labels of the images that pass an encoder within this context, for a map of them.

    The map shows points, and no image: training images may be private.

    Args:
        encoder ([`Encoder`]): The encoder.
    """

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._representations: list[Tensor] = []
        self._labels: list[Tensor] = []

    def __enter__(self) -> Self:
        self._handle = self._encoder.register_forward_hook(
            lambda module, inputs, output: self._representations.append(output.detach().float().cpu())
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def labelled(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the batches, and keep their labels."""
        for batch in batches:
            self._labels.append(batch["labels"])
            yield batch

    def draw(self, source: ImageSource | None, path: Path) -> None:
        """Draw the first two principal components of the representations, if two classes or more are labelled."""
        if not self._labels or source is None or source.label_column is None:
            return
        labels = torch.cat(self._labels)
        known = labels >= 0
        representations = torch.cat(self._representations)[: len(labels)][known]
        if len(labels[known].unique()) < 2 or not torch.isfinite(representations).all():
            return
        # Names of a user's own classes stay here, as paths do.
        names = source.class_names if source.name in EMBEDDED or hub_id(source.name) else None
        plot_representations(representations, labels[known], path, class_names=names, method="pca")


def rehearse_encoder_folder(
    model: SSLModel, folder: str | Path, *, source: ImageSource | None, training: dict | None = None
) -> None:
    """Do on a small scale what [`write_encoder_folder`] does, before training, so that it cannot fail there for long.

    The weights are reduced to one number each, and the spectra to the smallest matrix and the first stage of a few
    images; everything else is the same.

    Args:
        model ([`SSLModel`]): The model to train.
        folder (`str` or `Path`): An empty folder.
        source ([`ImageSource`], *optional*): See [`write_encoder_folder`].
        training (`dict`, *optional*): See [`write_encoder_folder`].

    Raises:
        Exception: Whatever [`write_encoder_folder`] would raise.
    """
    encoder, record = model.encoder, _record(model, source, training or {})
    folder = export_encoder(encoder, folder, metadata=record.to_dict(), rehearsal=True)
    write_results(folder / RESULTS, [public_result(Result("knn", "rehearsal", "train", "top1", 0.5, {}))])
    images = list(_images(encoder, source, REHEARSAL_IMAGES) or ())
    # One may be unreadable although most of the others are not.
    enough = sum(len(batch["pixel_values"]) for batch in images) >= REHEARSAL_IMAGES
    # Of those that the figure shows.
    sizes = {matrix.name: math.prod(matrix.shape) for matrix in select_matrices(encoder)}
    smallest = min(last_weights(sizes) or sizes, key=lambda name: sizes[name])
    report = spectral_report(
        encoder,
        images if enough else None,
        layers=encoder.stage_names[:1] if enough else None,
        include=smallest.partition("[")[0],
        metadata=_about(record),
    )
    report.save(folder)
    if last_weights(report.weights):
        # One panel, because the time for a figure is that of its panels.
        SpectralReport(weights=report.weights).plot(folder / FIGURE)
    _write_card(folder, folder)


def _images(
    encoder: Encoder, source: ImageSource | None, count: int, unreadable: list[Unreadable] | None = None
) -> Iterable[dict[str, Any]] | None:
    """Return batches of up to `count` images for the feature spectra; `None` for a stream, and below two images."""
    if source is None or not source.num_rows or source.num_rows < REHEARSAL_IMAGES:
        return None
    chosen = spectra_rows(source.num_rows, count)
    measured = ImageDataset(source, image_size=encoder.image_size, indices=chosen, unreadable="omit")
    return normalized_batches(encoder, measured, unreadable=unreadable)


def _about(record: EncoderRecord) -> dict[str, Any]:
    return {"model": record.short_name, "dataset": record.dataset, "split": record.split, "version": record.version}


def spectra_rows(num_rows: int, images: int = SPECTRA_IMAGES) -> list[int]:
    """Return the rows of a data set from which feature spectra are measured.

    They are evenly spaced, so that a data set sorted by class contributes all its classes.

    Args:
        num_rows (`int`): Size of the data set.
        images (`int`, defaults to 1024): Maximum number of rows.
    """
    return list(range(0, num_rows, max(num_rows // images, 1)))[:images]


def _record(model: SSLModel, source: ImageSource | None, training: dict) -> EncoderRecord:
    config, encoder = model.config, model.encoder
    return EncoderRecord(
        backbone=public_name(config.backbone),
        backbone_config=config.backbone_config,
        num_features=encoder.num_features,
        image_size=encoder.image_size,
        mean=[float(value) for value in encoder.mean],
        std=[float(value) for value in encoder.std],
        pooling=encoder.pooling,
        method=config.method,
        # One may name a folder, such as that of a teacher.
        method_config={
            name: public_name(value) if isinstance(value, str) else value
            for name, value in config.method_config.items()
        },
        regularizer=config.regularizer,
        regularizer_config=config.regularizer_config,
        gamma=_gamma(model),
        penalty_mode=config.penalty_mode if config.regularizer else None,
        strength=None if config.strength is None else float(config.strength),
        constrain=config.constrain,
        whitening=float(config.whitening),
        embedding_regularizer=config.embedding_regularizer,
        embedding_weight=float(config.embedding_weight) if config.embedding_regularizer else None,
        embedding_layer=config.embedding_layer if config.embedding_regularizer else None,
        embedding_config=config.embedding_config,
        dataset=public_name(source.name) if source is not None else None,
        split=source.split if source is not None else None,
        num_images=source.num_rows if source is not None else None,
        base_model=training.get("base_model"),
        training={name: value for name, value in training.items() if name != "base_model"},
        version=__version__,
        commit=package_commit(),
        parameters=sum(weight.numel() for weight in encoder.parameters()),
    )


def _gamma(model: SSLModel) -> float | None:
    """Return the weight γ in use; `None` without a penalty in the loss, and before a run has begun to measure it."""
    config = model.config
    if config.regularizer is None or config.penalty_mode != "loss":
        return None
    return None if config.gamma == AUTO and config.measured_gamma is None else float(model.gamma)


def _write_card(unfinished: Path, folder: Path) -> None:
    """Render the card of a folder that takes the place of another, whose card the owner may have written in.

    If the owner's markers are broken, warn and keep that card byte for byte, so as not to fail the run.
    """
    path = folder / CARD
    # Read as bytes, because reading as text would change the owner's line breaks.
    before = path.read_bytes() if path.is_file() else None
    try:
        previous = None if before is None else before.decode("utf-8")
        card = render_card(unfinished, location=folder, previous=previous).encode()
    except ValueError as error:
        warnings.warn(f"{path} was not updated: {error}", stacklevel=3)
        if before is None:
            return
        card = before
    replace_file(unfinished / CARD, card)
