"""`orthossl forecast`: predict before training which directions an augmentation pipeline will collapse."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import ImageDataset, ImageSource, Recipe, Views, collate, get_recipe, load_source, without_unreadable
from ..data.augment.recipes import for_channels
from ..data.dataset import Shape
from ..data.unreadable import Unreadable, check_unreadable, left_out_note
from ..encoders import Encoder, load_encoder
from ..encoders.channels import common_channels, match_channels
from ..files import require_writable
from ..landscape import forecast, plot_directions
from ..landscape.covariances import check_dimension
from ..locks import locked
from ..methods import METHODS, SSLMethod, get_method
from ..spectra import SpectralReport
from ..spectra.figures import check_figures
from ..terminal import progress_bar
from .options.forecast import ForecastArguments

# For each augmentation, the fields of a view that disable it.
OPERATIONS: dict[str, dict[str, Any]] = {
    "crop": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)},
    "flip": {"flip": 0.0},
    "colour jitter": {"jitter": 0.0},
    "grayscale": {"grayscale": 0.0},
    "blur": {"blur": 0.0},
    "solarize": {"solarize": 0.0},
}
# The linear encoder's normalization, so that γ and weight decay have the same effect as in a run.
PIXEL_MEAN = PIXEL_STD = 0.5
PIXEL_SIZE = 32
# The most bytes of images held in memory.
LARGEST = 2 * 2**30


def main(args: ForecastArguments) -> None:
    """Run the command: measure the views, and write a forecast with its figures.

    Args:
        args ([`ForecastArguments`]): The options.
    """
    with locked(args.output_dir):
        write_forecast(args)


def write_forecast(args: ForecastArguments) -> None:
    """Measure the views, and write a forecast with its figures, in a folder that no other command uses."""
    require_writable(args.output_dir, ["forecast.json"])
    check_figures()
    settings, notes = landscape_settings(args)
    measured = None if args.after_run is None else representation_spectrum(Path(args.after_run))
    name = args.views or ("digits" if args.location == "digits" else get_method(args.method).recipe.views)
    recipe = get_recipe(name)
    encoder = None if args.encoder is None else open_encoder(args.encoder, args.image_size, args.channels)
    reading = args.reading()
    if encoder is not None and args.channels is None:
        reading["channels"] = common_channels({args.encoder or "": encoder})
    source = load_source(args.location, split=args.split, exclude=[args.output_dir], **reading)
    if encoder is not None and (measured_by := match_channels(encoder, source)):
        print(f"pixels   {measured_by}")
    channels = source.num_channels
    recipe, changes = for_channels(recipe, channels)
    size = view_size(args, source, encoder)
    recipe, dropped = full_sized(recipe, size)
    notes += dropped
    if encoder is None:
        check_dimension(channels * size**2, channels)
    images, labels, left_out = read_images(source, recipe, size, args)
    notes += left_out
    unit = "pixels" if encoder is None else f"features of {args.encoder}"
    print(f"data     {source.describe()}")
    changed = f" ({changes})" if changes else ""
    print(f"views    {recipe.name} at {size} px of {len(images):,} images, in {unit}{changed}")

    mean, std = ((PIXEL_MEAN,) * channels, (PIXEL_STD,) * channels)
    if encoder is not None:
        mean, std = encoder.mean, encoder.std
    # Bars are closed before an error is printed, which would otherwise share their line.
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
            class_names=source.class_names,
            features=None if encoder is None else lambda view: encode(encoder, view),
            max_dim=args.max_dim,
            seed=args.seed,
            progress=lambda batches, title: bars.enter_context(progress_bar(batches, title)),
        )
    result.measured = measured
    result.notes += notes
    result.metadata = {
        "dataset": source.name,
        "split": source.split,
        "views": recipe.name,
        **({"channels": channels, "views_changed": changes} if channels != 3 else {}),
        "image_size": size,
        "unit": unit,
        "method": args.method,
        "seed": args.seed,
        "after_run": args.after_run,
    }
    folder = Path(args.output_dir)
    saved = result.save(folder / "forecast.json")
    figure = result.plot(folder / "forecast.png")
    shape = (channels, size, size) if encoder is None else None
    directions = plot_directions(result, folder / "directions.png", images=images, shape=shape)
    print(result.summary())
    print(f"results  {saved}\nfigures  {figure}, {directions}")


def landscape_settings(args: ForecastArguments) -> tuple[dict[str, Any], list[str]]:
    """Return the loss landscape that is nearest to a method, and a note on what it leaves out.

    Args:
        args ([`ForecastArguments`]): The options.

    Returns:
        `tuple[dict, list[str]]`: `loss`, `alpha` and, if the loss has one, `temperature` of the landscape; the note.

    Raises:
        ValueError: The method or a hyper-parameter is unknown, or a temperature is given for a loss without one.
    """
    method = get_method(args.method)
    given = dict(args.method_config or {})
    if args.temperature is not None and "temperature" in method.config_class.__dataclass_fields__:
        given["temperature"] = args.temperature
    config = method.config_class.from_dict(given)
    if args.method == "infonce":
        loss = "infonce" if getattr(config, "similarity", None) == "euclidean" else "normalized"
    else:
        loss = "normalized" if method.family in ("contrastive", "clustering") else "spectral"
    settings: dict[str, Any] = {
        "loss": loss,
        "alpha": args.alpha if args.alpha is not None else getattr(config, "alignment", 1.0),
    }
    if loss != "spectral":
        settings["temperature"] = getattr(config, "temperature", 1.0 if args.temperature is None else args.temperature)
    elif args.temperature is not None:
        able = ", ".join(name for name, one in METHODS.items() if one.family in ("contrastive", "clustering"))
        raise ValueError(
            f"temperature is {args.temperature}, but the landscape of {method.title} has none: omit it, or pass a "
            f"--method with one ({able}, infonce)"
        )
    return settings, [_difference(method, loss)]


def _difference(method: type[SSLMethod[Any]], loss: str) -> str:
    """Return what the theory leaves out of a method, in one sentence."""
    title = method.title
    nearest = {"normalized": "InfoNCE on normalized features", "spectral": "the spectral contrastive loss"}.get(loss)
    if method.family == "theory":
        return f"the theory describes {title} with a linear encoder; deeper encoders may keep other directions"
    if method.family == "contrastive":
        return (
            f"the theory describes {title} with a linear encoder and no projector ({nearest}); deeper encoders may "
            "keep other directions"
        )
    return (
        f"the theory does not cover {title}, a {method.family} method; this is the forecast for {nearest}, the nearest "
        "landscape, whose order of directions is more reliable than its counts"
    )


def representation_spectrum(run: Path) -> list[float]:
    """Return the normalized eigenvalues of the representation of a run's encoder, or of an encoder folder.

    Args:
        run (`Path`): A run folder or an encoder folder.

    Raises:
        FileNotFoundError: There is no such folder, or no spectral report in it.
        ValueError: The report is not valid, or has no representation.
    """
    folder = run / "encoder" if (run / "encoder").is_dir() else run
    if not run.is_dir():
        raise FileNotFoundError(f"after_run {run}: there is no such folder")
    report = SpectralReport.load(folder)
    if "representation" not in report.features:
        raise ValueError(
            f"after_run {run}: its spectral report has no representation, since it was made without images"
        )
    return report.features["representation"].eigenvalues.tolist()


def open_encoder(name: str, image_size: int | None, channels: int | None = None) -> Encoder:
    """Return the encoder with its weights, in eval mode, on the GPU if there is one."""
    encoder = load_encoder(name, pretrained=True, image_size=image_size, channels=channels)
    return encoder.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def encode(encoder: Encoder, view: Tensor) -> Tensor:
    """Return the features `(B, D)` of a view `(B, C, H, W)`."""
    return encoder(view.to(next(encoder.parameters()).device)).float()


def view_size(args: ForecastArguments, source: ImageSource, encoder: Encoder | None) -> int:
    """Return the side of the views in pixels."""
    if encoder is not None:
        return encoder.image_size
    return args.image_size or min(int(source.shorter_side), PIXEL_SIZE)


def full_sized(recipe: Recipe, size: int) -> tuple[Recipe, list[str]]:
    """Return the recipe without its local crops, since views are compared pixel by pixel, and a note if it had any.

    Args:
        recipe ([`Recipe`]): An augmentation recipe.
        size (`int`): The side of the views in pixels.

    Raises:
        ValueError: All views of the recipe have another size.
    """
    views = tuple(view for view in recipe.views if view.size in (None, size))
    if len(views) == len(recipe.views):
        return recipe, []
    if not views:
        raise ValueError(f"views {recipe.name!r} has no view of {size} px: pass another recipe or image_size")
    note = f"the forecast compares the {len(views)} of {size} px of the {recipe.num_views} views of {recipe.name}"
    return dataclasses.replace(recipe, views=views), [note]


def without_one(recipe: Recipe) -> dict[str, Recipe]:
    """Return copies of the recipe that each leave one augmentation out, keyed by its name."""
    changed = {name: recipe.with_(**changes) for name, changes in OPERATIONS.items()}
    return {name: one for name, one in changed.items() if one != recipe}


def read_images(
    source: ImageSource, recipe: Recipe, size: int, args: ForecastArguments
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Return images `(n, C, H, W)` uint8 drawn at random, their labels `(n,)` if any, and a note on unreadable ones.

    Args:
        source ([`ImageSource`]): The data set.
        recipe ([`Recipe`]): The augmentation recipe.
        size (`int`): The side of the views in pixels.
        args ([`ForecastArguments`]): The options.

    Raises:
        ValueError: There are too few images, they are smaller than the views, they do not fit in memory, or more
            cannot be read than are allowed.
    """
    if source.num_rows < 4:
        raise ValueError(f"dataset {source.name} has {source.num_rows} images, but intervals need at least 4")
    count = min(args.images, source.num_rows)
    shape = Shape.of(source, recipe, size)
    # Images of many sizes are cut to squares with twice the side of a view, whose crops lose little sharpness.
    height, width = shape.whole or (min(2 * size, int(source.shorter_side)),) * 2
    size_of_one = source.num_channels * height * width
    if count * size_of_one > LARGEST:
        fit = LARGEST // size_of_one
        raise ValueError(f"images is {count:,}, which need more than 2 GiB at {width}×{height} px: pass --images {fit}")
    indices = np.sort(np.random.default_rng(args.seed).permutation(source.num_rows)[:count])
    dataset = ImageDataset(source, image_size=None if shape.whole else height, indices=indices, unreadable="omit")
    loader = DataLoader(dataset, batch_size=256, collate_fn=collate)
    batches = [without_unreadable(batch) for batch in progress_bar(loader, "images")]
    unreadable = [Unreadable(*image) for batch in batches for image in batch["unreadable"]]
    check_unreadable(unreadable, count, source.max_unreadable)
    images, labels = (torch.cat([batch[key] for batch in batches]) for key in ("pixel_values", "labels"))
    return images, labels if (labels >= 0).any() else None, left_out_note(unreadable, count, source.split)
