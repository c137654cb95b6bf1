"""Random colours and two-coloured textures for the synthetic data set.

    ground = random_colour(rng)
    texture(rng, 120, 160, (ground, random_colour(rng, near=ground)))     # (120, 160, 3) uint8

Everything is drawn from the generator it is given, so a seed fixes every pixel.
"""

import colorsys
import math

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]  # (h, w) in 0..1, the share of the second colour
Rng = np.random.Generator

KINDS = ("plain", "gradient", "stripes", "checks", "dots", "clouds")
TONE = 30  # of 255, how far the second colour of a texture is lighter or darker than the first
CONTRAST = 60  # of 255, in brightness, between a shape and its ground: still there in greyscale


def random_colour(rng: Rng, *, near: Colour | None = None) -> Colour:
    """Return any colour, or one that differs from `near` about as two tones of one material do."""
    if near is not None:
        shift = rng.uniform(-TONE, TONE) + rng.integers(-TONE // 3, TONE // 3 + 1, 3)
        return _colour(np.clip(np.add(near, shift), 0, 255))
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.15, 1))
    return _colour(np.multiply(rgb, 255))


def contrasting(rng: Rng, ground: Colour) -> Colour:
    """Return a colour clearly lighter or darker than `ground`."""
    while True:
        colour = random_colour(rng)
        if abs(_brightness(colour) - _brightness(ground)) >= CONTRAST:
            return colour


def texture(rng: Rng, height: int, width: int, colours: tuple[Colour, Colour]) -> Pixels:
    """Return a (height, width, 3) image of one random kind, between two colours."""
    kind = str(rng.choice(KINDS))
    weights = _weights(kind, rng, height, width)[..., None]
    first, second = (np.asarray(colour, np.float32) for colour in colours)
    return (first + (second - first) * weights).astype(np.uint8)


def _weights(kind: str, rng: Rng, height: int, width: int) -> Weights:
    if kind == "plain":
        return np.zeros((height, width), np.float32)
    if kind == "clouds":
        return _clouds(rng, height, width)
    # Coordinates along and across a random direction.
    angle = rng.uniform(0, 2 * math.pi)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None, :]
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    if kind == "gradient":
        low, high = float(along.min()), float(along.max())
        return ((along - low) / max(high - low, 1)).astype(np.float32)
    period = rng.uniform(5, max(6, max(height, width) / 6))
    if kind == "stripes":
        return (along % period < period / 2).astype(np.float32)
    if kind == "checks":
        return ((along % period < period / 2) ^ (across % period < period / 2)).astype(np.float32)
    from_centre = np.hypot(along % period - period / 2, across % period - period / 2)
    return (from_centre < period / 3).astype(np.float32)


def _clouds(rng: Rng, height: int, width: int) -> Weights:
    """Add smooth noise of three sizes: random grids, interpolated."""
    total = np.zeros((height, width), np.float32)
    for cells, share in ((3, 0.5), (8, 0.3), (20, 0.2)):
        grid = rng.random((cells + 1, cells + 1), np.float32)
        rows = _interpolation(height, cells)
        columns = _interpolation(width, cells)
        total += share * (rows @ grid @ columns.T)
    return total


def _interpolation(length: int, cells: int) -> Weights:
    """Return the (length, cells + 1) matrix that stretches cells + 1 values linearly over `length` pixels."""
    place = np.linspace(0, cells, length, dtype=np.float32)[:, None]
    weights: Weights = np.maximum(0, 1 - np.abs(place - np.arange(cells + 1, dtype=np.float32)))
    return weights


def _brightness(colour: Colour) -> float:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _colour(values: npt.NDArray[np.float64]) -> Colour:
    red, green, blue = (round(float(value)) for value in values)
    return red, green, blue
