"""Measure the spectra of a run as its options ask, and pass them on: to the best encoder, and to an early stop."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ...data import ImageDataset, ImageSource, Views, collate, without_unreadable
from ...encoders import Encoder
from ...encoders.embedding import normalized_batches
from ...hub.encoder_folder import spectra_rows
from ...modeling import SSLModel
from ...spectra import SpectralReport
from ...spectra.stages import REPRESENTATION
from ..data import TrainingData
from ..watching import Watch, watched_options
from .spectra import SpectraCallback

# Views of each image for LiDAR, and images at a time.
LIDAR_VIEWS, LIDAR_BATCH = 10, 32


class WatchingSpectra(SpectraCallback):
    """Measure spectra as [`SpectraCallback`] does, and pass those of the representation on to a [`Watch`].

    Args:
        watch ([`Watch`]): Keeps the best encoder, and decides whether the run stops.
        every (`float`): See [`SpectraCallback`].
        images (iterable, *optional*): See [`SpectraCallback`].
        views (iterable of `Tensor`, *optional*): Batches `(n, v, C, H, W)` of views of the same images, for LiDAR.
        threshold (`float`, defaults to 0.1): See [`SpectraCallback`].
    """

    def __init__(
        self,
        watch: Watch,
        every: float,
        *,
        images: Iterable | None = None,
        views: Iterable[Tensor] | None = None,
        threshold: float = 0.1,
    ):
        super().__init__(every, images=images, views=views, threshold=threshold)
        self.watch = watch

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Add the scalars, and end the training with a checkpoint if it has collapsed."""
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.watch.stopped is None and self.watch.agreed_to_stop(state.global_step, state.max_steps):
            control.should_save = control.should_training_stop = True

    def _noted(self, module: nn.Module, step: int, report: SpectralReport) -> dict[str, float]:
        spectrum = report.features.get(REPRESENTATION)
        return {} if spectrum is None else self.watch.see(module, step, spectrum)


def build_spectra(model: SSLModel, data: TrainingData) -> SpectraCallback:
    """Return the callback that the options of a run ask for.

    With `spectra_images` it measures features too, of as many training images, evenly spaced over the data set; for
    LiDAR also those of `LIDAR_VIEWS` views of each, by the first view of the run's recipe, the same at every
    measurement.

    Raises:
        ValueError: `spectra_images` is given, and the data are a stream or have fewer than two images.
    """
    args, source = data.args, data.source
    images = views = None
    if args.spectra_images:
        if source is None or source.num_rows is None or source.num_rows < 2:
            raise ValueError(
                f"spectra_images is {args.spectra_images}, but the data are a stream, or no data set of two images or "
                "more: pass --spectra_images 0"
            )
        rows = spectra_rows(source.num_rows, args.spectra_images)
        dataset = ImageDataset(source, image_size=model.encoder.image_size, indices=rows, unreadable="omit")
        images = _NormalizedImages(model.encoder, dataset)
        if args.select_by == "lidar":
            views = RandomViews(model.encoder, source, data.views, rows, seed=args.seed)
    return WatchingSpectra(data.watch, args.spectra_steps, images=images, views=views, threshold=args.spectra_threshold)


def check_own_spectra(data: TrainingData) -> None:
    """Refuse options whose measurements a callback of the user's own would replace.

    Raises:
        ValueError: An option selects an encoder or stops the run.
    """
    if name := watched_options(data.args):
        raise ValueError(
            f"{name} is {getattr(data.args, name)}, but a SpectraCallback of your own replaces the one that measures "
            "for it: leave one of them out"
        )


class _NormalizedImages:
    """Batches of images, normalized as an encoder expects, read anew each time.

    Args:
        encoder ([`Encoder`]): Says how to normalize.
        dataset ([`ImageDataset`]): The images.
    """

    def __init__(self, encoder: Encoder, dataset: ImageDataset):
        self.encoder, self.dataset = encoder, dataset

    def __iter__(self) -> Iterator[dict]:
        return iter(normalized_batches(self.encoder, self.dataset))


class RandomViews:
    """Batches `(n, v, C, H, W)` of random views of images, equal each time they are read.

    Args:
        encoder ([`Encoder`]): The device of its weights is that of the views.
        source ([`ImageSource`]): The images.
        views ([`Views`]): The views of the run, of which the first is made `LIDAR_VIEWS` times.
        rows (sequence of `int`): Rows of the source.
        seed (`int`): Determines the views.
    """

    def __init__(self, encoder: Encoder, source: ImageSource, views: Views, rows: Sequence[int], seed: int):
        first = dataclasses.replace(views.recipe, views=views.recipe.views[:1])
        self.encoder, self.seed = encoder, seed
        self.views = Views(first, encoder.image_size, encoder.mean, encoder.std)
        self.dataset = ImageDataset(
            source, views=first, image_size=encoder.image_size, seed=seed, indices=rows, unreadable="omit"
        )

    def __iter__(self) -> Iterator[Tensor]:
        device = next(self.encoder.parameters()).device
        for start in range(0, len(self.dataset), LIDAR_BATCH):
            places = range(start, min(start + LIDAR_BATCH, len(self.dataset)))
            made = []
            for number in range(LIDAR_VIEWS):
                # Crops made during decoding follow from the epoch.
                self.dataset.set_epoch(number)
                batch = without_unreadable(collate(self.dataset.__getitems__(places)))
                pixels = batch["crops"] if "crops" in batch else batch["pixel_values"]
                pixels = [crop.to(device) for crop in pixels] if isinstance(pixels, list) else pixels.to(device)
                made += self.views(pixels, seed=self.seed + (start * LIDAR_VIEWS + number) * 2**32)
            if len(made[0]):
                yield torch.stack(made, dim=1)
