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

# Suffixes of figures.
FORMATS = (".png", ".pdf", ".svg")


@dataclass
class SpectraArguments(ImageOptions):
    """Options of `orthossl spectra`; the help of each option describes it."""

    _argument_group_name = "measurements"

    dataset: list[str] | None = field(  # type: ignore[assignment]  # None: only the weights are measured
        default=None,
        metadata={
            "metavar": "NAME",
            "help": "images, as for orthossl pretrain (default: weights only)",
            "group": "data",
        },
    )
    models: list[str] = field(
        kw_only=True,
        metadata={"positional": True, "metavar": "MODEL", "help": "run folder, encoder folder, timm name or Hub id"},
    )
    split: str | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "split (default: test, validation or train)", "group": "data"},
    )
    images: int = field(default=4096, metadata={"help": "images, evenly spread over the split", "group": "data"})
    image_size: int | None = field(default=None, metadata={"help": "side of the input (default: the model's)"})
    layers: list[str] | None = field(
        default=None,
        metadata={"metavar": "NAME", "help": "layers (default: input, stages, representation)"},
    )
    include: list[str] | None = field(
        default=None, metadata={"metavar": "NAME", "help": "patterns of weights, such as layer4.*"}
    )
    exclude: list[str] | None = field(
        default=None, metadata={"metavar": "NAME", "help": "patterns of the weights to omit"}
    )
    pool: Literal["avg", "flatten"] = field(default="avg", metadata={"help": "pooling of feature maps"})
    views: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "augmentations for LiDAR, 10 views of 1,000 images"}
    )
    map: Literal["pca", "umap"] = field(default="pca", metadata={"help": "map of the classes; umap is an extra"})
    untrained: bool = field(default=False, metadata={"help": "use random weights, for comparison"})
    seed: int = field(default=0, metadata={"help": "seed of untrained weights and of views"})
    batch_size: int = field(default=256, metadata={"help": "images per forward pass"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, … (default: a GPU if there is one)"})
    plot: str | None = field(
        default=None, metadata={"metavar": "FILE", "help": "draw all spectra there too: .png, .pdf or .svg"}
    )
    output_dir: str = field(default="runs/spectra", metadata={"metavar": "DIR", "help": "folder of report and figures"})

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
        if self.plot is not None and Path(self.plot).suffix.lower() not in FORMATS:
            raise ValueError(f"plot is {self.plot!r}: its name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


def read(argv: list[str], prog: str = "orthossl spectra") -> tuple[SpectraArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    (args,), _ = parse(prog, DESCRIPTION, [SpectraArguments], argv)
    return (args,)
