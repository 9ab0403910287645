"""Render the model card of an encoder from its folder, without model or trainer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined

from ...evaluation import Result
from ...messages import readable_size
from ...methods import EMBEDDING_REGULARIZERS
from ...regularization import PENALTIES
from ...spectra import SpectralReport
from ..encoder_record import EncoderRecord, loading_calls
from ..escaping import Safe, escape
from ..measurements import average_seeds, card_rows, load_results
from .metadata import as_list, front_matter, parse_front_matter
from .sections import find_sections, merge_sections, offered_line, split_front_matter
from .spectra_text import collapse_notice, feature_rows, plain_reading, weight_rows

TEMPLATE = Path(__file__).with_name("card_template.md")
SPECTRA, FIGURE, START_FIGURE = "spectra.json", "spectra.png", "spectra_from_start.png"
# A map of training images by their representations, coloured by class.
MAP = "representations.png"
# `EncoderRecord.pooling` → Python that extracts the representation from the output of AutoModel, and of the pipeline.
_MEAN = "features.mean(dim=1) if features.ndim == 3 else features.mean(dim=(2, 3))"
_FROM_OUTPUTS = {
    "pooler_output": "outputs.pooler_output.flatten(1)",
    "cls": "outputs.last_hidden_state[:, 0]",
    "mean": _MEAN,
    "mean_channels_last": "outputs.last_hidden_state.mean(dim=(1, 2))",
    "summary": "outputs.summary.flatten(1)",
    "cls_token_value": "outputs.cls_token_value.flatten(1)",
    "feature_maps": "outputs.feature_maps[-1].mean(dim=(2, 3))",
}
# The pipeline hands out no other part.
_FROM_FEATURES = {"pooler_output": "features.flatten(1)", "cls": "features[:, 0]", "mean": _MEAN}
# Labels of entries of `training`; entries without a label are shown by name.
_LABELS = {
    "taken": "images taken",
    "pixel_range": "values that become 0 and 1, by channel",
    "views": "views (augmentations)",
    "views_changed": "views of these channels",
    "normalization": "normalized by",
    "epochs": "passes over the data",
    "steps": "optimizer steps",
    "images_per_step": "images per step",
    "skipped_steps": "steps skipped (not finite)",
    "optimizer": "optimizer class",
    "optim": "optimizer",
    "muon_matrices": "matrices whose updates are orthogonalized",
    "learning_rate": "learning rate (peak)",
    "lr_scheduler_type": "learning rate schedule",
    "weight_decay": "weight decay",
    "warmup_steps": "warm-up steps",
    "selected": "encoder of",
    "stopped": "stopped early",
    "measured_gamma": "γ by step (measured, gamma auto)",
    "warmup_start_lr": "learning rate at the start of the warm-up",
    "penalty_every": "steps between two penalties",
    "fused_weights": "fused q, k, v in the penalty (whole: one matrix, split: one each)",
    "max_grad_norm": "maximum gradient norm",
    "gradient_cache": "images per chunk (gradient cache)",
    "gradient_checkpointing": "activations recomputed (gradient checkpointing)",
    "weights_precision": "precision of the weights",
    "fingerprint": "fingerprint of the data",
    "started_from": "started from",
    "teacher": "teacher's weights",
    "adapt": "preset for adapting given weights",
    "layer_decay": "learning rate per layer, from the head down",
    "freeze": "frozen parameters",
    "freeze_epochs": "epochs in which they, or the encoder, were frozen",
    "front": "trained by",
}


def render_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    license: str | None = None,
    previous: str | None = None,
    results: list[Result] | None = None,
    location: str | Path | None = None,
) -> str:
    """Render the card (`README.md`) of an encoder folder.

    Reads `config.json` and, if they exist, `results.json`, `spectra.json` and `spectra.safetensors`, but no weights.
    All values in these files are shown as text, and cannot become HTML, links or metadata.

    Args:
        folder (`str` or `Path`): Encoder folder.
        repo_id (`str`, *optional*): Hub id that the code in the card loads; defaults to the folder.
        revision (`str`, *optional*): Branch that the code in the card loads; defaults to the main one.
        license (`str`, *optional*): Licence that the owner chose, such as "apache-2.0"; defaults to that of `previous`.
        previous (`str`, *optional*): An earlier card, whose owner's text is kept: see [`merge_sections`] and
            [`front_matter`].
        results (`list[Result]`, *optional*): Results to show instead of those in the folder.
        location (`str` or `Path`, *optional*): Where the folder will be, for the code in the card; `folder` by default.

    Returns:
        `str`: Text of the card, with YAML metadata.

    Raises:
        FileNotFoundError: The folder has no `config.json`.
        ValueError: A file of the folder has the wrong format, `repo_id` is malformed, or markers or metadata of
            `previous` are broken.

    Example:
        >>> Path("card.md").write_text(render_card("runs/default/encoder", repo_id="user/my-encoder"))
    """
    folder = Path(folder)
    if repo_id is not None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"repo_id is {repo_id!r}: it must be owner/name ({error})") from error
    record = EncoderRecord.read(folder)
    averaged = load_results(folder) if results is None else average_seeds(results)
    yaml_before, body_before = split_front_matter(previous or "")
    owners = parse_front_matter(yaml_before)
    metadata = front_matter(record, averaged, license=license, previous=owners)
    body = (
        _environment()
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            record=record,
            measurements=card_rows(averaged),
            settings=list(_settings(record)),
            dataset=_dataset(record),
            regularizer=_penalty_title(record.regularizer),
            penalty_weight="{}{} = {}".format("decoupled, " if _is_decoupled(record) else "", *_penalty_weight(record)),
            embedding_regularizer=_embedding_title(record.embedding_regularizer),
            embedding_weight="not recorded" if record.embedding_weight is None else record.embedding_weight,
            license=_licence(metadata),
            map=(folder / MAP).is_file(),
            parameters=None if record.parameters is None else f"{record.parameters:,}",
            size=readable_size(4 * (record.parameters or 0)),
            started_from=record.training.get("started_from") or record.base_model,
            teacher=record.training.get("teacher"),
            **loading_calls(
                record, repo_id or str(location or folder), revision if repo_id else None, is_folder=not repo_id
            ),
            **_usage(record),
            **_spectra(folder),
        )
    )
    body += f"\n{offered_line(find_sections(body))}\n"
    if previous is not None:
        body = merge_sections(body_before, body, ours="orthossl" in as_list(owners.get("tags")))
    head = f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=120)}---\n"
    return head.replace("\n", "\r\n" if "\r\n" in body else "\n") + body


def _usage(record: EncoderRecord) -> dict[str, Any]:
    """Return the template's values for the code snippets and for the sentence about the method."""
    paper = getattr(record.known_method, "source", "")
    return {
        "from_outputs": Safe(_FROM_OUTPUTS[record.pooling]),
        "from_features": Safe(_FROM_FEATURES.get(record.pooling, "")),
        "channels": len(record.mean),
        "mean": ", ".join(f"{value:.4g}" for value in record.mean),
        "std": ", ".join(f"{value:.4g}" for value in record.std),
        "paper": paper,
        "arxiv": paper.removeprefix("arXiv "),
    }


