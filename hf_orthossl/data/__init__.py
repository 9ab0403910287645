"""Images from anywhere, and the batched views that self-supervised methods compare.

Public names are imported when first used: the recipes are plain data, and listing them must not cost an import of
`datasets` and torch.
"""

from ..lazy import lazy_names

# Public name → module that defines it.
_HOMES = {
    "ImageDataset": "dataset",
    "ImageSource": "sources",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "StreamBatches": "stream_batches",
    "StreamingImageDataset": "streaming",
    "TooManyUnreadable": "unreadable",
    "UnreadableImage": "decoding",
    "UnreadableLog": "unreadable",
    "ViewSpec": "recipes",
    "Views": "views",
    "available_splits": "sources",
    "collate": "collate",
    "decode_image": "decoding",
    "get_recipe": "recipes",
    "load_source": "sources",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
