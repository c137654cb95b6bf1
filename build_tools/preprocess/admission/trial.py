"""Decodes an encoded picture once, for the formats in which nothing else can tell whether it is whole.

    bad = trial(data, kinds=("WEBP", "TIFF"))    # None, or BadImage(message)

Only the GPU profile's admission needs it: behind it Triton's dali backend loses a batch to one corrupt picture.
The CPU profile halves such a batch instead (preprocessor.py). Call it after `admit`, which bounds the pixels.
"""

import io
import warnings
from collections.abc import Collection

from PIL import Image

from .verdict import BadImage, Buffer, kind_of, undecodable

# A flipped bit of a WebP or a TIFF is not told by any checksum, and their decoders give up on most. Of a JPEG,
# libjpeg-turbo makes a picture with a flaw; a PNG has checksums.
UNCHECKED = ("WEBP", "TIFF")


def trial(data: Buffer, *, kinds: Collection[str] = UNCHECKED) -> BadImage | None:
    """Decode the picture if it is of one of `kinds`; return what is wrong with it, or None."""
    kind = kind_of(memoryview(data))
    if kind not in kinds:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and Pillow's own pixel limit
            with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                image.load()
    except Exception:  # a decoder raises nearly anything
        return undecodable(data)
    return None
