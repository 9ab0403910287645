"""List what is swept: every module of timm, and every type of transformers that has a network for images."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel

from .tiny_configs import tiny_config


@dataclass(frozen=True)
class Subject:
    """One backbone of the sweep.

    Attributes:
        library (`str`): `"timm"` or `"transformers"`.
        name (`str`): A module of `timm.models`, or a `model_type` of transformers.
    """

    library: str
    name: str

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    def prepare(self, folder: Path) -> tuple[str, str]:
        """Return the name for `load_encoder`, and that of the architecture; may write a model to a folder.

        Args:
            folder (`Path`): An empty folder, for the configuration and the weights of a tiny model of transformers.
        """
        if self.library == "timm":
            architecture = smallest_architecture(self.name)
            return architecture, architecture
        config = tiny_config(self.name)
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
        with torch.no_grad():  # what starts at zero would hide mistakes
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        return str(folder), type(model).__name__


def all_subjects() -> list[Subject]:
    """Return all backbones of the sweep, in alphabetical order of each library."""
    modules = [module for module in timm.list_modules() if f"timm.models.{module}" in sys.modules]
    return [
        *(Subject("timm", module) for module in sorted(modules)),
        *(Subject("transformers", model_type) for model_type in sorted(_vision_types())),
    ]


def smallest_architecture(module: str) -> str:
    """Return the architecture of a module of timm that has the fewest parameters, counted on the meta device."""
    sizes: dict[str, int] = {}
    with torch.device("meta"):
        for name in timm.list_models(module=module):
            try:
                network = timm.create_model(name, num_classes=0)
            except RuntimeError:  # looks at numbers while it is built, which the meta device does not have
                continue
            sizes[name] = sum(parameter.numel() for parameter in network.parameters())
    return min(sizes, key=lambda name: (sizes[name], name)) if sizes else timm.list_models(module=module)[0]


def _vision_types() -> Iterator[str]:
    """Yield the types whose model takes images first, or has a tower for images beside one for text (CLIP)."""
    for model_type, kind in CONFIG_MAPPING.items():
        try:
            architecture = MODEL_MAPPING.get(kind, None)
            if isinstance(architecture, tuple):
                architecture = architecture[0]
            takes_images = getattr(architecture, "main_input_name", "") == "pixel_values"
            towers = all(hasattr(architecture, f"get_{tower}_features") for tower in ("image", "text"))
        except (ImportError, ValueError):  # its model needs a package that is missing, or does not exist
            continue
        if takes_images or towers:
            yield model_type
