"""The options of `orthossl spectra`."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..data import get_recipe
from ..spectra.figures import COLORS
from ..spectra.layers import POOLS

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
