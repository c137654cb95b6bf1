"""Pixels that are known before they are encoded, and what images say of their orientation.

Case("PNG grey 16", data, expected=scaled(grey(), 65535))
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

WIDTH, HEIGHT = 61, 43  # odd, so that strides, padding and halved chroma show
LOSSY, EXACT = 4.0, 0.0  # mean difference from the pixels before encoding
Array = npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Case:
    """A file and what the network should see of it; without pixels, the words of its refusal."""

    name: str
    data: bytes
    expected: npt.NDArray[np.uint8] | None
    lossy: float = EXACT
    refusal: str = ""
    detour: str = ""  # words of the reason why DALI may not decode it

    @property
    def kind(self) -> str:
        return self.name.split()[0]


def colours(seed: int = 0) -> Array:
    """Draw smooth colours (h, w, 3) over the whole range of 16 bits, different in every corner."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    y, x = y / (HEIGHT - 1), x / (WIDTH - 1)
    wave = 0.1 * np.sin(5 * x + 3 * y + seed)
    planes = (0.15 + 0.7 * x + wave, 0.9 - 0.8 * y + wave, 0.2 + 0.6 * x * y - wave)
    planes = [(plane - plane.min()) / (plane.max() - plane.min()) for plane in planes]
    return np.stack([np.round(65535 * plane) for plane in planes], axis=-1).astype(np.uint16)


def grey() -> Array:
    """Draw smooth greys (h, w) over the whole range of 16 bits."""
    return colours()[..., 0]


def scaled(values: npt.NDArray[np.generic], top: int) -> npt.NDArray[np.uint8]:
    """Return values of 0..top as RGB bytes: 255 * value / top, rounded half up."""
    eight = np.floor(255.0 * values.astype(np.float64) / top + 0.5).astype(np.uint8)
    return np.stack([eight] * 3, axis=-1) if eight.ndim == 2 else eight[..., :3]


def bits(values: Array, depth: int) -> npt.NDArray[np.uint16]:
    """Return 16-bit values at another depth, rounded down."""
    return (values >> (16 - depth)).astype(np.uint16)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def exif(orientation: int, order: str = "<", *, kind: int = 3, again: int = 0, thumbnail: int = 0) -> bytes:
    """Write the smallest EXIF: an orientation of a type, another one behind it, one of the thumbnail."""
    entries = [(0x0112, kind, 1, orientation)] + [(0x0112, 3, 1, again)] * bool(again)

    def directory(entries: Sequence[tuple[int, int, int, int]], following: int) -> bytes:
        body = struct.pack(f"{order}H", len(entries))
        for tag, kind, count, value in entries:
            cell = struct.pack(f"{order}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", value).ljust(4, b"\0")
            body += struct.pack(f"{order}HHI", tag, kind, count) + cell
        return body + struct.pack(f"{order}I", following)

    end = 8 + 2 + 12 * len(entries) + 4
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    first = directory(entries, end if thumbnail else 0)
    return head + first + (directory([(0x0112, 3, 1, thumbnail)], 0) if thumbnail else b"")


def xmp(orientation: int) -> bytes:
    """Write XMP that states an orientation."""
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>'
        b"</rdf:RDF></x:xmpmeta>" % orientation
    )


def pillow(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@cache
def eight_bits() -> npt.NDArray[np.uint8]:
    return scaled(colours(), 65535)


def cmyk() -> tuple[Image.Image, npt.NDArray[np.uint8]]:
    """Return a CMYK image and its RGB by the plain formula, (255 - ink) * (255 - black) / 255."""
    black = 40
    ink = np.clip((255 - eight_bits().astype(int)) - black, 0, 255)
    rgb = np.round((255 - ink) * (255 - black) / 255).astype(np.uint8)
    four = np.dstack((ink, np.full((HEIGHT, WIDTH), black))).astype(np.uint8)
    return Image.frombytes("CMYK", (WIDTH, HEIGHT), four.tobytes()), rgb


def packed(values: Array, depth: int, order: str = ">") -> bytes:
    """Return rows of samples (h, n) as PNG and TIFF pack them, each row from a byte's start."""
    if depth == 16:
        return values.astype(f"{order}u2").tobytes()
    if depth == 8:
        return values.astype(np.uint8).tobytes()
    planes = ((values[..., None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
    return np.packbits(planes.reshape(len(values), -1), axis=1).tobytes()
