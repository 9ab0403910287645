"""The options of `orthossl forecast`, and which landscape stands for which method."""

from dataclasses import dataclass, field

from ..methods import METHODS, get_method, parse_assignments


@dataclass
class ForecastArguments:
    """What to forecast."""

    _argument_group_name = "forecast"

    dataset: str = field(
        default="digits",
        metadata={"help": "Hub id, folder of images, folder of parquet files, or 'digits' (built in)"},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "configuration of a Hub data set"})
    split: str = field(default="train", metadata={"help": "the part to look at"})
    image_column: str | None = field(default=None, metadata={"help": "column of images (default: found by type)"})
    label_column: str | None = field(
        default=None, metadata={"help": "column of labels, to tell benign from harmful (default: found by type)"}
    )
    views: str | None = field(
        default=None, metadata={"help": "augmentation recipe (default: digits for digits, else the method's)"}
    )
    encoder: str | None = field(
        default=None,
        metadata={
            "help": "forecast in the features of this frozen encoder, as in resnet18 or a run folder, not in pixels"
        },
    )
    method: str = field(default="simclr", metadata={"help": "a name from orthossl methods, infonce, or spectral"})
    method_config: list[str] | None = field(
        default=None, metadata={"help": "hyper-parameters, as in similarity=euclidean", "metavar": "KEY=VALUE"}
    )
    temperature: float | None = field(default=None, metadata={"help": "of the softmax (default: the method's)"})
    alpha: float | None = field(
        default=None, metadata={"help": "weight of the alignment of two views (default: 1, as published)"}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "as the optimizer has it; not with normalized features"})
    gamma: float = field(default=0.0, metadata={"help": "weight of the orthogonality penalty SO on the linear encoder"})
    dim: int | None = field(
        default=None, metadata={"help": "outputs of the encoder (default: as many as there are directions)"}
    )
    images: int = field(default=10000, metadata={"help": "images, drawn at random"})
    views_per_image: int = field(default=4, metadata={"help": "views of each, at least 2"})
    image_size: int | None = field(
        default=None,
        metadata={"help": "side of the views in pixels (default: the images' own up to 32, or the encoder's)"},
    )
    max_dim: int = field(default=256, metadata={"help": "leading principal directions of the views to look at"})
    seed: int = field(default=0, metadata={"help": "of images, views and intervals"})
    after_run: str | None = field(
        default=None, metadata={"help": "run folder whose representation's spectrum is laid over the forecast"}
    )
    output_dir: str = field(default="runs/forecast", metadata={"help": "where forecast.json and the figures go"})

    def __post_init__(self):
        if not isinstance(self.method_config, dict):
            self.method_config = parse_assignments(self.method_config or [])
        for name in ("alpha", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}: it must be a number above 0")
        if self.images < 4:
            raise ValueError(f"images is {self.images}: intervals need at least 4")


def landscape_settings(args: ForecastArguments) -> tuple[dict, list[str]]:
    """
    Loss, temperature and α of the landscape that is nearest to a method, and what to know of the difference.

    Raises:
        ValueError: an unknown method or hyper-parameter, or a temperature for a loss that has none.
    """
    method = get_method(args.method)
    given = dict(args.method_config)
    if args.temperature is not None and "temperature" in method.config_class.__dataclass_fields__:
        given["temperature"] = args.temperature
    config = method.config_class.from_dict(given)
    settings = {"alpha": args.alpha if args.alpha is not None else getattr(config, "alignment", 1.0)}
    if args.method == "infonce":
        settings["loss"] = "infonce" if config.similarity == "euclidean" else "normalized"
    elif method.family in ("contrastive", "clustering"):
        settings["loss"] = "normalized"
    else:
        settings["loss"] = "spectral"
    if settings["loss"] != "spectral":
        settings["temperature"] = config.temperature
    elif args.temperature is not None:
        able = ", ".join(name for name, one in METHODS.items() if one.family in ("contrastive", "clustering"))
        raise ValueError(
            f"temperature is {args.temperature} and the landscape of {method.title} has none: leave it out, or pass a "
            f"--method with one ({able}, infonce)"
        )
    return settings, [_difference(method, settings["loss"])]


def _difference(method: type, loss: str) -> str:
    """What the theory leaves out of a method, in one sentence."""
    title = method.title
    nearest = {"normalized": "InfoNCE on normalized features", "spectral": "the spectral contrastive loss"}.get(loss)
    if method.family == "theory":
        return f"the theory describes {title} with a linear encoder; deeper ones may keep other directions"
    if method.family == "contrastive":
        return (
            f"the theory stands for {title} with a linear encoder and no projector ({nearest}); deeper ones may keep "
            "other directions"
        )
    return (
        f"the theory does not cover {title}, a {method.family} method; shown is {nearest}, the nearest landscape, "
        "whose order of directions is more telling than its counts"
    )
