"""Walks the segments of a JPEG: tables, frame and scan headers, and the markers between several scans.

    read_jpeg(memoryview(data))    # Header(640, 480)

It refuses what makes libjpeg-turbo give up; the rules are those of its jdmarker.c, jdhuff.c and jdinput.c. It
does not decode: of damaged coefficients libjpeg-turbo makes an image with a flaw.
"""

import re
import struct
from dataclasses import replace

from .formats import Damaged, Header, Truncated, Unsupported, need
from .orientation import PREFIX, Record, exif_record, settle

SOI, EOI, SOS, DQT, DHT, DRI = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, ARITHMETIC, BOTH = 0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA
FRAMES = frozenset({BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, ARITHMETIC, BOTH})  # both: progressive, arithmetic
DETOURS = {LOSSLESS: "it is lossless", ARITHMETIC: "it is arithmetic-coded", BOTH: "it is arithmetic-coded"}
CONDITIONING = 0xCC  # of arithmetic coding
OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - FRAMES - {DHT, CONDITIONING}
# Application data, comment, number of lines.
IGNORED = frozenset({*range(0xE0, 0xF0), 0xFE, 0xDC, CONDITIONING})
APP1, APP14 = 0xE1, 0xEE
XMP, ADOBE = b"http://ns.adobe.com/xap/1.0/\0", b"Adobe"
ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
TABLES = 4  # tables of a kind that a file may define
STANDARD_TABLES = {(kind, number) for kind in (0, 1) for number in (0, 1)}
TAIL = 1024  # where to look for the end mark first; padding behind it is allowed
END_MARK = bytes((0xFF, EOI))
MOST_BLOCKS = 10  # of a minimum coded unit, by the standard

