"""Which encoded pictures may go on to the decoder, judged before it.

    admit(data)    # None, or BadImage(message): headers, chunks and ends, nothing is decoded

Each format has a reader that walks its segments, chunks or directories and never looks at what only a decoder
understands. The package imports nothing of ours outside itself, and nothing but the standard library unless asked
for trial.py: `build` copies it whole into the Triton model directory `admission`.
"""

from .verdict import MAX_BYTES, MAX_PIXELS, BadImage, admit, undecodable

__all__ = ["MAX_BYTES", "MAX_PIXELS", "BadImage", "admit", "undecodable"]
