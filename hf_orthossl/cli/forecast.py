"""`orthossl forecast`: which directions an augmentation pipeline will kill, before training."""

import dataclasses
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data import ImageDataset, ImageSource, Recipe, Views, collate, get_recipe, load_source
from ..data.dataset import Shape
from ..encoders import Encoder, load_encoder
from ..landscape import forecast, plot_directions
from ..landscape.covariances import check_dimension
from ..methods import METHODS, get_method, parse_assignments
from ..spectra import SpectralReport
from .parsing import parse


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


DESCRIPTION = (
    "Predict from a data set and its augmentations, before training, which directions a linear encoder will lose, why, "
    "and what would keep them. Without options it looks at scikit-learn's digits."
)
# What leaves one augmentation out, and which field of a view says that it is there.
OPERATIONS = {
    "crop": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)},
    "flip": {"flip": 0.0},
    "colour jitter": {"jitter": 0.0},
    "grayscale": {"grayscale": 0.0},
    "blur": {"blur": 0.0},
    "solarize": {"solarize": 0.0},
}
# As the linear encoder normalizes, so that γ and weight decay mean what they mean there.
PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)
PIXEL_SIZE = 32
# Bytes of images that are held in memory.
LARGEST = 2 * 2**30


def main(argv: list[str], prog: str = "orthossl forecast") -> None:
    """Reads options, measures the views, and leaves a forecast with its figures."""
    (args,), _ = parse(prog, DESCRIPTION, [ForecastArguments], argv)
    settings, notes = landscape_settings(args)
    measured = None if args.after_run is None else representation_spectrum(Path(args.after_run))
    name = args.views or ("digits" if args.dataset == "digits" else get_method(args.method).recipe.views)
    recipe = get_recipe(name)
    encoder = None if args.encoder is None else open_encoder(args.encoder, args.image_size)
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    source = load_source(args.dataset, name=args.dataset_name, split=args.split, **columns)
    size = view_size(args, source, encoder)
    recipe, left = full_sized(recipe, size)
    notes += left
    if encoder is None:
        check_dimension(3 * size**2)
    images, labels = read_images(source, recipe, size, args)
    unit = "pixels" if encoder is None else f"features of {args.encoder}"
    print(f"data     {source.name}, {len(images):,} images, views {recipe.name} at {size} px, in {unit}")

    mean, std = (PIXEL_MEAN, PIXEL_STD) if encoder is None else (encoder.mean, encoder.std)
    # An error in the middle leaves no bar behind, on whose line it would be printed.
    with ExitStack() as bars:
        result = forecast(
            images,
            Views(recipe, size, mean, std),
            variants={key: Views(one, size, mean, std) for key, one in without_one(recipe).items()},
            **settings,
            weight_decay=args.weight_decay,
            gamma=args.gamma,
            dim=args.dim,
            views_per_image=args.views_per_image,
            same_kind=len(set(recipe.views)) == 1,
            labels=labels,
            features=None if encoder is None else lambda view: encode(encoder, view),
            max_dim=args.max_dim,
            seed=args.seed,
            progress=lambda batches, title: bars.enter_context(bar(batches, title)),
        )
    result.measured = measured
    result.notes += notes
    result.metadata = {
        "dataset": source.name,
        "split": source.split,
        "views": recipe.name,
        "image_size": size,
        "unit": unit,
        "method": args.method,
        "seed": args.seed,
        "after_run": args.after_run,
    }
    folder = Path(args.output_dir)
    saved = result.save(folder / "forecast.json")
    figure = result.plot(folder / "forecast.png")
    shape = (3, size, size) if encoder is None else None
    directions = plot_directions(result, folder / "directions.png", images=images, shape=shape)
    print(result.summary())
    print(f"results  {saved}\nfigures  {figure}, {directions}")


def representation_spectrum(run: Path) -> list[float]:
    """Normalized eigenvalues of the representation of a run's encoder, or of an encoder folder.

    Raises:
        FileNotFoundError, ValueError: there is no spectral report, or none of the representation.
    """
    folder = run / "encoder" if (run / "encoder").is_dir() else run
    if not run.is_dir():
        raise FileNotFoundError(f"after_run {run}: there is no such folder")
    report = SpectralReport.load(folder)
    if "representation" not in report.features:
        raise ValueError(f"after_run {run}: its spectral report has no representation, as it was made without images")
    return report.features["representation"].eigenvalues.tolist()


def open_encoder(name: str, image_size: int | None) -> Encoder:
    """The encoder with its weights, in eval mode, on the GPU where there is one."""
    encoder = load_encoder(name, pretrained=True, image_size=image_size)
    return encoder.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def encode(encoder: Encoder, view: Tensor) -> Tensor:
    """Features `(B, D)` of a view."""
    return encoder(view.to(next(encoder.parameters()).device)).float()


def view_size(args: ForecastArguments, source: ImageSource, encoder: Encoder | None) -> int:
    """Side of the views in pixels."""
    if encoder is not None:
        return encoder.image_size
    return args.image_size or min(int(source.shorter_side), PIXEL_SIZE)


def full_sized(recipe: Recipe, size: int) -> tuple[Recipe, list[str]]:
    """The recipe without its local crops, and a note if it had any: two views are compared pixel by pixel."""
    views = tuple(view for view in recipe.views if view.size in (None, size))
    if len(views) == len(recipe.views):
        return recipe, []
    if not views:
        raise ValueError(
            f"views {recipe.name} are all of other sizes than {size} px: pass another recipe or image_size"
        )
    note = f"of the {recipe.num_views} views of {recipe.name} the {len(views)} of {size} px are compared"
    return dataclasses.replace(recipe, views=views), [note]


def without_one(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe without each of the augmentations it has."""
    changed = {name: recipe.with_(**changes) for name, changes in OPERATIONS.items()}
    return {name: one for name, one in changed.items() if one != recipe}


def read_images(
    source: ImageSource, recipe: Recipe, size: int, args: ForecastArguments
) -> tuple[Tensor, Tensor | None]:
    """Images `(n, 3, H, W)` uint8 drawn at random, with their labels where there are some.

    Raises:
        ValueError: too few images, all of them equal, smaller than the views, or more than memory should hold.
    """
    if source.num_rows < 4:
        raise ValueError(f"dataset {source.name} has {source.num_rows} images: intervals need at least 4")
    count = min(args.images, source.num_rows)
    shape = Shape.of(source, recipe, size)
    # Images of many sizes are cut to squares with twice the side of a view, whose crops lose little sharpness.
    height, width = shape.whole or (min(2 * size, int(source.shorter_side)),) * 2
    if count * 3 * height * width > LARGEST:
        fit = LARGEST // (3 * height * width)
        raise ValueError(f"images is {count:,}, which take more than 2 GiB at {width}×{height} px: pass --images {fit}")
    indices = np.sort(np.random.default_rng(args.seed).permutation(source.num_rows)[:count])
    dataset = ImageDataset(source, image_size=None if shape.whole else height, indices=indices)
    loader = DataLoader(dataset, batch_size=256, collate_fn=collate)
    batches = list(bar(loader, "images"))
    images, labels = (torch.cat([batch[key] for batch in batches]) for key in ("pixel_values", "labels"))
    if bool((images == images[:1]).all()):
        raise ValueError(f"images of data set {source.name} are all the same: there is nothing to tell apart")
    return images, labels if (labels >= 0).any() else None


def bar(batches: Iterable, title: str) -> tqdm:
    """A progress bar over batches."""
    return tqdm(batches, desc=title, leave=False, dynamic_ncols=True)