def _spectra(folder: Path) -> dict[str, Any]:
    """Return the template's values for the spectra of a folder."""
    if not (folder / SPECTRA).is_file():
        return {"report": None, "collapse": []}
    report = SpectralReport.load(folder)
    return {
        "report": report,
        "collapse": collapse_notice(report),
        "reading": plain_reading(report),
        "weights": weight_rows(report),
        "features": feature_rows(report),
        "measured_on": _measured_on(report),
        "figure": (folder / FIGURE).is_file(),
        "start_figure": (folder / START_FIGURE).is_file(),
    }


def _environment() -> Environment:
    # Every value in a template is escaped, unless it is `Safe`.
    return Environment(
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _dataset(record: EncoderRecord) -> str:
    count = f"{record.num_images:,} images" if record.num_images else "images"
    steps, images_per_step = (record.training.get(name) for name in ("steps", "images_per_step"))
    # A run shorter than an epoch has not seen all images.
    if record.num_images and type(steps) is int and type(images_per_step) is int:
        seen = steps * images_per_step
        count = f"{seen:,} of the {count}" if seen < record.num_images else count
    return f"{count} of {record.dataset}" if record.dataset else f"{count} of a data set whose name was not recorded"


def _penalty_title(name: str | None) -> str | None:
    """Return the title of a penalty, or its name if it is not registered."""
    return PENALTIES[name].title if name in PENALTIES else name


def _is_decoupled(record: EncoderRecord) -> bool:
    return record.penalty_mode == "decoupled"


def _penalty_weight(record: EncoderRecord) -> tuple[str, Any]:
    """Return the symbol of the penalty's weight in the loss, or of its decoupled step, and the value."""
    symbol, value = ("λ", record.strength) if _is_decoupled(record) else ("γ", record.gamma)
    return symbol, "not recorded" if value is None else value


def _embedding_title(name: str | None) -> str | None:
    """Return the title of an embedding regularizer, or its name if it is not registered."""
    return EMBEDDING_REGULARIZERS[name].title if name in EMBEDDING_REGULARIZERS else name


def _measured_on(report: SpectralReport) -> str:
    if not report.features:
        return ""
    count = next(iter(report.features.values())).num_images
    split = report.metadata.get("split")
    return f"{count:,} images" + (f" of the split {split}" if isinstance(split, str) else "")


def _settings(record: EncoderRecord) -> Iterator[tuple[str, Any]]:
    """Yield label and value of each setting that a reader needs to repeat the training."""
    images = f" ({record.num_images:,} images)" if record.num_images else ""
    split = f", split {record.split}" if record.split else ""
    yield "data", (record.dataset or "not recorded") + split + images
    started = record.training.get("pretrained")
    if record.base_model:
        started = record.base_model
    elif isinstance(started, bool):
        started = "published weights" if started else "random weights"
    yield "backbone", record.backbone + (f", from {started}" if isinstance(started, str) else "")
    yield from ((f"{name} (backbone)", value) for name, value in record.backbone_config.items())
    yield "image size", f"{record.image_size} × {record.image_size} pixels"
    yield "method", record.title
    yield from ((f"{name} ({record.title})", value) for name, value in record.method_config.items())
    if record.regularizer:
        yield "penalty", _penalty_title(record.regularizer)
        if _is_decoupled(record):
            yield "penalty mode", "decoupled: a step of λ · learning rate / peak after each optimizer step"
        yield _penalty_weight(record)
        yield from ((f"{name} (penalty)", value) for name, value in record.regularizer_config.items())
    else:
        yield "penalty", "none"
    if record.constrain:
        yield "constraint", f"{record.constrain}: the nearest orthonormal matrices after each optimizer step"
    if record.whitening:
        yield "feature whitening", record.whitening
    if record.embedding_regularizer:
        kind = record.embedding_regularizer
        yield f"regularizer of the {record.embedding_layer or 'embedding'}", _embedding_title(kind)
        yield "w", "not recorded" if record.embedding_weight is None else record.embedding_weight
        yield from ((f"{name} ({kind})", value) for name, value in record.embedding_config.items())
    for name, value in record.training.items():
        if name not in ("pretrained", "planned_steps") and value is not None:
            planned = record.training.get("planned_steps") if name == "steps" else None
            yield _LABELS.get(name, name), f"{value} of {planned}" if planned is not None else value
    version = record.version or "not recorded"
    yield "hf_orthossl", version + (f", commit {record.commit}" if record.commit else "")


def _licence(metadata: dict[str, Any]) -> str | None:
    named = metadata.get("license_name") or metadata.get("license")
    return ", ".join(map(str, named)) if isinstance(named, list) else named
