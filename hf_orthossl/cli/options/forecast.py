"""Options of `orthossl forecast`."""

from dataclasses import dataclass, field

from ...data.options import ImageOptions
from ..parsing import parse

DESCRIPTION = (
    "Predict from a data set and its augmentations, before training, which directions a linear encoder will lose, why, "
    "and what would keep them; with labels also which classes lose their direction. Without options it uses "
    "scikit-learn's digits."
)


@dataclass
class ForecastArguments(ImageOptions):
    """Options of `orthossl forecast`; the help of each option describes it."""

    _argument_group_name = "forecast"

    split: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "split to forecast (default: train)", "group": "data"}
    )
    views: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "augmentations (default: by data set and method)"}
    )
    encoder: str | None = field(
        default=None,
        metadata={
            "metavar": "NAME",
            "help": "frozen encoder for features (default: pixels)",
        },
    )
    method: str = field(default="simclr", metadata={"metavar": "NAME", "help": "a method, infonce or spectral"})
    method_config: dict | None = field(
        default=None, metadata={"help": "hyper-parameters, such as similarity=euclidean"}
    )
    temperature: float | None = field(default=None, metadata={"help": "of the softmax (default: the method's)"})
    alpha: float | None = field(default=None, metadata={"help": "weight of the alignment (default: as published, 1)"})
    weight_decay: float = field(default=0.0, metadata={"help": "not with normalized features"})
    gamma: float = field(default=0.0, metadata={"help": "weight of SO on the linear encoder"})
    dim: int | None = field(default=None, metadata={"help": "outputs of the encoder (default: all directions)"})
    images: int = field(default=10000, metadata={"help": "images, drawn at random"})
    views_per_image: int = field(default=4, metadata={"help": "views of each image, 2 or more"})
    image_size: int | None = field(
        default=None,
        metadata={"help": "side of the views (default: as images, up to 32)"},
    )
    max_dim: int = field(default=256, metadata={"help": "leading principal directions to analyse"})
    seed: int = field(default=0, metadata={"help": "seed of images, views and intervals"})
    after_run: str | None = field(
        default=None, metadata={"metavar": "RUN", "help": "run whose spectrum is drawn over the forecast"}
    )
    output_dir: str = field(
        default="runs/forecast", metadata={"metavar": "DIR", "help": "folder of forecast and figures"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        if self.images < 4:
            raise ValueError(f"images must be at least 4 for intervals, got {self.images}")


def read(argv: list[str], prog: str = "orthossl forecast") -> tuple[ForecastArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    (args,), _ = parse(prog, DESCRIPTION, [ForecastArguments], argv)
    return (args,)
