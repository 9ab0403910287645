"""Load any timm or Hugging Face vision backbone behind one interface, and export it for use without this package."""

from .encoder import Encoder
from .export import export_encoder
from .loading import load_encoder
from .module_encoder import ModuleEncoder
from .programs import ProgramExport, export_program
from .small_images import resnet18_cifar, resnet50_cifar, wide_resnet28_2

# Architectures that this package registers with timm. Without it they load from the code in an exported folder.
OWN_BACKBONES = (*(entry.__name__ for entry in (resnet18_cifar, resnet50_cifar, wide_resnet28_2)), "linear")

__all__ = [
    "OWN_BACKBONES",
    "Encoder",
    "ModuleEncoder",
    "ProgramExport",
    "export_encoder",
    "export_program",
    "load_encoder",
    "resnet18_cifar",
    "resnet50_cifar",
    "wide_resnet28_2",
]
