"""Ways to damage a file, each at random places.

    MUTATORS["bits flipped"](jpeg, np.random.default_rng(0))

They know nothing of what the bytes mean, take whatever is not empty, and may give back nothing at all.
"""

from collections.abc import Callable, Mapping

import numpy as np

__all__ = ["MUTATORS"]

Mutator = Callable[[bytes, np.random.Generator], bytes]
FEW = 40  # bytes: what a transfer may lose at one end


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(1, max(2, len(data)))]


def _lose_end(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: -rng.integers(1, FEW)]


def _lose_start(data: bytes, rng: np.random.Generator) -> bytes:
    return data[rng.integers(1, FEW) :]


def _zero(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng, 4)
    return data[:start] + bytes(end - start) + data[end:]


def _noise(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng, 8)
    return data[:start] + rng.bytes(end - start) + data[end:]


def _flip_header(data: bytes, rng: np.random.Generator) -> bytes:
    return _flipped(data, rng, 300)


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    return _flipped(data, rng, len(data))


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
    value = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\1\0\0\0")[rng.integers(5)]
    return data[:start] + value + data[start + 4 :]


def _append(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 2000)))


def _flipped(data: bytes, rng: np.random.Generator, below: int) -> bytes:
    changed = bytearray(data)
    for position in rng.integers(min(below, len(data)), size=3):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _span(data: bytes, rng: np.random.Generator, part: int) -> tuple[int, int]:
    """Choose a piece of at most a `part`-th of the bytes; of very few bytes, one."""
    length = int(rng.integers(1, max(2, len(data) // part)))
    start = int(rng.integers(max(1, len(data) - length)))
    return start, start + length


# In this order: a test's damage to a picture is seeded by the place of its mutator.
MUTATORS: Mapping[str, Mutator] = {
    "cut": _cut,
    "the end lost": _lose_end,
    "the start lost": _lose_start,
    "zeros inside": _zero,
    "noise inside": _noise,
    "header flipped": _flip_header,
    "bits flipped": _flip,
    "a piece dropped": _drop,
    "a piece repeated": _repeat,
    "a piece inserted": _insert,
    "extreme number": _extreme,
    "appended to": _append,
}
