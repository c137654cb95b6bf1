"""What encoded images mean, said once for training, serving, drawing and checks: which are taken, and as what.

    admit(data)    # None, or BadImage(message): headers, chunks and ends, nothing is decoded

The package imports nothing of ours outside itself: `build` copies it whole into Triton model directories.
"""

from .verdict import MAX_BYTES, MAX_PIXELS, BadImage, admit, trial, undecodable

__all__ = ["MAX_BYTES", "MAX_PIXELS", "BadImage", "admit", "trial", "undecodable"]
