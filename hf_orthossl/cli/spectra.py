"""`orthossl spectra`: measure how many of its directions an encoder uses, as numbers and as figures."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..data import (
    ImageDataset,
    ImageSource,
    Views,
    collate,
    get_recipe,
    without_unreadable,
)
from ..data.unreadable import Unreadable, check_unreadable, left_out_note
from ..distributed.collectives import all_gather_object, all_gather_rows, on_main, shard_range
from ..distributed.environment import is_main_process
from ..distributed.launch import init_processes
from ..encoders import Encoder
from ..encoders.channels import common_channels, match_channels
from ..encoders.embedding import normalized_batches
from ..files import replace_file, replacing_files, require_writable
from ..hub.encoder_record import EncoderRecord
from ..locks import locked
from ..regularization import select_matrices
from ..spectra import (
    SpectralReport,
    last_weights,
    plot_filter_correlation,
    plot_representations,
    plot_spectra,
    spectral_report,
)
from ..spectra.figures import COLORS, check_figures
from ..spectra.layers import check_layers
from ..spectra.stages import short_name
from ..terminal import progress_bar
from .inputs import open_encoder, open_images, spread
from .options.spectra import SpectraArguments

# As in LiDAR's paper.
LIDAR_IMAGES, LIDAR_VIEWS = 1000, 10


@dataclass
class Measured:
    """One model's report, and the data of its other figures.

    Attributes:
        report ([`SpectralReport`]): The report.
        filters (`dict[str, Tensor]`): The last weight matrix `(input, output)`, by the title to show.
        representations (`Tensor`, *optional*): Representations `(N, D)`, if the images have labels.
        labels (`Tensor`, *optional*): The class of each image, −1 if unknown, shape `(N,)`.
    """

    report: SpectralReport
    filters: dict[str, Tensor]
    representations: Tensor | None = None
    labels: Tensor | None = None


def main(args: SpectraArguments) -> None:
    """Run the command: measure each model, write reports and figures, and print a table.

    Args:
        args ([`SpectraArguments`]): The options.
    """
    if len(args.models) > len(COLORS):
        raise ValueError(f"models must be at most {len(COLORS)} to have a colour each, got {len(args.models)}")
    init_processes(args.device)
    with locked(args.output_dir):
        measure_all(args)


def measure_all(args: SpectraArguments) -> None:
    """Measure each model, write reports and figures, and print a table, in a folder that no other command uses."""
    folder = Path(args.output_dir)
    on_main(lambda: require_writable(folder))
    plot = None if args.plot is None else Path(args.plot)
    if plot is not None:
        on_main(lambda: require_free(plot))
    check_figures()
    # All models are opened first, so that a misspelt name does not cost the measurements before it.
    names = dict(zip(names_of(args.models), args.models, strict=True))
    encoders = {name: open_encoder(model, args) for name, model in names.items()}
    titles = titles_of(names)
    source = open_images(args, args.split, args.channels or common_channels(encoders)) if args.dataset else None
    if source:
        print(f"data     {source.describe()}\n         {min(args.images, source.num_rows):,} of them are measured")
        for name, encoder in encoders.items():
            if measured_by := match_channels(encoder, source):
                print(f"pixels   {name}: {measured_by}")
    for name, encoder in encoders.items():
        check(name, encoder, source, args)
    reports: dict[str, SpectralReport] = {}
    written: list[str] = []
    for name, encoder in encoders.items():
        measured = measure(titles[name], encoder, source, args)
        if not is_main_process():
            continue
        reports[measured.report.name] = measured.report
        where = folder / name.replace("/", "_") if len(encoders) > 1 else folder
        written = write(measured, where, source, args)
    if is_main_process():
        print(closing(reports, folder, written, plot))


def check(name: str, encoder: Encoder, source: ImageSource | None, args: SpectraArguments) -> None:
    """Check the names of weights and layers and the size of views against a model, before anything is measured.

    Args:
        name (`str`): The model's name, for the error.
        encoder ([`Encoder`]): The model.
        source ([`ImageSource`], *optional*): The data set.
        args ([`SpectraArguments`]): The options.

    Raises:
        ValueError: A pattern or layer matches nothing, or the images are smaller than the views.
    """
    try:
        select_matrices(encoder, include=args.include, exclude=args.exclude)
        if args.layers:
            check_layers(encoder, args.layers)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not args.views or source is None:
        return
    # Views without an explicit size have the model's image size; check only the others.
    needed = max(get_recipe(args.views).sizes(0))
    if needed and needed > min(encoder.image_size, source.shorter_side):
        raise ValueError(
            f"views {args.views!r} makes crops of {needed} px and needs larger images: {name} expects "
            f"{encoder.image_size} px, {source.name} has {source.shorter_side:.0f} px; choose other --views"
        )


def names_of(models: list[str]) -> list[str]:
    """Return the shortest ends of the models' paths that are distinct."""
    parts = [[part for part in model.split("/") if part not in ("", ".", "encoder")] or [model] for model in models]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]).rpartition(":")[2] for own in parts]
        if len(set(names)) == len(names):
            return names
    return models


