"""How an encoder folder is loaded, by what its `config.json` says."""

from typing import Protocol

from .escaping import Safe, literal


class Loadable(Protocol):
    """What is known of an encoder: "timm" or "transformers", and whether only code beside it knows the architecture."""

    library: str
    remote_code: bool


def library_of(config: dict) -> dict[str, str | bool]:
    """The fields of [`Loadable`] for an encoder with this `config.json`."""
    return {"library": "timm" if "architecture" in config else "transformers", "remote_code": "auto_map" in config}


def loading_calls(
    encoder: Loadable, location: str, revision: str | None = None, *, is_folder: bool = False
) -> dict[str, Safe | None]:
    """Python that loads an encoder without this package.

    Args:
        encoder ([`EncoderRecord`] or a board's [`~leaderboard.schema.Entry`]): Which library it is for.
        location (`str`): Hub id, or a folder.
        revision (`str`, *optional*): Branch on the Hub; the main one by default.
        is_folder (`bool`, defaults to `False`): What `location` is.

    Returns:
        `dict`: `timm_call` (`None` where timm alone does not know the architecture), `auto_call`, `location` (the
        arguments that say where it is) and `trust` (the one that runs code of the repository, or nothing).
    """
    source = f"local-dir:{location}" if is_folder else f"hf-hub:{location}" + (f"@{revision}" if revision else "")
    native_timm = encoder.library == "timm" and not encoder.remote_code
    where = Safe(literal(location) + (f", revision={literal(revision)}" if revision else ""))
    trust = Safe(", trust_remote_code=True" if encoder.remote_code else "")
    return {
        "timm_call": Safe(f"timm.create_model({literal(source)}, pretrained=True).eval()") if native_timm else None,
        "auto_call": Safe(f"AutoModel.from_pretrained({where}{trust}).eval()"),
        "location": where,
        "trust": trust,
    }
