"""TIFFs of every layout: written here byte by byte, so that the case chooses planes, samples, order and coding.

tiff(values, 16, RGB, planar=True)
"""

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.training.pixels.known import (
    EXACT,
    HEIGHT,
    LOSSY,
    UPRIGHT,
    WIDTH,
    Case,
    bits,
    cmyk,
    colours,
    eight_bits,
    grey,
    packed,
    pillow,
    scaled,
)

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, LAB = 0, 1, 2, 3, 5, 8


def tiff(
    values: npt.NDArray[np.generic],
    depth: int,
    colour: int,
    *,
    sample_format: int = UNSIGNED,
    planar: bool = False,
    extra: Sequence[int] = (),
    order: str = "<",
    orientation: int = 0,
    compression: int = 1,
    predictor: bool = False,
    tile: int = 0,
    rows: int = 16,
    big: bool = False,
    more: Sequence[tuple[int, int, bytes, int]] = (),
) -> bytes:
    """Write a TIFF of samples (h, w) or (h, w, n). `more` are further entries: tag, type, bytes, count."""
    layers = values[..., None] if values.ndim == 2 else values
    height, width, samples = layers.shape
    planes = [layers[..., n : n + 1] for n in range(samples)] if planar else [layers]
    pieces = []
    for plane in planes:
        if tile:
            grown = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            parts = [
                grown[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)
            ]
        else:
            parts = [plane[y : y + rows] for y in range(0, height, rows)]
        for part in parts:
            if predictor:
                part = np.concatenate((part[:, :1], np.diff(part, axis=1)), axis=1)
            flat = part.reshape(len(part), -1)
            raw = (
                packed(flat, depth, order)
                if flat.dtype == np.uint16
                else flat.astype(flat.dtype.newbyteorder(order)).tobytes()
            )
            pieces.append(zlib.compress(raw) if compression == 8 else raw)
    wide = "Q" if big else "I"
    head = 16 if big else 8
    at, places = head, []
    for piece in pieces:
        places.append(at)
        at += len(piece) + len(piece) % 2

    def numbers(kind: int, items: Sequence[int]) -> tuple[int, bytes, int]:
        code = {3: "H", 4: "I", 16: "Q"}[kind]
        return kind, struct.pack(f"{order}{len(items)}{code}", *items), len(items)

    long = 16 if big else 4
    entries = {
        256: numbers(4, [width]),
        257: numbers(4, [height]),
        258: numbers(3, [depth] * samples),
        259: numbers(3, [compression]),
        262: numbers(3, [colour]),
        277: numbers(3, [samples]),
        284: numbers(3, [2 if planar else 1]),
        339: numbers(3, [sample_format] * samples),
    }
    lengths = [len(piece) for piece in pieces]
    if tile:
        entries |= {322: numbers(4, [tile]), 323: numbers(4, [tile])}
        entries |= {324: numbers(long, places), 325: numbers(4, lengths)}
    else:
        entries |= {278: numbers(4, [rows]), 273: numbers(long, places), 279: numbers(4, lengths)}
    if orientation:
        entries[274] = numbers(3, [orientation])
    if extra:
        entries[338] = numbers(3, list(extra))
    if predictor:
        entries[317] = numbers(3, [2])
    table = sorted([(tag, *entry) for tag, entry in entries.items()] + list(more), key=lambda entry: entry[0])
    room = 8 if big else 4
    size = (8 if big else 2) + len(table) * (20 if big else 12) + room
    directory, tail = b"", b""
    for tag, kind, body, count in table:
        directory += struct.pack(f"{order}HH{wide}", tag, kind, count)
        if len(body) <= room:
            directory += body.ljust(room, b"\0")
        else:
            directory += struct.pack(f"{order}{wide}", at + size + len(tail))
            tail += body + b"\0" * (len(body) % 2)
    mark = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    mark += struct.pack(f"{order}HHQ", 8, 0, at) if big else struct.pack(f"{order}I", at)
    body = b"".join(piece + b"\0" * (len(piece) % 2) for piece in pieces)
    count = struct.pack(f"{order}{'Q' if big else 'H'}", len(table))
    return mark + body + count + directory + struct.pack(f"{order}{wide}", 0) + tail


