"""Pictures as the world sends them: every format, the odd ones, bombs, and damaged by the thousand.

    for sample in corpus(10_000, seed=0):       # Sample(name="png palette, bits flipped", data=...)
        ...

Deterministic: the same count and seed give the same bytes with the same Pillow. What a sample should be answered
is not known, except for those of `specials`; a server has to refuse it with the reason, or find a picture in it.
"""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image

from retinaserve.scripts.drills.mutators import MUTATORS

BOMB_SIDE = 30_000


@dataclass(frozen=True)
class Sample:
    """Encoded bytes; `expected` where it is known what has to come of them."""

    name: str
    data: bytes
    expected: Literal["ok", "invalid", "either"] = "either"


def corpus(count: int, *, seed: int = 0) -> Iterator[Sample]:
    """Yield the good, the special, and mutated ones of both until there are `count`."""
    good = list(formats())
    samples = [*good, *specials()]
    yield from samples[:count]
    rng = np.random.default_rng(seed)
    names = list(MUTATORS)
    for _ in range(count - len(samples)):
        base = good[rng.integers(len(good))]
        data, done = base.data, []
        for _ in range(rng.integers(1, 4)):
            name = names[rng.integers(len(names))]
            data = MUTATORS[name](data, rng) if data else data
            done.append(name)
        yield Sample(f"{base.name}, {', '.join(done)}", data)


def formats() -> Iterator[Sample]:
    """Yield a good picture of every format and layout that is taken, and GIFs, which are not."""
    base = picture(160, 120)
    grey16 = Image.fromarray(np.linspace(0, 65535, 160 * 120).reshape(120, 160).astype(np.uint16))
    images: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "jpeg": (base, "JPEG", {}),
        "jpeg progressive": (base, "JPEG", {"progressive": True}),
        "jpeg restart markers": (base, "JPEG", {"restart_marker_blocks": 4}),
        "jpeg grey": (base.convert("L"), "JPEG", {}),
        "jpeg cmyk": (base.convert("CMYK"), "JPEG", {}),
        "png": (base, "PNG", {}),
        "png alpha": (base.convert("RGBA"), "PNG", {}),
        "png palette": (base.quantize(32), "PNG", {}),
        "png 16 bit": (grey16, "PNG", {}),
        "png 1 bit": (base.convert("1"), "PNG", {}),
        "webp": (base, "WEBP", {}),
        "webp lossless": (base, "WEBP", {"lossless": True}),
        "bmp": (base, "BMP", {}),
        "tiff": (base, "TIFF", {}),
        "tiff lzw": (base, "TIFF", {"compression": "tiff_lzw"}),
    }
    for name, (image, kind, options) in images.items():
        yield Sample(name, encode(image, kind, **options), "ok")
    yield Sample("jpeg ycck", ycck(encode(base.convert("CMYK"), "JPEG")), "ok")
    frames: dict[str, object] = {"save_all": True, "append_images": [picture(160, 120, seed=1)], "duration": 40}
    yield Sample("webp animated", encode(base, "WEBP", **frames))
    yield Sample("gif", encode(base.quantize(32), "GIF"), "invalid")
    yield Sample("gif animated", encode(base.quantize(32), "GIF", **frames), "invalid")


def specials() -> Iterator[Sample]:
    """Yield extreme shapes, decompression bombs, and what is no picture."""
    for width, height in ((1, 1), (1, 10_000), (10_000, 1)):
        for kind in ("JPEG", "PNG"):
            yield Sample(f"{kind} {width} x {height}", encode(picture(width, height), kind), "ok")
    yield Sample("png bomb", png_bomb(), "invalid")
    yield Sample("jpeg bomb", jpeg_bomb(encode(picture(160, 120), "JPEG")), "invalid")
    yield Sample("bmp bomb", bmp_bomb(encode(picture(160, 120), "BMP")), "invalid")
    strangers = {
        "nothing": b"",
        "one byte": b"\xff",
        "zeros": bytes(5000),
        "text": b"Dear server, please find my picture attached.\n",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "pdf": b"%PDF-1.7\n" + bytes(200),
        "zip": b"PK\x03\x04" + bytes(200),
        "heic": b"\0\0\0\x18ftypheic" + bytes(200),
        "noise": np.random.default_rng(0).bytes(5000),
    }
    for name, data in strangers.items():
        yield Sample(name, data, "invalid")


def picture(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Draw coloured cells of 20 pixels."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (-(-height // 20), -(-width // 20), 3)).astype(np.uint8)
    return Image.fromarray(np.kron(cells, np.ones((20, 20, 1), np.uint8))[:height, :width])


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the picture as a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ycck(cmyk: bytes) -> bytes:
    """Call a CMYK JPEG's four channels YCCK: the colour transform in Adobe's marker is 2 instead of 0."""
    transform = cmyk.index(b"Adobe") + 11
    return cmyk[:transform] + b"\x02" + cmyk[transform + 1 :]


@cache
def png_bomb(side: int = BOMB_SIDE) -> bytes:
    """Return a true PNG of `side` x `side` black pixels in about 100 kB."""
    row = bytes(1 + -(-side // 8))  # the filter byte, and one bit a pixel
    squeeze = zlib.compressobj(9)
    pixels = b"".join(squeeze.compress(row * 1000) for _ in range(side // 1000)) + squeeze.flush()
    head = side.to_bytes(4, "big") * 2 + b"\x01\0\0\0\0"
    chunks = ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        for name, data in chunks
    )


def jpeg_bomb(jpeg: bytes, side: int = BOMB_SIDE) -> bytes:
    """Let a JPEG's frame header claim `side` x `side` pixels."""
    frame = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:frame] + side.to_bytes(2, "big") * 2 + jpeg[frame + 4 :]


def bmp_bomb(bmp: bytes, side: int = BOMB_SIDE) -> bytes:
    """Let a BMP's header claim `side` x `side` pixels."""
    return bmp[:18] + side.to_bytes(4, "little") * 2 + bmp[26:]
