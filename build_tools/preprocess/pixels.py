"""Stands for `retinaserve.training.pixels`, which `build` copies to this place in a Triton model directory."""

from retinaserve.training.pixels import (
    MAX_BYTES,
    MAX_PIXELS,
    BadImage,
    Bmp,
    Buffer,
    Decoding,
    Jpeg,
    Scaled,
    admit,
    undecodable,
)

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImage",
    "Bmp",
    "Buffer",
    "Decoding",
    "Jpeg",
    "Scaled",
    "admit",
    "undecodable",
]
