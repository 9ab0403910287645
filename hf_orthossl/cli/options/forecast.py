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

    split: str | None = field(default=None, metadata={"help": "split to forecast (default: train)"})
    views: str | None = field(
        default=None, metadata={"help": "augmentation recipe (default: digits for digits, else the method's)"}
    )
    encoder: str | None = field(
        default=None,
        metadata={
            "help": "frozen encoder (such as resnet18, or a run folder) whose features are used instead of pixels"
        },
    )
    method: str = field(
        default="simclr", metadata={"help": "method to train with: a name from orthossl methods, infonce, or spectral"}
    )
    method_config: dict | None = field(
        default=None, metadata={"help": "hyper-parameters, such as similarity=euclidean"}
    )
    temperature: float | None = field(
        default=None, metadata={"help": "temperature of the softmax (default: the method's)"}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "weight of the alignment of two views (default: 1, as published)"}
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "weight decay of the optimizer; not with normalized features"}
    )
    gamma: float = field(default=0.0, metadata={"help": "weight of the orthogonality penalty SO on the linear encoder"})
    dim: int | None = field(
        default=None, metadata={"help": "number of outputs of the encoder (default: one per direction)"}
    )
    images: int = field(default=10000, metadata={"help": "number of images, drawn at random"})
    views_per_image: int = field(default=4, metadata={"help": "number of views of each image, at least 2"})
    image_size: int | None = field(
        default=None,
        metadata={"help": "side of the views in pixels (default: the images' own up to 32, or the encoder's)"},
    )
    max_dim: int = field(
        default=256, metadata={"help": "number of leading principal directions of the views to analyse"}
    )
    seed: int = field(default=0, metadata={"help": "seed of images, views and intervals"})
    after_run: str | None = field(
        default=None, metadata={"help": "run folder whose measured spectrum is drawn over the predicted one"}
    )
    output_dir: str = field(
        default="runs/forecast", metadata={"help": "folder for forecast.json and the figures, created if needed"}
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
