"""Use an encoder on a data set: write the vectors of its images; find nearest images, duplicates and outliers."""

from .embedding_file import EmbeddingFile, embed_to_file

__all__ = ["EmbeddingFile", "embed_to_file"]
