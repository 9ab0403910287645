"""Images from anywhere, and the batched views that self-supervised methods compare.

Public names are imported when first used: the recipes are plain data, and listing them must not cost an import of
`datasets` and torch.
"""

from ..lazy import lazy_names

# Public name → module that defines it.
_HOMES = {
    "ImageDataset": "dataset",
    "ImageSource": "sources",
    "RECIPES": "augment.recipes",
    "Recipe": "augment.recipes",
    "StreamBatches": "streaming",
    "StreamingImageDataset": "streaming",
    "TooManyUnreadable": "unreadable",
    "UnreadableImage": "decoding",
    "UnreadableLog": "unreadable",
    "ViewSpec": "augment.recipes",
    "Views": "augment.views",
    "available_splits": "sources",
    "collate": "dataset",
    "decode_image": "decoding",
    "get_recipe": "augment.recipes",
    "load_source": "sources",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
