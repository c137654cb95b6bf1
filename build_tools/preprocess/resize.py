"""Stands for `retinaserve.training.images.resize`, which `build` copies to this place in a Triton model folder."""

from retinaserve.training.images.resize import RESIZES, PixelType, Resize

__all__ = ["RESIZES", "PixelType", "Resize"]
