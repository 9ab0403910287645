"""Build the model of a run from its options, and compare these with those of the run that is resumed."""

import dataclasses
from pathlib import Path
from typing import Any

from ..configuration import SSLConfig, default_embedding_weight, default_gamma, default_strength
from ..data import ImageSource, Recipe, get_recipe
from ..encoders import Encoder, load_encoder
from ..modeling import SSLModel
from ..options import read_config
from .adaptation import PENALTY as ADAPTED_PENALTY
from .arguments import OrthoSSLTrainingArguments
from .options import DataArguments, ModelArguments
from .settings import MOVABLE, check_changes, differences


def settled_model(model_args: ModelArguments, args: OrthoSSLTrainingArguments) -> ModelArguments:
    """Return the options of the model with the default penalty where none is given; constrained weights have none."""
    default = "none" if model_args.constrain not in (None, "none") else ADAPTED_PENALTY if args.adapt else "so"
    return dataclasses.replace(model_args, regularizer=model_args.regularizer or default)


def check_resumed(data_args: DataArguments, model_args: ModelArguments, args: OrthoSSLTrainingArguments) -> None:
    """Reject options of data and model that differ from those of the run that `resume` continues.

    [`~training.resume.begin_record`] compares all options with those of the checkpoint; this comparison with
    `config.yaml` needs neither data nor model.

    Raises:
        ValueError: An option that a resumed run cannot change has another value than in its `config.yaml`.
    """
    saved = Path(args.output_dir) / "config.yaml"
    if not (args.resume and saved.is_file()):
        return
    given, before = fixed_settings(data_args, model_args, args), read_config(saved)
    # Where an option was left open, its value is known once data and model are there; so is whether data are the same.
    known = {name: value for name, value in given.items() if None not in (value, before.get(name))}
    # Without one, the weights were random, and that is known.
    known["pretrained"] = given["pretrained"]
    check_changes(differences(before, known), saved.parent, (MOVABLE,))


def fixed_settings(
    data_args: DataArguments, model_args: ModelArguments, args: OrthoSSLTrainingArguments
) -> dict[str, Any]:
    """Return the settings that a resumed run cannot change."""
    settings = dataclasses.asdict(data_args) | {"dataset": data_args.location} | dataclasses.asdict(model_args)
    weight, default = ("gamma", default_gamma) if model_args.penalty_mode == "loss" else ("strength", default_strength)
    if settings[weight] is None:
        settings[weight] = default(model_args.regularizer)
    if model_args.embedding_weight is None:
        settings["embedding_weight"] = default_embedding_weight(model_args.embedding_regularizer)
    return settings | {"views": args.views, "seed": args.seed}


def build_model(
    model_args: ModelArguments, source: ImageSource, views: str | Recipe | None = None, *, resume: bool = False
) -> SSLModel:
    """Return the encoder with its method and penalty, sized for the images and views.

    Args:
        model_args ([`ModelArguments`]): The model.
        source ([`ImageSource`]): The images to train on.
        views (`str` or [`Recipe`], *optional*): The augmentation recipe, if one is named. With crops of several sizes,
            a ViT of timm resamples its position embeddings to each of them (`dynamic_img_size`).
        resume (`bool`, defaults to `False`): Whether to leave out the weights of the start, which checkpoints replace.
    """
    size = model_args.image_size
    if size is None and source.image_size is not None and min(source.image_size) <= 224:
        size = min(source.image_size)
    # Check names before building or downloading a large backbone.
    settings = {"image_size": size, "channels": source.num_channels}
    config = SSLConfig(**dataclasses.asdict(model_args) | settings)

    def load() -> Encoder:
        return load_encoder(
            config.backbone,
            # The checkpoints of a run to resume hold its weights.
            pretrained=config.pretrained is not None and not resume,
            image_size=size,
            in_chans=source.channels,
            **config.backbone_config,
        )

    encoder = load()
    several = views is not None and len(set(get_recipe(views).sizes(encoder.image_size))) > 1
    # timm's own attribute; networks without it see every size, or none but their own.
    if several and getattr(encoder.backbone, "dynamic_img_size", None) is False:
        config.backbone_config.setdefault("dynamic_img_size", True)
        encoder = load()
    config.image_size = encoder.image_size
    return SSLModel(config, encoder)
