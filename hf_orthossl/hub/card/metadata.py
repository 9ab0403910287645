"""The YAML at the head of a card, merged with its owner's."""

from typing import Any

import yaml
from huggingface_hub import ModelCardData

from ...evaluation import Result
from ...methods import METHODS, THEORY_LOSSES
from ...regularization import PENALTIES
from ..client import hub_id
from ..encoder_record import EncoderRecord
from ..escaping import clean
from ..measurements import model_index_entry

# Ends the name of our entry in `model-index`, by which the next card knows it, whatever was trained then.
OURS = "(orthossl)"


def front_matter(
    record: EncoderRecord, results: list[Result], *, license: str | None, previous: dict[str, Any]
) -> dict[str, Any]:
    """The metadata of a card, merged with what its owner has written.

    Our keys are `library_name`, `pipeline_tag`, `tags`, and, where there is something to say, `datasets`, `base_model`,
    `license` and `model-index`. The owner's other keys, tags and data sets stay, and so do entries of `model-index`
    that are not ours.

    Args:
        record ([`EncoderRecord`]): What the encoder is.
        results (`list[Result]`): Those of the published weights go into `model-index`.
        license (`str`, *optional*): What the owner chose; by default what the earlier card says.
        previous (`dict`): The earlier card's metadata.
    """
    tags = ["orthossl", "self-supervised-learning", record.method, record.regularizer]
    datasets = [hub_id(record.dataset or "")]
    final = [model_index_entry(result) for result in results if result.is_final]
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
    # A run of another method may have written the earlier card.
    dropped = {*METHODS, *THEORY_LOSSES, *PENALTIES}
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
    """The metadata of an earlier card.

    Raises:
        ValueError: it is not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = str(error).strip().replace("\n", " ")
        raise ValueError(f"the front matter of the earlier card is not YAML ({where}): mend or remove it") from error
    if values is not None and not isinstance(values, dict):
        raise ValueError("the front matter of the earlier card is not a list of `key: value` lines: mend or remove it")
    return values or {}


def as_list(value: Any) -> list:
    """Metadata that may be one value, several or none, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _union(ours: list, theirs: list) -> list:
    return ours + [entry for entry in theirs if entry not in ours]


def _name(entry: Any) -> str:
    return str(entry.get("name")) if isinstance(entry, dict) else ""