def titles_of(models: dict[str, str]) -> dict[str, str]:
    """Return what each model is called in tables and figures, by its name.

    A folder with the record of a run is called by what it holds, backbone, method and penalty, and by the name too if
    others hold the same; any other model by its name.

    Args:
        models (`dict[str, str]`): Name → run folder, encoder folder, timm name or Hub id.
    """
    titles = dict(zip(models, models, strict=True))
    for name, model in models.items():
        for folder in (Path(model) / "encoder", Path(model)):
            if (folder / "config.json").is_file():
                # Folders of other programs have no record.
                with contextlib.suppress(ValueError):
                    titles[name] = EncoderRecord.read(folder).short_name
                break
    shared = [title for title in titles.values() if list(titles.values()).count(title) > 1]
    return {name: f"{title} ({name})" if title in shared else title for name, title in titles.items()}


def measure(name: str, encoder: Encoder, source: ImageSource | None, args: SpectraArguments) -> Measured:
    """Return the report of one encoder, from one pass over the images.

    Args:
        name (`str`): What the model is called.
        encoder ([`Encoder`]): The model.
        source ([`ImageSource`], *optional*): The data set; without it, only the weights are measured.
        args ([`SpectraArguments`]): The options.
    """
    name = f"{name} (untrained)" if args.untrained else name
    about: dict[str, Any] = {"model": name, "version": __version__, "image_size": encoder.image_size}
    images: Generator[dict[str, Any], None, None] | None = None
    views: Generator[Tensor, None, None] | None = None
    labels: list[Tensor] = []
    representations: list[Tensor] = []
    unreadable: list[Unreadable] = []
    hook = None
    if source is not None:
        about |= {"dataset": source.name, "split": source.split}
        images = store_labels(batches_of(encoder, source, name, args, unreadable), labels)
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
        # Progress bars are closed before an error is printed, which would otherwise share their line.
        if images is not None:
            images.close()
        if views is not None:
            views.close()
        if hook is not None:
            hook.remove()
    if source is not None:
        report.notes += left_out_note(unreadable, min(args.images, source.num_rows), source.split)
    last = last_weights(report.weights)[-1]
    matrix = next(matrix for matrix in select_matrices(encoder) if matrix.name == last)
    measured = Measured(report, {f"{name}, {short_name(last)}": matrix.matrix().detach()})
    if labels and source is not None and source.label_column:
        own = torch.cat(labels)
        # Later calls add the representations of views.
        measured.representations = all_gather_rows(torch.cat(representations)[: len(own)].float())
        measured.labels = all_gather_rows(own)
    return measured


def batches_of(
    encoder: Encoder, source: ImageSource, name: str, args: SpectraArguments, unreadable: list[Unreadable]
) -> Iterator[dict[str, Any]]:
    """Yield batches of this process's share of the images, and list those that cannot be read on any process.

    Raises:
        TooManyUnreadable: They are more than allowed.
    """
    rows = spread(source.num_rows, args.images)
    own = [rows[i] for i in shard_range(len(rows))]
    dataset = ImageDataset(source, image_size=encoder.image_size, indices=own, unreadable="omit")
    progress = f"images of {name}" if is_main_process() else None
    found: list[Unreadable] = []
    yield from normalized_batches(
        encoder,
        dataset,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        progress=progress,
        unreadable=found,
    )
    unreadable += [image for images in all_gather_object(found) for image in images]
    check_unreadable(unreadable, len(rows), source.max_unreadable)


def store_labels(batches: Iterator[dict[str, Any]], labels: list[Tensor]) -> Generator[dict[str, Any], None, None]:
    """Yield batches, and append their labels to a list."""
    for batch in batches:
        labels.append(batch["labels"])
        yield batch


