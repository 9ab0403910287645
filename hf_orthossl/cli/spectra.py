"""`orthossl spectra`: how many of its directions an encoder uses, as numbers and as pictures."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import __version__
from ..data import ImageDataset, ImageSource, Views, available_splits, collate, get_recipe, load_source
from ..distributed.collectives import all_gather_rows, shard_range
from ..distributed.launch import init_processes, is_main_process
from ..encoders import Encoder
from ..evaluation.features import normalized_batches
from ..evaluation.frozen import HELD_OUT_SPLITS
from ..regularization import select_matrices
from ..spectra import (
    SpectralReport,
    last_weights,
    plot_filter_correlation,
    plot_representations,
    plot_spectra,
    spectral_report,
)
from ..spectra.figures import COLORS
from ..spectra.layers import POOLS, check_layers
from ..spectra.stages import short_name
from .evaluate import open_encoder
from .parsing import parse

MAPS = ("pca", "umap")


@dataclass
class SpectraArguments:
    """What to measure."""

    models: list[str] = field(
        metadata={"positional": True, "metavar": "MODEL", "help": "run folder, encoder folder, timm name or Hub id"}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Hub id, folder of images or of parquet files, or 'digits' (default: weights only)"},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "configuration of a Hub data set"})
    split: str | None = field(default=None, metadata={"help": "(default: test, else validation, else train)"})
    image_column: str | None = field(default=None, metadata={"help": "column of images (default: found by type)"})
    label_column: str | None = field(
        default=None, metadata={"help": "column of labels, for the map only (default: found by type)"}
    )
    images: int = field(default=4096, metadata={"help": "images measured, evenly spread over the split"})
    image_size: int | None = field(
        default=None, metadata={"help": "side of the input in pixels (default: the model's)"}
    )
    layers: list[str] | None = field(
        default=None, metadata={"help": "whose features (default: input, all stages, representation)"}
    )
    include: list[str] | None = field(default=None, metadata={"help": "patterns of weights, as in layer4.*"})
    exclude: list[str] | None = field(default=None, metadata={"help": "patterns of weights to leave out"})
    pool: str = field(default="avg", metadata={"help": "feature maps to vectors: avg over positions, or flatten"})
    views: str | None = field(
        default=None, metadata={"help": "augmentation recipe: LiDAR from 10 views of each of at most 1,000 images"}
    )
    map: str = field(default="pca", metadata={"help": "map of representations by class: pca, or umap (extra)"})
    untrained: bool = field(default=False, metadata={"help": "random weights instead of the model's, to compare with"})
    seed: int = field(default=0, metadata={"help": "of untrained weights and of views"})
    batch_size: int = field(default=256, metadata={"help": "images per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda (default: cuda where there is one)"}
    )
    output_dir: str = field(default="runs/spectra", metadata={"help": "where report and figures go"})

    def __post_init__(self):
        if len(self.models) > len(COLORS):
            raise ValueError(f"{len(self.models)} models cannot be told apart in a figure: pass at most {len(COLORS)}")
        places = [Path(name).resolve() for name in self.models]
        # A run folder's model is the one in its folder `encoder`.
        places = [place.parent if place.name == "encoder" else place for place in places]
        if twice := [name for name, place in zip(self.models, places, strict=True) if places.count(place) > 1]:
            raise ValueError(f"MODEL {twice[-1]!r} is given twice: pass each once")
        for name, value, known in (("pool", self.pool, POOLS), ("map", self.map, MAPS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: it must be {' or '.join(known)}")
        if self.images < 2 or self.batch_size < 1:
            raise ValueError(f"images is {self.images} and batch_size {self.batch_size}: at least 2 and 1 are needed")
        if self.dataset is None and (needing := [n for n in ("split", "layers", "views") if getattr(self, n)]):
            raise ValueError(f"{needing[0]} is given without images: pass --dataset too")
        if self.map == "umap" and find_spec("umap") is None:
            raise ValueError("map is 'umap', which needs umap-learn: pip install 'hf-orthossl[umap]'")
        if self.views is not None:
            get_recipe(self.views)


# As in LiDAR's paper.
LIDAR_IMAGES, LIDAR_VIEWS = 1000, 10
DESCRIPTION = (
    "Measure how many of its directions an encoder uses: spectra of its weights and, with --dataset, of its features. "
    "MODEL is a run folder, an encoder folder, a timm name or a Hub id; several, at most 7, are compared. The terminal "
    "shows the last weight matrix of each stage; spectra.txt and spectra.json hold all."
)


@dataclass
class Measured:
    """One model's report, and what the pictures beside it show."""

    report: SpectralReport
    filters: dict[str, Tensor]
    representations: Tensor | None = None
    labels: Tensor | None = None


