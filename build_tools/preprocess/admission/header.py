"""What the readers of the formats give and raise."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Header:
    """The size of a picture as it is stored: before its EXIF orientation is applied."""

    width: int
    height: int


class Damaged(Exception):
    """The structure is broken, in words that end the sentence "the image is damaged: ..."."""


class Truncated(Damaged):
    """The structure goes on behind the end of the data."""


def need(data: memoryview, end: int) -> None:
    """Raise Truncated unless the data reaches as far as `end`."""
    if end > len(data):
        raise Truncated("its end is missing")
