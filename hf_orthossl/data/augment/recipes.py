"""Augmentation recipes as data: what is done to an image to make each of its views."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

_INTERPOLATIONS = ("bicubic", "bilinear")


_PROBABILITIES = ("flip", "jitter", "grayscale", "blur", "solarize")


@dataclass(frozen=True)
class ViewSpec:
    """How one view is made. Operations come in the order of the fields; 0 leaves one out.

    Args:
        size (`int`, *optional*): Side in pixels; defaults to the encoder's image size.
        scale (`tuple[float, float]`, defaults to `(0.08, 1.0)`): Share of the image's area in the crop.
        ratio (`tuple[float, float]`, defaults to `(3 / 4, 4 / 3)`): Width over height of the crop.
        interpolation (`str`, defaults to `"bicubic"`): "bicubic" or "bilinear", antialiased.
        flip (`float`, defaults to 0.5): Probability of a horizontal flip.
        jitter (`float`, defaults to 0.8): Probability of the next four, applied in random order.
        brightness, contrast, saturation (`float`, defaults to 0.4, 0.4, 0.2): A factor from [max(0, 1 − x), 1 + x].
        hue (`float`, defaults to 0.1): A shift from [−x, x] of the colour circle, at most 0.5.
        grayscale (`float`, defaults to 0.2): Probability of dropping colour.
        blur (`float`, defaults to 0.0): Probability of a Gaussian blur.
        blur_sigma (`tuple[float, float]`, defaults to `(0.1, 2.0)`): Range of its σ, in pixels.
        solarize (`float`, defaults to 0.0): Probability of inverting the bright pixels.
        solarize_threshold (`float`, defaults to 0.5): Brightness from which they are inverted, in [0, 1].

    Raises:
        ValueError: a value lies outside its range.
    """

    size: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 0.5

    def __post_init__(self):
        for name in ("scale", "ratio", "blur_sigma"):
            object.__setattr__(self, name, self._range(name))
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise ValueError(f"size of a view is {self.size!r}: it must be a positive number of pixels")
        if self.scale[1] > 1:
            raise ValueError(f"scale is {list(self.scale)}: a crop has at most the whole area, 1")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}: it must be one of {', '.join(_INTERPOLATIONS)}")
        limits = dict.fromkeys((*_PROBABILITIES, "solarize_threshold"), 1.0) | {"hue": 0.5}
        for name in (*limits, "brightness", "contrast", "saturation"):
            value, top = getattr(self, name), limits.get(name, float("inf"))
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= top:
                raise ValueError(f"{name} is {value!r}: it must be a number in [0, {top:g}]")

    def _range(self, name: str) -> tuple[float, float]:
        try:
            low, high = (float(value) for value in getattr(self, name))
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"{name} is {getattr(self, name)!r}: it must be two positive numbers, the lower one first")
        return low, high


@dataclass(frozen=True)
class Recipe:
    """Views of one image, made independently of each other.

    Args:
        name (`str`): As on the command line.
        views (`tuple[ViewSpec, ...]`): One per view; the full-sized (global) ones first.
        source (`str`): Where the numbers come from.
    """

    name: str
    views: tuple[ViewSpec, ...]
    source: str = ""

    def __post_init__(self):
        if not self.views:
            raise ValueError(f"recipe {self.name} has no views: it must have at least one")

    @property
    def num_views(self) -> int:
        """Views per image."""
        return len(self.views)

    def sizes(self, image_size: int) -> tuple[int, ...]:
        """Side of each view in pixels, for an encoder of this image size."""
        return tuple(view.size or image_size for view in self.views)

    def with_(self, *, view: int | None = None, **changes: Any) -> Self:
        """A copy in which fields of every view, or of the one numbered `view` (from 0), are replaced."""
        return dataclasses.replace(
            self,
            views=tuple(
                changed(spec, changes, self.name) if view in (None, number) else spec
                for number, spec in enumerate(self.views)
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as a mapping that `from_dict` reads back."""
        views = [
            {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(view).items()}
            for view in self.views
        ]
        return {"name": self.name, "source": self.source, "views": views}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads a recipe from a mapping, as a YAML file holds it.

        Args:
            values: `name`, `source` (both optional) and `views`, a list of mappings of [`ViewSpec`] fields. In each,
                `base` names a recipe whose first view is the starting point (instead of the defaults), and `repeat`
                makes several such views.

        Raises:
            ValueError: a key is unknown (the nearest is named) or a value is out of range.
        """
        check_keys(values, ("name", "source", "views"), "a recipe")
        name = str(values.get("name", "custom"))
        entries = values.get("views")
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError(f"views of recipe {name} is {entries!r}: it must be a list of mappings")
        views = []
        for entry in entries:
            changes = dict(entry)
            base, repeat = changes.pop("base", None), changes.pop("repeat", 1)
            if not isinstance(repeat, int) or repeat < 1:
                raise ValueError(f"repeat in recipe {name} is {repeat!r}: it must be a positive number of views")
            start = get_recipe(base).views[0] if base is not None else ViewSpec()
            views += [changed(start, changes, name)] * repeat
        return cls(name, tuple(views), str(values.get("source", "")))


def get_recipe(name: str | Recipe) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: there is none; the nearest is named.
    """
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there are no views {name!r}: {guess}there are {', '.join(RECIPES)}")
    return RECIPES[name]


