"""Read images from anywhere, and turn batches of them into the views that self-supervised methods compare.

Public names are imported on first use, because recipes are plain data and listing them must not import `datasets` and
torch.
"""

from ..lazy import lazy_names

# The module that defines each public name.
_HOMES = {
    "ImageDataset": "dataset",
    "ImageSource": "sources",
    "PixelRule": "pixels",
    "RECIPES": "augment.recipes",
    "Recipe": "augment.recipes",
    "StreamBatches": "streaming",
    "StreamingImageDataset": "streaming",
    "TooManyUnreadable": "unreadable",
    "UnreadableImage": "opening",
    "UnreadableLog": "unreadable",
    "ViewSpec": "augment.recipes",
    "Views": "augment.views",
    "available_splits": "sources",
    "collate": "dataset",
    "decode_image": "decoding",
    "get_recipe": "augment.recipes",
    "load_source": "sources",
    "without_unreadable": "dataset",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