# In entropy-coded data 0xFF is followed by 0, a restart, or more fill; anything else is the next segment.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class _Walk:
    """The state that segments leave behind for those after them."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.header: Header | None = None
        self.records: list[Record] = []
        self.xmp: list[bytes] = []
        self.doubt = ""
        self.adobe = self.progressive = self.lossless = self.arithmetic = False
        self.components: dict[int, tuple[int, int, int]] = {}  # by id: h and v sampling, quantisation table
        self.quantisation: set[int] = set()
        self.huffman: set[tuple[int, int]] = set()  # class (0 for DC, 1 for AC) and number
        self.scans = 0

    def application(self, start: int, end: int, marker: int) -> None:
        body = self.data[start:end]
        if marker == APP1 and body[: len(PREFIX)] == PREFIX:
            self.records.append(exif_record(body[len(PREFIX) :]))
            if self.header:
                self.doubt = "its EXIF stands behind its frame header"
        elif marker == APP1 and body[: len(XMP)] == XMP:
            self.xmp.append(bytes(body))
        elif marker == APP14 and body[: len(ADOBE)] == ADOBE:
            self.adobe = True

    def whole(self) -> Header:
        """Return the header, with what the segments before the image say."""
        assert self.header
        plain_inks = len(self.components) == 4 and not self.adobe
        return replace(
            self.header,
            orientation=settle(self.records, xmp=self.xmp, doubt=self.doubt),
            inverted=plain_inks,
            detour=self.header.detour or ("its inks are not Adobe's" if plain_inks else ""),
        )

    def frame(self, start: int, end: int, marker: int) -> None:
        if self.header:
            raise Damaged("it has two frame headers")
        if end - start < 6:
            raise Damaged("its frame header is too short")
        precision, height, width, count = struct.unpack_from(">BHHB", self.data, start)
        if end - start != 6 + 3 * count:
            raise Damaged("its frame header is broken")
        if count not in (1, 3, 4):
            raise Unsupported(f"it has {count} components; 1, 3 and 4 are read")
        if precision != 8:
            raise Unsupported(f"it has {precision} bits a sample, not 8")
        if not width or not height:
            raise Damaged(f"its frame header says {width} x {height} pixels")
        for at in range(start + 6, end, 3):
            number, sampling, table = self.data[at], self.data[at + 1], self.data[at + 2]
            if number in self.components:
                raise Damaged("two of its components have the same number")
            self.components[number] = (sampling >> 4, sampling & 15, table)
        across = max(h for h, _, _ in self.components.values())
        down = max(v for _, v, _ in self.components.values())
        for h, v, _ in self.components.values():
            if not (1 <= h <= 4 and 1 <= v <= 4) or across % h or down % v:
                raise Damaged("its frame header has impossible sampling factors")
        self.progressive = marker in (PROGRESSIVE, BOTH)
        self.lossless, self.arithmetic = marker == LOSSLESS, marker in (ARITHMETIC, BOTH)
        if not self.progressive:
            # libjpeg-turbo brings the standard tables for streams that leave them out, as Motion JPEG does.
            self.huffman |= STANDARD_TABLES
        self.header = Header(width, height, detour=DETOURS.get(marker, ""))

    def quantisation_tables(self, start: int, end: int) -> None:
        while start < end:
            kind = self.data[start]
            length = 129 if kind >> 4 else 65
            if kind & 15 >= TABLES or start + length > end:
                raise Damaged("its quantisation tables are broken")
            self.quantisation.add(kind & 15)
            start += length

    def huffman_tables(self, start: int, end: int) -> None:
        while start < end:
            kind, counts = self.data[start], bytes(self.data[start + 1 : start + 17])
            symbols = sum(counts)
            if start + 17 + symbols > end or kind >> 4 > 1 or kind & 15 >= TABLES or symbols > 256:
                raise Damaged("its Huffman tables are broken")
            code = 0
            for length, count in enumerate(counts, 1):
                code += count
                if count and code > 1 << length:
                    raise Damaged("a Huffman table of it has more codes than there are")
                code <<= 1
            start += 17
            if not kind >> 4 and symbols and max(self.data[start : start + symbols]) > 15:
                raise Damaged("a Huffman table of it has impossible codes")
            self.huffman.add((kind >> 4, kind & 15))
            start += symbols

    def scan(self, start: int, end: int) -> None:
        """Check a scan header."""
        if not self.header:
            raise Damaged("it has a scan before its frame header")
        count = self.data[start] if end > start else 0
        if not 1 <= count <= len(self.components) or end - start != 4 + 2 * count:
            raise Damaged("a scan header of it is broken")
        first, last, approximation = self.data[end - 3 : end]
        if self.progressive:
            high, low = approximation >> 4, approximation & 15
            order = first == last == 0 if first == 0 else first <= last < 64 and count == 1
            if not order or low > 13 or (high and low != high - 1):
                raise Damaged("a scan header of it has an impossible progression")
        blocks, seen = 0, set()
        for at in range(start + 1, end - 3, 2):
            number, tables = self.data[at], self.data[at + 1]
            if number not in self.components or number in seen:
                raise Damaged("a scan header of it names components that it does not have")
            seen.add(number)
            h, v, quantisation = self.components[number]
            blocks += h * v
            if quantisation not in self.quantisation and not self.lossless:
                raise Damaged("it lacks a quantisation table")
            if self.arithmetic:
                continue
            direct = (first == 0 or self.lossless) and not (self.progressive and approximation >> 4)
            alternating = not self.lossless and (first > 0 or not self.progressive)
            if (direct and (0, tables >> 4) not in self.huffman) or (
                alternating and (1, tables & 15) not in self.huffman
            ):
                raise Damaged("it lacks a Huffman table")
        if count > 1 and blocks > MOST_BLOCKS:
            raise Damaged("a scan of it has more blocks a unit than the standard allows")
        self.scans += 1

    def is_last(self, start: int) -> bool:
        """Say whether the scan whose header begins at `start` is the whole image."""
        return not self.progressive and self.data[start] == len(self.components)


def read_jpeg(data: memoryview) -> Header:
    """Return the header of a JPEG. Raises Damaged, or Truncated where its end mark is missing."""
    walk = _Walk(data)
    at = 2
    while True:
        need(data, at + 2)
        if data[at] != 0xFF:
            raise Damaged("a segment of it does not begin where the one before ends")
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == EOI:
            if not walk.scans or walk.header is None:
                raise Damaged("it ends before its image begins")
            return walk.whole()
        at += 2
        if marker in ALONE:
            continue
        need(data, at + 2)
        end = at + (data[at] << 8 | data[at + 1])
        need(data, end)
        at += 2
        if end < at or marker == 0:
            raise Damaged("a segment of it has an impossible length")
        if marker in OTHER_FRAMES:
            raise Unsupported("it is hierarchical, or both lossless and arithmetic-coded")
        if marker in FRAMES:
            walk.frame(at, end, marker)
        elif marker == DQT:
            walk.quantisation_tables(at, end)
        elif marker == DHT:
            walk.huffman_tables(at, end)
        elif marker == DRI:
            if end - at != 2:
                raise Damaged("its restart interval is broken")
        elif marker == SOS:
            walk.scan(at, end)
            if walk.is_last(at) and bytes(data[max(end, len(data) - TAIL) :]).rfind(END_MARK) >= 0:
                # Of a damaged middle libjpeg-turbo makes an image with a flaw: there is no need to look at it.
                return walk.whole()
            found = MARKER.search(data, end)
            if not found:
                raise Truncated("its end is missing")
            end = found.start()
        elif marker in (APP1, APP14):
            walk.application(at, end, marker)
        elif marker not in IGNORED:
            raise Damaged(f"it has a segment of the unknown kind {marker:#x}")
        at = end