def changed(spec: ViewSpec, changes: Mapping[str, Any], recipe: str) -> ViewSpec:
    """A view with some fields replaced; raises `ValueError` for an unknown one."""
    check_keys(changes, [field.name for field in dataclasses.fields(ViewSpec)], f"a view of recipe {recipe}")
    return dataclasses.replace(spec, **changes)


def check_keys(values: Mapping[str, Any], known: Any, where: str) -> None:
    """Raises `ValueError` for a key that is not known, with the nearest."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}: it must be a mapping")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{key!r} is no key of {where}: {guess}it takes {', '.join(known)}")


def _catalogue() -> dict[str, Recipe]:
    plain = ViewSpec()
    weak = ViewSpec(saturation=0.4, blur=0.5)
    # LightlySSL leaves torchvision's default interpolation, bilinear.
    simclr = ViewSpec(saturation=0.4, interpolation="bilinear")
    swav = ViewSpec(
        scale=(0.14, 1.0),
        interpolation="bilinear",
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        blur=0.5,
    )
    local = {"size": 96, "scale": (0.05, 0.14)}
    small_local = {"size": 16, "scale": (0.05, 0.25)}
    small_global = dataclasses.replace(simclr, scale=(0.25, 1.0))
    # Handwriting: a mirrored or recoloured digit is no digit, a shifted, stretched or faint one is.
    digits = ViewSpec(
        scale=(0.5, 1.0),
        flip=0.0,
        saturation=0.0,
        hue=0.0,
        grayscale=0.0,
        blur=0.3,
        blur_sigma=(0.1, 1.0),
    )
    recipes = [
        Recipe("cifar-asym", (plain, dataclasses.replace(plain, solarize=0.2)), "solo-learn, CIFAR, asymmetric"),
        Recipe("cifar-weak", (weak, weak), "solo-learn, CIFAR, symmetric weak (MoCoV2+)"),
        Recipe(
            "cifar-vicreg",
            (dataclasses.replace(plain, scale=(0.2, 1.0), solarize=0.1),) * 2,
            "solo-learn, CIFAR, VICReg",
        ),
        Recipe("cifar-simclr", (simclr, simclr), "LightlySSL, CIFAR-10 benchmark: SimCLR, DCL, NNCLR"),
        Recipe(
            "cifar-simsiam",
            (dataclasses.replace(simclr, scale=(0.2, 1.0)),) * 2,
            "LightlySSL, CIFAR-10 benchmark: SimSiam",
        ),
        Recipe(
            "cifar-swav",
            (dataclasses.replace(simclr, scale=(0.14, 1.0)),) * 2,
            "LightlySSL, CIFAR-10 benchmark: SwAV",
        ),
        Recipe(
            "imagenet",
            (dataclasses.replace(plain, blur=1.0), dataclasses.replace(plain, blur=0.1, solarize=0.2)),
            "Grill et al. 2020 (BYOL), table 6",
        ),
        Recipe(
            "imagenet-weak",
            (dataclasses.replace(weak, scale=(0.2, 1.0), interpolation="bilinear"),) * 2,
            "Chen et al. 2020 (MoCo v2)",
        ),
        Recipe("digits", (digits, digits), "ours: changes of handwriting that keep the digit"),
        Recipe(
            "multicrop",
            (swav,) * 2 + (dataclasses.replace(swav, **local),) * 6,
            "Caron et al. 2020 (SwAV): 2×224 and 6×96",
        ),
        Recipe(
            "cifar-multicrop",
            (small_global,) * 2 + (dataclasses.replace(small_global, **small_local),) * 6,
            "crop areas of Caron et al. 2021 (DINO, released ViT-S/16), colours of cifar-simclr, local crops of 16 px",
        ),
    ]
    return {recipe.name: recipe for recipe in recipes}


RECIPES: dict[str, Recipe] = _catalogue()
