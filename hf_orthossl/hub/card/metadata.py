"""The YAML metadata of a card, merged with the owner's entries."""

from typing import Any

import yaml
from huggingface_hub import ModelCardData

from ...evaluation import Result
from ...evaluation.results import UNRANKED_TASKS
from ...methods import EMBEDDING_REGULARIZERS, METHODS, THEORY_LOSSES
from ...regularization import PENALTIES
from ..client import hub_id
from ..encoder_record import EncoderRecord
from ..escaping import clean
from ..measurements import model_index_entry

# Suffix of this package's entry in `model-index`, by which the next update recognizes it.
OURS = "(orthossl)"


def front_matter(
    record: EncoderRecord, results: list[Result], *, license: str | None, previous: dict[str, Any]
) -> dict[str, Any]:
    """Return the metadata of a card, merged with the owner's entries.

    This package sets `library_name`, `pipeline_tag`, `tags`, and, if their values are known, `datasets`, `base_model`,
    `license` and `model-index`. Other keys, tags, data sets and entries of `model-index` of the owner are kept.

    Args:
        record ([`EncoderRecord`]): The encoder's origin.
        results (`list[Result]`): Results; those of the published weights go into `model-index`.
        license (`str`, *optional*): Licence that the owner chose; defaults to that of the earlier card.
        previous (`dict`): Metadata of the earlier card.
    """
    tags = ["orthossl", "self-supervised-learning", record.method, record.regularizer, record.embedding_regularizer]
    datasets = [hub_id(record.dataset or "")]
    final = [model_index_entry(result) for result in results if result.is_final and result.task not in UNRANKED_TASKS]
    name = f"{clean(record.short_name, 96)} {OURS}"
    ours = ModelCardData(
        library_name=record.library if not record.remote_code else "transformers",
        pipeline_tag="image-feature-extraction",
        tags=[clean(tag, 60) for tag in tags if tag],
        datasets=[found for found in datasets if found] or None,
        base_model=hub_id(record.base_model or ""),
        license=clean(license, 60) if license else None,
        eval_results=final or None,
        model_name=name if final else None,
    ).to_dict()
    merged = {**previous, **ours}
    # The earlier card may describe another method or penalty.
    dropped = {*METHODS, *THEORY_LOSSES, *PENALTIES, *EMBEDDING_REGULARIZERS}
    merged["tags"] = _union(ours["tags"], [tag for tag in as_list(previous.get("tags")) if str(tag) not in dropped])
    if "datasets" in merged:
        merged["datasets"] = _union(ours.get("datasets", []), as_list(previous.get("datasets")))
    if record.training.get("pretrained") is False:
        merged.pop("base_model", None)
    theirs = [entry for entry in as_list(previous.get("model-index")) if not _name(entry).endswith(OURS)]
    if theirs or final:
        merged["model-index"] = ours.get("model-index", []) + theirs
    else:
        merged.pop("model-index", None)
    return merged


def parse_front_matter(text: str) -> dict[str, Any]:
    """Parse the metadata of an earlier card.

    Raises:
        ValueError: The text is not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the front matter of the earlier card is not YAML ({reason}): fix or remove it") from error
    if values is not None and not isinstance(values, dict):
        raise ValueError("the front matter of the earlier card is not a list of `key: value` lines: fix or remove it")
    return values or {}


def as_list(value: Any) -> list:
    """Return a metadata entry, which may be a list, a single value or missing, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _union(ours: list, theirs: list) -> list:
    return ours + [entry for entry in theirs if entry not in ours]


def _name(entry: Any) -> str:
    return str(entry.get("name")) if isinstance(entry, dict) else ""
