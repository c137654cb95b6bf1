"""Good images in every format the server takes, and all of them damaged in every way.

for name, data in damaged(per_kind=2): ...    # "jpeg progressive/cut 1", b"..."
"""

import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.images import checker, encode, good_formats


def noise(width: int = 160, height: int = 100) -> Image.Image:
    """Draw what hardly compresses: long entropy-coded data, with every byte in it."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8))


def good_images() -> dict[str, bytes]:
    """Return `good_formats` and what else those formats can be."""
    base, busy = checker(320, 200), noise()
    grey = Image.fromarray(np.linspace(0, 65535, 320)[None].repeat(200, 0).astype(np.uint16))
    return good_formats() | {
        "jpeg grey": encode(base.convert("L")),
        "jpeg restarts": encode(busy, quality=90, restart_marker_blocks=4),
        "jpeg turned": encode(base, orientation=6),
        "jpeg noise": encode(busy, quality=60),
        "jpeg noise progressive": encode(busy, quality=60, progressive=True),
        "jpeg own tables": encode(busy, quality=60, optimize=True),
        "png 16 bits": encode(grey, "PNG"),
        "png 1 bit": encode(base.convert("1"), "PNG"),
        "png grey with alpha": encode(base.convert("LA"), "PNG"),
        "webp lossy": encode(base, "WEBP"),
        "webp lossy alpha": encode(base.convert("RGBA"), "WEBP"),
        "tiff jpeg": encode(base, "TIFF", compression="jpeg"),
        "tiff deflate": encode(base, "TIFF", compression="tiff_adobe_deflate"),
        "tiff packbits": encode(base, "TIFF", compression="packbits"),
        "bmp palette": encode(base.quantize(64), "BMP"),
        "bmp alpha": encode(base.convert("RGBA"), "BMP"),
        "mpo": _two_images(base, busy),
    }


def _two_images(first: Image.Image, second: Image.Image) -> bytes:
    """A JPEG with another behind it, as some cameras write."""
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    return buffer.getvalue()


def damaged(*, per_kind: int) -> Iterator[tuple[str, bytes]]:
    """Give each good image damaged in each way, `per_kind` times; the same ones every time."""
    for number, (name, data) in enumerate(good_images().items()):
        for which, (kind, damage) in enumerate(MUTATORS.items()):
            for count in range(per_kind):
                yield f"{name}/{kind} {count}", damage(data, np.random.default_rng([number, which, count]))


FEW = 40  # bytes: what a transfer may lose at one end
EXTREMES = b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\1\0\0\0"


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(1, max(2, len(data)))]


def _zero(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng, 4)
    return data[:start] + bytes(end - start) + data[end:]


def _noise_inside(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng, 8)
    return data[:start] + rng.bytes(end - start) + data[end:]


def _drop(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng, 8)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng, 8)
    return data[:end] + data[start:]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    start = rng.integers(len(data))
    return data[:start] + rng.bytes(rng.integers(1, 64)) + data[start:]


def _extreme(data: bytes, rng: np.random.Generator) -> bytes:
    """Write 0, 1 or the largest number over four bytes of the first 300: lengths, sizes and offsets live there."""
    start = int(rng.integers(0, min(300, len(data))))
    return data[:start] + EXTREMES[rng.integers(5)] + data[start + 4 :]


def _flip(data: bytes, rng: np.random.Generator, below: int | None = None) -> bytes:
    changed = bytearray(data)
    for position in rng.integers(min(below or len(data), len(data)), size=3):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _span(data: bytes, rng: np.random.Generator, part: int) -> tuple[int, int]:
    """Choose a piece of at most a `part`-th of the bytes; of very few bytes, one."""
    length = int(rng.integers(1, max(2, len(data) // part)))
    start = int(rng.integers(max(1, len(data) - length)))
    return start, start + length


# In this order: the damage is seeded by the place of its mutator.
MUTATORS: Mapping[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "cut": _cut,
    "the end lost": lambda data, rng: data[: -rng.integers(1, FEW)],
    "the start lost": lambda data, rng: data[rng.integers(1, FEW) :],
    "zeros inside": _zero,
    "noise inside": _noise_inside,
    "header flipped": lambda data, rng: _flip(data, rng, 300),
    "bits flipped": _flip,
    "a piece dropped": _drop,
    "a piece repeated": _repeat,
    "a piece inserted": _insert,
    "extreme number": _extreme,
    "appended to": lambda data, rng: data + rng.bytes(int(rng.integers(1, 2000))),
}


if __name__ == "__main__":  # python -m tests.damage FOLDER
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for label, content in damaged(per_kind=3):
        (folder / f"{re.sub('[^a-z0-9]+', '_', label)}.jpg").write_bytes(content)
