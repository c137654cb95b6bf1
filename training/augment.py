"""What training does to a picture on its way into the letterbox: flips, zooms, shifts, and changes of colour.

    view = random_view("basic", rng)
    view = View()            # nothing at all: exactly what is served

A view is drawn first and applied later, to the pixels and to the boxes.
"""

from dataclasses import dataclass

import numpy as np

MODES = ("none", "flip", "basic")
ZOOM = (0.7, 1.35)
BRIGHTNESS, CONTRAST = 0.2, 0.2


@dataclass(frozen=True)
class View:
    """How to look at a picture: all values relative, so that one view fits any size."""

    flip: bool = False
    zoom: float = 1.0  # of the letterbox's scale
    # Where the picture lies in the canvas: 0 at the top left as served, 1 at the bottom right; a picture larger
    # than the canvas is cut accordingly.
    across: float = 0.0
    down: float = 0.0
    gain: float = 1.0
    offset: float = 0.0  # added after the gain, of 255


def random_view(mode: str, rng: np.random.Generator) -> View:
    """Draw a view: "none" leaves the picture alone, "flip" mirrors half of them, "basic" does everything."""
    if mode == "none":
        return View()
    flip = bool(rng.random() < 0.5)
    if mode == "flip":
        return View(flip)
    gain = rng.uniform(1 - CONTRAST, 1 + CONTRAST)
    return View(
        flip,
        zoom=float(np.exp(rng.uniform(*np.log(ZOOM)))),
        across=float(rng.random()),
        down=float(rng.random()),
        gain=gain,
        # Around middle grey, so that contrast and brightness are independent.
        offset=(1 - gain) / 2 + rng.uniform(-BRIGHTNESS, BRIGHTNESS),
    )
