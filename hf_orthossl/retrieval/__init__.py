"""Use an encoder on a data set: write the vectors of its images; find nearest images, duplicates and outliers."""

from .duplicates import Group, find_duplicates
from .embedding_file import EmbeddingFile, embed_to_file
from .neighbours import Neighbours, find_neighbours, nearest_others
from .sheets import draw_duplicates, draw_neighbours, draw_outliers

__all__ = [
    "EmbeddingFile",
    "Group",
    "Neighbours",
    "draw_duplicates",
    "draw_neighbours",
    "draw_outliers",
    "embed_to_file",
    "find_duplicates",
    "find_neighbours",
    "nearest_others",
]
