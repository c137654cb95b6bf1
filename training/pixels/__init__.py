"""What encoded images mean, said once for training, serving, drawing and checks: which are taken, and as what.

    admit(data)     # None, or BadImage(message): headers, chunks and ends, nothing is decoded
    gate(data)      # what any decoder may be given: the data, or a PPM of its pixels
    decode(data)    # (h, w, 3) uint8 RGB, upright
    Jpeg.read(data).decode(eighths(0.2))    # pixels, at the scale that they are seen at

The package imports nothing of ours outside itself: `build` copies it whole into Triton model directories.
"""

from .decode import decode, gate, samples
from .formats import Header
from .scaled import FULL, SCALES, SMALL, Bmp, Decoding, Jpeg, Scaled, eighths
from .verdict import KINDS, MAX_BYTES, MAX_PIXELS, BadImage, Buffer, admit, inspect, trial, undecodable

__all__ = [
    "FULL",
    "KINDS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "SCALES",
    "SMALL",
    "BadImage",
    "Bmp",
    "Buffer",
    "Decoding",
    "Header",
    "Jpeg",
    "Scaled",
    "admit",
    "decode",
    "eighths",
    "gate",
    "inspect",
    "samples",
    "trial",
    "undecodable",
]
