"""Options of `orthossl spectra`."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ...data import get_recipe
from ...data.options import ImageOptions
from ..parsing import parse

DESCRIPTION = (
    "Measure how many of its directions an encoder uses: spectra of its weights and, with --dataset, of its features. "
    "MODEL is a run folder, an encoder folder, a timm name or a Hub id; several of them, up to 7, are compared. The "
    "terminal shows the last weight matrix of each stage; spectra.txt and spectra.json contain all of them."
)


@dataclass
class SpectraArguments(ImageOptions):
    """Options of `orthossl spectra`; the help of each option describes it."""

    dataset: list[str] | None = field(  # type: ignore[assignment]  # None: only the weights are measured
        default=None, metadata={"help": "images, as for orthossl pretrain, or 'digits' (default: weights only)"}
    )
    models: list[str] = field(
        kw_only=True,
        metadata={"positional": True, "metavar": "MODEL", "help": "run folder, encoder folder, timm name or Hub id"},
    )
    split: str | None = field(default=None, metadata={"help": "split (default: test, else validation, else train)"})
    images: int = field(default=4096, metadata={"help": "number of images to measure, evenly spread over the split"})
    image_size: int | None = field(
        default=None, metadata={"help": "side of the input in pixels (default: the model's)"}
    )
    layers: list[str] | None = field(
        default=None,
        metadata={"help": "layers to measure (default: input, all stages, representation)"},
    )
    include: list[str] | None = field(default=None, metadata={"help": "patterns of weights, such as layer4.*"})
    exclude: list[str] | None = field(default=None, metadata={"help": "patterns of the weights to omit"})
    pool: Literal["avg", "flatten"] = field(
        default="avg", metadata={"help": "pooling of feature maps: avg over positions, or flatten"}
    )
    views: str | None = field(
        default=None, metadata={"help": "augmentation recipe for LiDAR, from 10 views of each of at most 1,000 images"}
    )
    map: Literal["pca", "umap"] = field(
        default="pca", metadata={"help": "map of representations by class: pca, or umap (an extra)"}
    )
    untrained: bool = field(default=False, metadata={"help": "use random weights, for comparison"})
    seed: int = field(default=0, metadata={"help": "seed of untrained weights and of views"})
    batch_size: int = field(default=256, metadata={"help": "images per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    device: str | None = field(
        default=None, metadata={"help": "device, such as cpu or cuda (default: cuda if available)"}
    )
    output_dir: str = field(default="runs/spectra", metadata={"help": "folder for report and figures"})

    def __post_init__(self) -> None:
        super().__post_init__()
        places = [Path(name).resolve() for name in self.models]
        # The model of a run folder is in its subfolder `encoder`.
        places = [place.parent if place.name == "encoder" else place for place in places]
        if twice := [name for name, place in zip(self.models, places, strict=True) if places.count(place) > 1]:
            raise ValueError(f"MODEL {twice[-1]!r} is given twice: pass each model once")
        for name, least in (("images", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.dataset is None and (given := [n for n in ("split", "layers", "views") if getattr(self, n)]):
            raise ValueError(f"{given[0]} is given without images: pass --dataset too")
        if self.map == "umap" and find_spec("umap") is None:
            raise ValueError("map 'umap' needs umap-learn: pip install 'hf-orthossl[umap]'")
        if self.views is not None:
            get_recipe(self.views)


def read(argv: list[str], prog: str = "orthossl spectra") -> tuple[SpectraArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    (args,), _ = parse(prog, DESCRIPTION, [SpectraArguments], argv)
    return (args,)
