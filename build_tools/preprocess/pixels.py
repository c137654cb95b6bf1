"""Stands for `retinaserve.training.pixels`, which `build` copies to this place in a Triton model directory."""

from retinaserve.training.pixels import *  # noqa: F403
