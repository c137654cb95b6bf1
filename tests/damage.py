"""Good pictures in every format the server takes, and a seeded mutator that damages them.

for name, data in damaged(per_kind=2): ...    # "jpeg progressive/cut 1", b"..."
"""

import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.pictures import checker, encode, good_formats

Random = np.random.Generator


def noise(width: int = 160, height: int = 100) -> Image.Image:
    """Draw what hardly compresses: long entropy-coded data, with every byte in it."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8))


def good_pictures() -> dict[str, bytes]:
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
        "mpo": _two_pictures(base, busy),
    }


def _two_pictures(first: Image.Image, second: Image.Image) -> bytes:
    """A JPEG with another behind it, as some cameras write."""
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    return buffer.getvalue()


def _cut(data: bytes, random: Random) -> bytes:
    return data[: random.integers(1, len(data))]


def _lose_end(data: bytes, random: Random) -> bytes:
    return data[: -random.integers(1, 40)]


def _lose_start(data: bytes, random: Random) -> bytes:
    return data[random.integers(1, 40) :]


def _zero(data: bytes, random: Random) -> bytes:
    start, end = _range(data, random, 4)
    return data[:start] + bytes(end - start) + data[end:]


def _scramble(data: bytes, random: Random) -> bytes:
    start, end = _range(data, random, 8)
    return data[:start] + random.bytes(end - start) + data[end:]


def _flip_in_header(data: bytes, random: Random) -> bytes:
    return _flip(data, random, 300)


def _flip_anywhere(data: bytes, random: Random) -> bytes:
    return _flip(data, random, len(data))


def _drop(data: bytes, random: Random) -> bytes:
    start, end = _range(data, random, 8)
    return data[:start] + data[end:]


def _repeat(data: bytes, random: Random) -> bytes:
    start, end = _range(data, random, 8)
    return data[:end] + data[start:]


def _insert(data: bytes, random: Random) -> bytes:
    at = random.integers(len(data))
    return data[:at] + random.bytes(random.integers(1, 64)) + data[at:]


KINDS: dict[str, Callable[[bytes, Random], bytes]] = {
    "cut": _cut,
    "end lost": _lose_end,
    "start lost": _lose_start,
    "zeros": _zero,
    "scrambled": _scramble,
    "header bits": _flip_in_header,
    "bits": _flip_anywhere,
    "dropped": _drop,
    "repeated": _repeat,
    "inserted": _insert,
}


def damaged(*, per_kind: int) -> Iterator[tuple[str, bytes]]:
    """Give each good picture damaged in each way, `per_kind` times; the same ones every time."""
    for number, (name, data) in enumerate(good_pictures().items()):
        for which, (kind, damage) in enumerate(KINDS.items()):
            for count in range(per_kind):
                yield f"{name}/{kind} {count}", damage(data, np.random.default_rng([number, which, count]))


def _range(data: bytes, random: Random, part: int) -> tuple[int, int]:
    length = int(random.integers(1, len(data) // part))
    start = int(random.integers(len(data) - length))
    return start, start + length


def _flip(data: bytes, random: Random, below: int) -> bytes:
    flipped = bytearray(data)
    for at in random.integers(min(below, len(data)), size=3):
        flipped[at] ^= 1 << int(random.integers(8))
    return bytes(flipped)


if __name__ == "__main__":  # python -m tests.damage FOLDER
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for label, content in damaged(per_kind=3):
        (folder / f"{re.sub('[^a-z0-9]+', '_', label)}.jpg").write_bytes(content)