def main(argv: list[str], prog: str = "orthossl spectra") -> None:
    """Measures each model, writes reports and figures, and prints a table."""
    (args,), _ = parse(prog, DESCRIPTION, [SpectraArguments], argv)
    init_processes(args.device)
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: pass a folder")
    source = open_images(args) if args.dataset else None
    if source:
        count, size = min(args.images, source.num_rows), source.image_size
        sizes = f"{size[1]}×{size[0]} px" if size else "of different sizes"
        print(f"data     {source.name}: {count:,} of {source.num_rows:,} images of {source.split}, {sizes}")
    # All are opened first: a misspelt name must not cost the measurements before it.
    encoders = {name: open_encoder(model, args) for name, model in zip(names_of(args.models), args.models, strict=True)}
    for name, encoder in encoders.items():
        check(name, encoder, source, args)
    reports, written = {}, []
    for name, encoder in encoders.items():
        measured = measure(name, encoder, source, args)
        if not is_main_process():
            continue
        reports[measured.report.name] = measured.report
        where = folder / name.replace("/", "_") if len(encoders) > 1 else folder
        written = write(measured, where, source, args)
    if is_main_process():
        print(closing(reports, folder, written))


def open_images(args: SpectraArguments) -> ImageSource:
    """The images, of a held-out split where there is one."""
    split = args.split
    if split is None:
        known = available_splits(args.dataset, args.dataset_name)
        split = next((name for name in HELD_OUT_SPLITS if name in known), None)
    return load_source(
        args.dataset,
        name=args.dataset_name,
        split=split,
        image_column=args.image_column,
        label_column=args.label_column,
    )


def check(name: str, encoder: Encoder, source: ImageSource | None, args: SpectraArguments) -> None:
    """Refuses names and views that the model has no place for, before anything is measured."""
    try:
        select_matrices(encoder, include=args.include, exclude=args.exclude)
        if args.layers:
            check_layers(encoder, args.layers)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    # Only views that have a size of their own count here: the others take the model's.
    needed = max(get_recipe(args.views).sizes(0)) if args.views else 0
    if needed and needed > min(encoder.image_size, source.shorter_side):
        raise ValueError(
            f"views {args.views!r} makes crops of {needed} px and needs larger images: {name} takes "
            f"{encoder.image_size} px, {source.name} has {source.shorter_side:.0f} px; choose other --views"
        )


def names_of(models: list[str]) -> list[str]:
    """The shortest ends of the models' paths that tell them apart."""
    parts = [[part for part in model.split("/") if part not in ("", ".", "encoder")] or [model] for model in models]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]).rpartition(":")[2] for own in parts]
        if len(set(names)) == len(names):
            return names
    return models


def measure(name: str, encoder: Encoder, source: ImageSource | None, args: SpectraArguments) -> Measured:
    """The report of one encoder, from one pass over the images."""
    name = f"{name} (untrained)" if args.untrained else name
    about = {"model": name, "version": __version__, "image_size": encoder.image_size}
    images, views, labels, representations, hook = None, None, [], [], None
    if source is not None:
        about |= {"dataset": source.name, "split": source.split}
        images = remember(batches_of(encoder, source, name, args), labels)
        views = views_of(encoder, source, name, args) if args.views else None
        hook = encoder.register_forward_hook(lambda module, inputs, output: representations.append(output.cpu()))
    try:
        report = spectral_report(
            encoder,
            images,
            layers=args.layers,
            views=views,
            include=args.include,
            exclude=args.exclude,
            batch_size=args.batch_size,
            pool=args.pool,
            metadata=about,
            shared=True,
        )
    finally:
        # A bar that an error interrupts is cleared before the error is shown.
        for part in (images, views):
            if part:
                part.close()
        if hook:
            hook.remove()
    last = last_weights(report.weights)[-1]
    matrix = next(matrix for matrix in select_matrices(encoder) if matrix.name == last)
    measured = Measured(report, {f"{name}, {short_name(last)}": matrix.matrix().detach()})
    if labels and source.label_column:
        own = torch.cat(labels)
        # Those that follow are of views.
        measured.representations = all_gather_rows(torch.cat(representations)[: len(own)].float())
        measured.labels = all_gather_rows(own)
    return measured