def tiffs() -> Iterator[Case]:
    rgb, one = colours(), grey()
    for depth in (8, 16):
        top = 2**depth - 1
        layouts = {
            "grey": (bits(one, depth), BLACK_IS_ZERO, (), scaled(bits(one, depth), top)),
            "grey white is zero": (top - bits(one, depth), WHITE_IS_ZERO, (), scaled(bits(one, depth), top)),
            "rgb": (bits(rgb, depth), RGB, (), scaled(bits(rgb, depth), top)),
        }
        for extra, kind in ((0, "unspecified"), (1, "associated"), (2, "alpha")):
            full = np.full((HEIGHT, WIDTH, 1), top, np.uint16)
            four = np.concatenate((bits(rgb, depth), full), axis=2)
            layouts[f"rgb {kind}"] = (four, RGB, (extra,), scaled(bits(rgb, depth), top))
            two = np.concatenate((bits(one, depth)[..., None], full), axis=2)
            layouts[f"grey {kind}"] = (two, BLACK_IS_ZERO, (extra,), scaled(bits(one, depth), top))
        inks, ink_rgb = cmyk()
        four = np.asarray(inks).astype(np.uint16) * (257 if depth == 16 else 1)
        layouts["cmyk"] = (four, CMYK, (), ink_rgb)
        for name, (values, colour, extra, expected) in layouts.items():
            for order in "<>":
                for planar in (False, True):
                    if planar and values.ndim == 2:
                        continue
                    for tile in (0, 16):
                        for compression in (1, 8):
                            words = f"TIFF {name} {depth}{order}{' planar' if planar else ''}"
                            words += f"{' tiles' if tile else ''}{' deflate' if compression == 8 else ''}"
                            yield Case(
                                words,
                                tiff(
                                    values,
                                    depth,
                                    colour,
                                    extra=extra,
                                    order=order,
                                    planar=planar,
                                    tile=tile,
                                    compression=compression,
                                ),
                                expected,
                                1.0 if colour == CMYK else EXACT,
                            )
        yield Case(
            f"TIFF rgb {depth} big", tiff(bits(rgb, depth), depth, RGB, big=True), scaled(bits(rgb, depth), top)
        )
        yield Case(
            f"TIFF rgb {depth} predictor",
            tiff(
                bits(rgb, depth).astype(np.uint8 if depth == 8 else np.uint16),
                depth,
                RGB,
                compression=8,
                predictor=True,
            ),
            scaled(bits(rgb, depth), top),
        )
        for orientation, upright in UPRIGHT.items():
            for name, values, colour in (("grey", one, BLACK_IS_ZERO), ("rgb", rgb, RGB)):
                for order in "<>":
                    yield Case(
                        f"TIFF {name} {depth} turned {orientation}{order}",
                        tiff(bits(values, depth), depth, colour, order=order, orientation=orientation),
                        upright(scaled(bits(values, depth), top)),
                    )
    for depth in (1, 2, 4, 12):
        for order in "<>":
            for compression in (1, 8):
                values = bits(one, depth)
                yield Case(
                    f"TIFF grey {depth}{order}{' deflate' if compression == 8 else ''}",
                    tiff(values, depth, BLACK_IS_ZERO, order=order, compression=compression),
                    scaled(values, 2**depth - 1),
                )
    for depth in (4, 8):
        table = (np.arange(3 * 2**depth) * 5003 % 65536).astype(np.uint16)
        index = bits(one, depth)
        expected = (table.reshape(3, -1).T[index] >> 8).astype(np.uint8)  # of palettes the upper 8 bits count
        entry = (320, 3, table.astype("<u2").tobytes(), len(table))
        yield Case(f"TIFF palette {depth}", tiff(index, depth, PALETTE, more=[entry]), expected)
    numbers = {
        "int8": (one >> 9).astype(np.int8),
        "int16": (one >> 1).astype(np.int16),
        "uint32": one.astype(np.uint32) << 16,
        "int32": one.astype(np.int32),
        "float16": (one / 65535).astype(np.float16),
        "float32": (one / 65535).astype(np.float32),
        "float64": one / 65535,
    }
    for name, values in numbers.items():
        kind = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[values.dtype.kind]
        for order in "<>":
            data = tiff(values, 8 * values.itemsize, BLACK_IS_ZERO, sample_format=kind, order=order)
            yield Case(f"TIFF grey {name}{order}", data, None)
    lab = np.dstack((bits(one, 8), np.full((HEIGHT, WIDTH), 10), np.full((HEIGHT, WIDTH), 250))).astype(np.uint16)
    yield Case("TIFF lab 8", tiff(lab, 8, LAB), None)
    for name, compression in {
        "lzw": "tiff_lzw",
        "packbits": "packbits",
        "deflate": "tiff_adobe_deflate",
        "zstd": "zstd",
        "lzma": "lzma",
        "webp": "webp",
    }.items():
        try:
            yield Case(
                f"TIFF rgb 8 {name}",
                pillow(Image.fromarray(eight_bits()), "TIFF", compression=compression),
                eight_bits(),
                LOSSY if name == "webp" else 0,
            )
        except (OSError, ValueError):
            continue
    yield Case(
        "TIFF rgb 8 jpeg",
        pillow(Image.fromarray(eight_bits()), "TIFF", compression="jpeg", quality=95),
        eight_bits(),
        LOSSY,
    )
    sheet = Image.fromarray((bits(one, 1) * 255).astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    for name in ("group3", "group4", "tiff_ccitt"):
        yield Case(f"TIFF bilevel {name}", pillow(sheet, "TIFF", compression=name), scaled(bits(one, 1), 1))
