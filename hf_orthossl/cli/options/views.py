"""Read the options of `orthossl views`."""

from dataclasses import dataclass, field
from pathlib import Path

from ...data.augment.recipes import RECIPES, get_recipe
from ...data.options import ImageOptions
from ..parsing import parse
from .spectra import FORMATS

DESCRIPTION = (
    "Draw the augmented views that a run would see: a row per image, the image first, then its views, below the "
    "operations that make them. A recipe of your own is a YAML file, which orthossl pretrain --views takes too."
)


@dataclass
class ViewsArguments(ImageOptions):
    """Options of `orthossl views`."""

    _argument_group_name = "views"

    split: str | None = field(
        default=None, metadata={"metavar": "NAME", "help": "split (default: train)", "group": "data"}
    )
    views: str | None = field(default=None, metadata={"metavar": "NAME", "help": "recipe, or a YAML file with one"})
    image_size: int | None = field(
        default=None, metadata={"metavar": "PX", "help": "side of the views (default: as images, up to 224)"}
    )
    images: int = field(default=6, metadata={"help": "images, evenly spread over the split"})
    seed: int = field(default=42, metadata={"help": "seed of the views"})
    output: str = field(
        default="views.png", metadata={"metavar": "FILE", "short": "o", "help": "new file: .png, .pdf or .svg"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views is None:
            raise ValueError(
                f"--views is missing: pass a recipe, such as {', '.join(list(RECIPES)[:3])} (orthossl methods lists "
                "them), or a YAML file"
            )
        get_recipe(self.views)
        for name in ("images", "image_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if Path(self.output).suffix.lower() not in FORMATS:
            raise ValueError(f"output is {self.output!r}: its name must end in {', '.join(FORMATS[:-1])} or .svg")
        if Path(self.output).exists():
            raise ValueError(f"output {self.output} exists: pass the name of a new file, or remove it")


def read(argv: list[str], prog: str = "orthossl views") -> tuple[ViewsArguments]:
    """Return the options.

    Raises:
        ValueError: An option is unknown or cannot be used.
    """
    (args,), _ = parse(prog, DESCRIPTION, [ViewsArguments], argv)
    return (args,)