def spread(count: int, wanted: int) -> list[int]:
    """Rows evenly spread over a data set: sorted ones keep all their classes."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()


def batches_of(encoder: Encoder, source: ImageSource, name: str, args: SpectraArguments) -> Iterator[dict]:
    """Batches of this process's share of the images."""
    rows = spread(source.num_rows, args.images)
    dataset = ImageDataset(source, image_size=encoder.image_size, indices=[rows[i] for i in shard_range(len(rows))])
    progress = f"images of {name}" if is_main_process() else None
    return normalized_batches(
        encoder, dataset, batch_size=args.batch_size, num_workers=args.num_workers, progress=progress
    )


def remember(batches: Iterator[dict], labels: list[Tensor]) -> Iterator[dict]:
    for batch in batches:
        labels.append(batch["labels"])
        yield batch


def views_of(encoder: Encoder, source: ImageSource, name: str, args: SpectraArguments) -> Iterator[Tensor]:
    """This process's share of batches `(n, 10, 3, S, S)` of views; crops below the input size are left out."""
    recipe = get_recipe(args.views)
    rows = spread(source.num_rows, min(LIDAR_IMAGES, args.images))
    dataset = ImageDataset(source, views=recipe, image_size=encoder.image_size, seed=args.seed, indices=rows)
    make = Views(recipe, encoder.image_size, encoder.mean, encoder.std)
    whole = [number for number, size in enumerate(make.sizes) if size == max(make.sizes)]
    device = next(encoder.parameters()).device
    parts = torch.arange(len(rows)).split(max(args.batch_size // LIDAR_VIEWS, 1))
    numbers = shard_range(len(parts))
    for number in tqdm(
        numbers, desc=f"views of {name}", disable=not is_main_process(), leave=False, dynamic_ncols=True
    ):
        part, views = parts[number], []
        for turn in range(-(-LIDAR_VIEWS // len(whole))):
            # Other crops where they are made at decode, by the epoch; where they are made here, by the seed.
            dataset.set_epoch(turn)
            batch = collate(dataset.__getitems__(part.tolist()))
            images = batch["crops"] if "crops" in batch else batch["pixel_values"]
            images = images.to(device) if isinstance(images, Tensor) else [crops.to(device) for crops in images]
            made = make(images, seed=args.seed + len(parts) * turn + number)
            views += [made[i] for i in whole]
        yield torch.stack(views[:LIDAR_VIEWS], dim=1)


def write(measured: Measured, folder: Path, source: ImageSource | None, args: SpectraArguments) -> list[str]:
    """Everything of one model into its folder, without the pictures of an earlier run: the names to show."""
    measured.report.save(folder)
    for name in ("filters.png", "representations.png"):
        (folder / name).unlink(missing_ok=True)
    written = ["spectra.txt", "spectra.png"]
    (folder / "spectra.txt").write_text(measured.report.table() + "\n")
    measured.report.plot(folder / "spectra.png")
    if all(min(matrix.shape) > 1 for matrix in measured.filters.values()):
        written.append(plot_filter_correlation(measured.filters, folder / "filters.png").name)
    labelled = measured.labels >= 0 if measured.labels is not None else torch.zeros(0)
    if int(labelled.sum()) > 1:
        made = plot_representations(
            {measured.report.name: measured.representations[labelled]},
            measured.labels[labelled],
            folder / "representations.png",
            class_names=source.class_names,
            method=args.map,
        )
        written.append(made.name)
    return written


def closing(reports: dict[str, SpectralReport], folder: Path, written: list[str]) -> str:
    """What the terminal shows: one model's table or the comparison of several, and where everything is."""
    first, *others = reports.values()
    if not others:
        shown, files = first.table(brief=True), written
    else:
        plot_spectra(reports, folder / "comparison.png")
        (folder / "comparison.txt").write_text(first.compare(*others) + "\n")
        shown = first.compare(*others, brief=True)
        files = ["comparison.txt", "comparison.png", "a folder for each model"]
    return f"{shown}\n\nresults  {folder} ({', '.join(files)})"
