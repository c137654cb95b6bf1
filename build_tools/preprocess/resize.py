"""Stands for `retinaserve.training.resize`, which `build` copies to this place in a Triton model directory."""

from retinaserve.training.resize import RESIZES, PixelType, Resize

__all__ = ["RESIZES", "PixelType", "Resize"]
