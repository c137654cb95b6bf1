"""Stands for `retinaserve.training.images.operators`, which `build` copies to here in a Triton model."""

from retinaserve.training.images.operators import resized

__all__ = ["resized"]
