"""Augmentation: recipes as data, and the batched operations that turn images into views."""
