"""The folder a run leaves for others: weights, card and spectra, loadable without this package."""

import warnings
from pathlib import Path

from .. import __version__
from ..data import ImageDataset, ImageSource
from ..encoders import Encoder, export_encoder
from ..evaluation import Result, write_results
from ..evaluation.features import normalized_batches
from ..modeling import SSLModel
from ..spectra import spectral_report
from .card.render import FIGURE, render_card
from .client import hub_id, public_name
from .encoder_record import EncoderRecord, package_commit
from .measurements import RESULTS, public_result

CARD = "README.md"


def write_encoder_folder(
    model: SSLModel,
    folder: str | Path,
    *,
    source: ImageSource | None,
    results: list[Result] = (),
    training: dict | None = None,
    spectra_images: int = 1024,
    encoder: Encoder | None = None,
) -> Path:
    """Writes an encoder with all that is known of it.

    `config.json` and `model.safetensors` with what loading needs, `results.json`, `spectra.json`,
    `spectra.safetensors`, `spectra.png`, and the card, `README.md`.

    Args:
        model ([`SSLModel`]): The trained model; only its encoder is exported.
        folder (`str` or `Path`): Where to; what is there is replaced, but for what the owner wrote in the card.
        source ([`ImageSource`], *optional*): What it was trained on, and whose images the feature spectra are taken
            over. A folder is named without its path.
        results (`list[Result]`, *optional*): Measurements for the card; folders in them are named without their path.
        training (`dict`, *optional*): How it was trained, JSON values, as [`training_record`] says it; `"pretrained"`
            says whether it started from published weights.
        spectra_images (`int`, defaults to 1024): Images behind the feature spectra at most; a stream gives none.
        encoder ([`Encoder`], *optional*): The model's encoder with whole weights, from
            [`~distributed.sharding.gather_module`], where they are sharded over processes.

    Raises:
        ValueError: the weights are sharded and `encoder` is not given.
        OSError: the folder cannot be written; an earlier encoder in it stays whole.
    """
    encoder = encoder or model.encoder
    record = _record(model, source, training or {})
    folder = export_encoder(encoder, folder, metadata=record.to_dict())
    if results:
        write_results(folder / RESULTS, [public_result(result) for result in results])
    else:
        (folder / RESULTS).unlink(missing_ok=True)
    images = None
    if source is not None and source.num_rows:
        chosen = spectra_rows(source.num_rows, spectra_images)
        images = normalized_batches(encoder, ImageDataset(source, image_size=encoder.image_size, indices=chosen))
    about = {"model": record.short_name, "dataset": record.dataset, "split": record.split, "version": record.version}
    report = spectral_report(encoder, images, metadata=about)
    report.save(folder)
    report.plot(folder / FIGURE)
    _write_card(folder)
    return folder


def spectra_rows(num_rows: int, images: int = 1024) -> list[int]:
    """The rows of a data set behind the feature spectra, evenly spread: sorted sets keep all their classes."""
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
        method_config=config.method_config,
        regularizer=config.regularizer,
        regularizer_config=config.regularizer_config,
        gamma=float(config.gamma) if config.regularizer else None,
        whitening=float(config.whitening),
        dataset=public_name(source.name) if source is not None else None,
        split=source.split if source is not None else None,
        num_images=source.num_rows if source is not None else None,
        base_model=_base_model(config.backbone, encoder) if training.get("pretrained") else None,
        training=training,
        version=__version__,
        commit=package_commit(),
    )


def _base_model(backbone: str, encoder: Encoder) -> str | None:
    """The Hub id of the published weights of a backbone."""
    cfg = getattr(encoder.backbone, "pretrained_cfg", None) or {}
    return hub_id(backbone) or hub_id(cfg.get("hf_hub_id") or "")


def _write_card(folder: Path) -> None:
    """Renders the card; one whose owner has left broken markers in it stays as it is, as the run is worth more."""
    path = folder / CARD
    try:
        # As bytes: reading as text would change the owner's line breaks.
        previous = path.read_bytes().decode("utf-8") if path.is_file() else None
        card = render_card(folder, previous=previous)
    except ValueError as error:
        warnings.warn(f"{path} was left as it is: {error}", stacklevel=3)
        return
    path.write_bytes(card.encode("utf-8"))
