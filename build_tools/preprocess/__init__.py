"""Encoded images to letterboxed tensors: the one definition that serving, evaluation and calibration share.

    Preprocessor((512, 512), fill=(124, 116, 104)).run([jpeg, png])    # [Prepared | BadImage, ...]

The package imports nothing of ours but `pixels`: `build` copies both into a Triton model directory,
where `model.py` imports it as `preprocess`.
"""

from .pipeline import preprocess_pipeline
from .pixels import MAX_BYTES, MAX_PIXELS, BadImage, Decoding, admit
from .preprocessor import Prepared, Preprocessor

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImage",
    "Decoding",
    "Prepared",
    "Preprocessor",
    "admit",
    "preprocess_pipeline",
]
