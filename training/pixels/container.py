"""Reads the headers of GIF, AVIF and HEIC, whose structure is left to Pillow and its plugin.

    read_gif(memoryview(data))    # Header(640, 480, detour="it is a GIF")

Of several frames the first is meant. What turns the image is in the container, so Pillow says how it lies.
"""

import io
import warnings

from .formats import Damaged, Header, Unsupported
from .orientation import ORIENTATION, VALUES, Orientation

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def read_gif(data: memoryview) -> Header:
    """Return the header of a GIF. Raises Damaged."""
    return _opened(data, "GIF", "it is a GIF")


def read_avif(data: memoryview) -> Header:
    """Return the header of an AVIF. Raises Damaged, or Unsupported where Pillow was built without it."""
    from PIL import features

    if not features.check("avif"):
        raise Unsupported("reading it takes Pillow 11.3 or later")
    return _opened(data, "AVIF", "it is an AVIF")


def read_heic(data: memoryview) -> Header:
    """Return the header of a HEIC. Raises Damaged, or Unsupported without pillow-heif."""
    if not heif():
        raise Unsupported("reading it takes pillow-heif: pip install 'retinaserve[heif]'")
    return _opened(data, "HEIF", "it is a HEIC")


def heif() -> bool:
    """Let Pillow read HEIC, and say whether it can."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _opened(data: memoryview, kind: str, detour: str) -> Header:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and Pillow's own limit of pixels
            with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                image.info.pop("xmp", None)  # see orientation.py
                value = image.getexif().get(ORIENTATION, 1)
                return Header(*image.size, Orientation(value if value in VALUES else 1), detour=detour)
    except Exception:  # a decoder raises nearly anything
        raise Damaged("its header can't be read") from None
