"""What encoded images mean, said once for training, serving, drawing and checks: which are taken, and as what.

    admit(data)    # None, or BadImage(message): headers, chunks and ends, nothing is decoded
    Jpeg.read(data).decode(eighths(0.2))    # pixels, at the scale that they are seen at

The package imports nothing of ours outside itself: `build` copies it whole into Triton model directories.
"""

from .scaled import FULL, Decoding, Jpeg, Scaled, eighths
from .verdict import MAX_BYTES, MAX_PIXELS, BadImage, admit, trial, undecodable

__all__ = [
    "FULL",
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImage",
    "Decoding",
    "Jpeg",
    "Scaled",
    "admit",
    "eighths",
    "trial",
    "undecodable",
]