def views_of(encoder: Encoder, source: ImageSource, name: str, args: SpectraArguments) -> Generator[Tensor, None, None]:
    """Yield this process's share of batches `(n, 10, C, S, S)` of views, without crops below the input size."""
    recipe = get_recipe(args.views)
    rows = spread(source.num_rows, min(LIDAR_IMAGES, args.images))
    settings = {"image_size": encoder.image_size, "seed": args.seed, "unreadable": "omit"}
    dataset = ImageDataset(source, views=recipe, indices=rows, **settings)
    make = Views(recipe, encoder.image_size, encoder.mean, encoder.std)
    whole = [number for number, size in enumerate(make.sizes) if size == max(make.sizes)]
    device = next(encoder.parameters()).device
    parts = torch.arange(len(rows)).split(max(args.batch_size // LIDAR_VIEWS, 1))
    numbers = shard_range(len(parts))
    for number in progress_bar(numbers, f"views of {name}", is_main_process()):
        part = parts[number]
        views: list[Tensor] = []
        for turn in range(-(-LIDAR_VIEWS // len(whole))):
            # Crops made during decoding depend on the epoch, the following ones on the seed.
            dataset.set_epoch(turn)
            batch = without_unreadable(collate(dataset.__getitems__(part.tolist())))
            if not len(batch["labels"]):
                break
            images = batch["crops"] if "crops" in batch else batch["pixel_values"]
            images = images.to(device) if isinstance(images, Tensor) else [crops.to(device) for crops in images]
            made = make(images, seed=args.seed + len(parts) * turn + number)
            views += [made[i] for i in whole]
        if views:
            yield torch.stack(views[:LIDAR_VIEWS], dim=1)


def write(measured: Measured, folder: Path, source: ImageSource | None, args: SpectraArguments) -> list[str]:
    """Write the report and the figures of one model into its folder, and return the names to show.

    Figures of an earlier run that are not made again are removed.

    Args:
        measured ([`Measured`]): The model's report and data.
        folder (`Path`): The folder.
        source ([`ImageSource`], *optional*): The data set.
        args ([`SpectraArguments`]): The options.
    """
    written = ["spectra.txt", "spectra.png"]
    # A figure that cannot be drawn leaves all files of an earlier run as they were.
    with replacing_files(folder) as unfinished:
        measured.report.save(unfinished)
        replace_file(unfinished / "spectra.txt", measured.report.table() + "\n")
        measured.report.plot(unfinished / "spectra.png")
        if all(min(matrix.shape) > 1 for matrix in measured.filters.values()):
            written.append(plot_filter_correlation(measured.filters, unfinished / "filters.png").name)
        points, labels = measured.representations, measured.labels
        if points is not None and labels is not None and int((labels >= 0).sum()) > 1:
            labelled = labels >= 0
            made = plot_representations(
                {measured.report.name: points[labelled]},
                labels[labelled],
                unfinished / "representations.png",
                class_names=None if source is None else source.class_names,
                method=args.map,
            )
            written.append(made.name)
    for stale in {"filters.png", "representations.png"} - set(written):
        (folder / stale).unlink(missing_ok=True)
    return written


def closing(reports: dict[str, SpectralReport], folder: Path, written: list[str], plot: Path | None) -> str:
    """Draw what compares models, and return the text for the terminal: tables, and where the files are."""
    first, *others = reports.values()
    if not others:
        shown, files = first.table(brief=True), written
    else:
        plot_spectra(reports, folder / "comparison.png")
        replace_file(folder / "comparison.txt", first.compare(*others) + "\n")
        shown = first.compare(*others, brief=True)
        files = ["comparison.txt", "comparison.png", "a folder for each model"]
    drawn = "" if plot is None else f"\nplot     {plot_spectra(reports, plot)}"
    return f"{shown}\n\nresults  {folder} ({', '.join(files)}){drawn}"


def require_free(plot: Path) -> None:
    """Check before a measurement that a figure can be written to a file that does not exist yet.

    Raises:
        ValueError: The file exists.
        OSError: Its folder cannot be written.
    """
    if plot.exists():
        raise ValueError(f"plot {plot} exists: pass the name of a new file, or remove it")
    require_writable(plot.parent, [plot.name], "plot")
