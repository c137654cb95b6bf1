"""Which encoded images may go on to the decoder, judged before it.

    admit(data)    # None, or BadImage(message): headers, chunks and ends, nothing is decoded

The package imports nothing of ours outside itself: `build` copies it whole into the Triton model directory
`admission`.
"""

from .verdict import MAX_BYTES, MAX_PIXELS, BadImage, admit, trial, undecodable

__all__ = ["MAX_BYTES", "MAX_PIXELS", "BadImage", "admit", "trial", "undecodable"]
