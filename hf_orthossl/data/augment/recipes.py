"""Augmentation recipes: one specification per view, and published recipes by name."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ...messages import describe, suggest
from ...options import read_yaml

_INTERPOLATIONS = ("bicubic", "bilinear")
# Views of one kind in a recipe; a file could ask for any number.
MAX_REPEAT = 64
_PROBABILITIES = ("flip", "jitter", "grayscale", "blur", "solarize")


@dataclass(frozen=True)
class ViewSpec:
    """The operations that make one view, applied in the order of the fields; 0 disables an operation.

    Args:
        size (`int`, *optional*): Side of the view in pixels; defaults to the encoder's image size.
        scale (`tuple[float, float]`, defaults to `(0.08, 1.0)`): Range of the crop's share of the image's area.
        ratio (`tuple[float, float]`, defaults to `(3 / 4, 4 / 3)`): Range of the crop's width divided by its height.
        interpolation (`str`, defaults to `"bicubic"`): "bicubic" or "bilinear", with antialiasing.
        flip (`float`, defaults to 0.5): Probability of a horizontal flip.
        jitter (`float`, defaults to 0.8): Probability of the next four operations, applied in random order.
        brightness (`float`, defaults to 0.4): Brightness is multiplied by a factor from [max(0, 1 − x), 1 + x].
        contrast (`float`, defaults to 0.4): Contrast is multiplied by a factor from [max(0, 1 − x), 1 + x].
        saturation (`float`, defaults to 0.2): Saturation is multiplied by a factor from [max(0, 1 − x), 1 + x].
        hue (`float`, defaults to 0.1): The hue is shifted by a share from [−x, x] of the colour circle; x ≤ 0.5.
        grayscale (`float`, defaults to 0.2): Probability of dropping colour.
        blur (`float`, defaults to 0.0): Probability of a Gaussian blur.
        blur_sigma (`tuple[float, float]`, defaults to `(0.1, 2.0)`): Range of the blur's σ, in pixels.
        solarize (`float`, defaults to 0.0): Probability of inverting the bright pixels.
        solarize_threshold (`float`, defaults to 0.5): Brightness in [0, 1] from which pixels are inverted.

    Raises:
        ValueError: A value is out of range.
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

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "blur_sigma"):
            object.__setattr__(self, name, self._range(name))
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise ValueError(f"size of a view is {self.size!r}: it must be a positive number of pixels")
        if self.scale[1] > 1:
            raise ValueError(f"scale is {list(self.scale)}: its upper end must be at most 1, the whole area")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}: {suggest(self.interpolation, _INTERPOLATIONS)}")
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
    """The views of one image, which are made independently of each other.

    Args:
        name (`str`): The name on the command line.
        views (`tuple[ViewSpec, ...]`): One specification per view; the full-sized (global) views come first.
        source (`str`): The publication or library that the values come from.

    Raises:
        ValueError: There are no views.

    Example:
        >>> Recipe("two weak views", (ViewSpec(jitter=0.0),) * 2).num_views
        2
    """

    name: str
    views: tuple[ViewSpec, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError(f"recipe {self.name} has no views: it must have at least one")

    @property
    def num_views(self) -> int:
        """The number of views per image."""
        return len(self.views)

    def sizes(self, image_size: int) -> tuple[int, ...]:
        """Return the side of each view in pixels for an encoder of this image size."""
        return tuple(view.size or image_size for view in self.views)

    def with_(self, *, view: int | None = None, **changes: Any) -> Self:
        """Return a copy with changed views.

        Args:
            view (`int`, *optional*): The number of the view to change, from 0; by default all views change.
            changes: New values of [`ViewSpec`] fields.

        Raises:
            ValueError: A field is unknown or a value is out of range.
        """
        return dataclasses.replace(
            self,
            views=tuple(
                _replace_fields(spec, changes, self.name) if view in (None, number) else spec
                for number, spec in enumerate(self.views)
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as a mapping that [`~Recipe.from_dict`] reads."""
        views = [
            {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(view).items()}
            for view in self.views
        ]
        return {"name": self.name, "source": self.source, "views": views}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a recipe from a mapping, such as the content of a YAML file.

        Args:
            values (mapping): `name`, `source` (both optional) and `views`, a list of mappings of [`ViewSpec`] fields.
                In each of these, `base` names a recipe whose first view replaces the defaults, and `repeat` is the
                number of such views.

        Raises:
            ValueError: A key is unknown or a value is out of range.
        """
        _check_keys(values, ("name", "source", "views"), "a recipe")
        name = str(values.get("name", "custom"))
        entries = values.get("views")
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError(f"views of recipe {name} is {entries!r}: it must be a list of mappings")
        views = []
        for entry in entries:
            changes = dict(entry)
            base, repeat = changes.pop("base", None), changes.pop("repeat", 1)
            if type(repeat) is not int or not 1 <= repeat <= MAX_REPEAT:
                raise ValueError(f"repeat in recipe {name} is {repeat!r}: it must be 1 to {MAX_REPEAT} views")
            start = _published(str(base)).views[0] if base is not None else ViewSpec()
            views += [_replace_fields(start, changes, name)] * repeat
        return cls(name, tuple(views), str(values.get("source", "")))


def get_recipe(name: str | Recipe) -> Recipe:
    """Return the recipe of this name, or in this YAML file; a recipe is returned unchanged.

    A file is read as [`Recipe.from_dict`] says; its name without the suffix is that of the recipe unless it gives one.

    Raises:
        TypeError: `name` is neither a string nor a recipe.
        FileNotFoundError: There is no such file.
        ValueError: There is no recipe of this name, or the file does not hold one.
    """
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, str):
        raise TypeError(f"views must be a recipe or the name of one, such as 'digits', got {describe(name)}")
    if not is_recipe_file(name):
        return _published(name)
    values = read_yaml(name, "views", "views: [{jitter: 0.5, repeat: 2}]")
    try:
        return Recipe.from_dict({"name": Path(name).stem, **values})
    except ValueError as error:
        raise ValueError(f"views {name}: {error}") from error


def is_recipe_file(name: Any) -> bool:
    """Return whether `views` names a YAML file instead of a published recipe."""
    return isinstance(name, str) and name.lower().endswith((".yaml", ".yml"))


def _published(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"views {name!r} is unknown: {suggest(name, RECIPES)}")
    return RECIPES[name]


def for_channels(recipe: Recipe, channels: int) -> tuple[Recipe, str | None]:
    """Return what a recipe becomes for images of a number of channels, and how it differs, in words.

    Crops, flips and blur are the same for any number. Three channels are colours, and nothing changes. Of others,
    saturation, hue and grayscale are left out; brightness and contrast are those of each channel by itself, see
    [`~colour.photometric_steps`]; solarization is left out unless there is one channel, whose bright values are
    inverted as those of a grey image.

    Args:
        recipe ([`Recipe`]): The recipe.
        channels (`int`): The number of channels.

    Returns:
        `tuple[Recipe, str | None]`: The recipe, and a phrase, or `None` if nothing differs.
    """
    if channels == 3:
        return recipe, None
    off = {"saturation": "saturation", "hue": "hue", "grayscale": "grayscale"}
    off |= {} if channels == 1 else {"solarize": "solarization"}
    changes: dict[str, Any] = dict.fromkeys(off, 0.0)
    # Saturation and hue are parts of the jitter.
    used = {name: [view for view in recipe.views if getattr(view, name)] for name in off}
    dropped = [
        word
        for name, word in off.items()
        if any(view.jitter or name not in ("saturation", "hue") for view in used[name])
    ]
    jittered = [view for view in recipe.views if view.jitter and (view.brightness or view.contrast)]
    parts = ["brightness and contrast of each channel by itself"] if jittered and channels > 1 else []
    parts += [f"without {', '.join(dropped)}"] if dropped else []
    return recipe.with_(**changes), "; ".join(parts) or None


def _replace_fields(spec: ViewSpec, changes: Mapping[str, Any], recipe: str) -> ViewSpec:
    """Return a view with some fields replaced; raise `ValueError` for an unknown field."""
    _check_keys(changes, [field.name for field in dataclasses.fields(ViewSpec)], f"a view of recipe {recipe}")
    return dataclasses.replace(spec, **changes)


def _check_keys(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise `ValueError` for a key that is not known, and suggest the nearest one."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}: it must be a mapping")
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has no key {key!r}: {suggest(key, known)}")


def _published_recipes() -> dict[str, Recipe]:
    plain = ViewSpec()
    weak = ViewSpec(saturation=0.4, blur=0.5)
    # LightlySSL uses torchvision's default interpolation, bilinear.
    simclr = ViewSpec(saturation=0.4, interpolation="bilinear")
    # Its Barlow Twins has BYOL's views.
    bilinear = dataclasses.replace(plain, interpolation="bilinear")
    swav = ViewSpec(
        scale=(0.14, 1.0),
        interpolation="bilinear",
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        blur=0.5,
    )
    swav_local = dataclasses.replace(swav, size=96, scale=(0.05, 0.14))
    self_distillation = tuple(dataclasses.replace(plain, blur=blur, solarize=s) for blur, s in ((1.0, 0.0), (0.1, 0.2)))
    local = dataclasses.replace(plain, blur=0.5)
    small_global = dataclasses.replace(simclr, scale=(0.25, 1.0))
    small_local = dataclasses.replace(small_global, size=16, scale=(0.05, 0.25))
    lejepa = dataclasses.replace(plain, scale=(0.3, 1.0), blur=0.5, solarize=0.2)
    visreg = dataclasses.replace(lejepa, hue=0.05)
    small_lejepa = ViewSpec(
        interpolation="bilinear", brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, solarize=0.2
    )
    # Mirroring and recolouring may change the class of a digit; shifting, stretching and fading do not.
    digits = ViewSpec(
        scale=(0.5, 1.0),
        flip=0.0,
        saturation=0.0,
        hue=0.0,
        grayscale=0.0,
        blur=0.3,
        blur_sigma=(0.1, 1.0),
    )
    # Masked views are only cropped and mirrored.
    cropped = ViewSpec(scale=(0.2, 1.0), jitter=0.0, grayscale=0.0)
    recipes = [
        Recipe("cifar-asym", (plain, dataclasses.replace(plain, solarize=0.2)), "solo-learn, CIFAR, asymmetric"),
        Recipe(
            "cifar-barlowtwins",
            (bilinear, dataclasses.replace(bilinear, solarize=0.2)),
            "LightlySSL, CIFAR-10 benchmark: Barlow Twins",
        ),
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
        Recipe("mae", (cropped,), "He et al. 2022 (MAE), appendix A.1: one view"),
        Recipe(
            "simmim",
            (dataclasses.replace(cropped, scale=(0.67, 1.0), interpolation="bilinear"),),
            "Xie et al. 2022 (SimMIM), section 4.1: one view",
        ),
        Recipe(
            "ijepa",
            (dataclasses.replace(cropped, scale=(0.3, 1.0), flip=0.0, interpolation="bilinear"),),
            "Assran et al. 2023 (I-JEPA), the authors' configurations: one view",
        ),
        Recipe("digits-one", (dataclasses.replace(digits, blur=0.0),), "as digits, one view without blur"),
        Recipe("digits", (digits, digits), "this package: changes of handwriting that preserve the digit"),
        Recipe("multicrop", (swav,) * 2 + (swav_local,) * 6, "Caron et al. 2020 (SwAV): 2×224 and 6×96"),
        Recipe(
            "ibot-multicrop",
            tuple(dataclasses.replace(view, scale=(0.25, 1.0)) for view in self_distillation)
            + (dataclasses.replace(local, size=96, scale=(0.05, 0.25)),) * 10,
            "Zhou et al. 2022 (iBOT, ViT-S/16) and Caron et al. 2021 (DINO): 2×224 and 10×96",
        ),
        Recipe(
            "dinov2-multicrop",
            tuple(dataclasses.replace(view, scale=(0.32, 1.0)) for view in self_distillation)
            + (dataclasses.replace(local, size=98, scale=(0.05, 0.32)),) * 8,
            "Oquab et al. 2023 (DINOv2, ViT-L/14): 2×224 and 8×98",
        ),
        Recipe(
            "cifar-multicrop",
            (small_global,) * 2 + (small_local,) * 6,
            "crop areas of Caron et al. 2021 (DINO, released ViT-S/16), colours of cifar-simclr, local crops of 16 px",
        ),
        Recipe(
            "lejepa",
            (lejepa,) * 2 + (dataclasses.replace(lejepa, size=96, scale=(0.05, 0.3)),) * 6,
            "Balestriero & LeCun 2025 (LeJEPA): 2×224 and 6×96; colours of the authors' repository",
        ),
        Recipe(
            "visreg",
            (visreg,) * 4 + (dataclasses.replace(visreg, size=96, scale=(0.05, 0.3)),) * 6,
            "Wu et al. 2026 (VISReg), the authors' code for ViT-B/16: 4×224 and 6×96",
        ),
        Recipe(
            "cifar-lejepa",
            (small_lejepa,) * 4,
            "four global views of the authors' example for small data (LeJEPA, MINIMAL.md), without blur",
        ),
    ]
    return {recipe.name: recipe for recipe in recipes}


RECIPES: dict[str, Recipe] = _published_recipes()
