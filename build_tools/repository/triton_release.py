"""Which Triton a repository is for, and which fields of a config that one does not know.

    release = TritonRelease.parse("26.05")        # or "2.69"
    release.unknown_fields(config)                # ["ensemble_scheduling.max_inflight_requests (2.63, 25.11)"]

A server refuses a config with a field it does not know, and the model disappears; so `build` asks first. The table
holds what came after 2.51, the oldest server that repositories are built for.
"""

import re
from dataclasses import dataclass
from typing import Any, Self

from retinaserve.training.errors import Exit, UserError

# Triton's version by container, from NVIDIA's release notes; a month in which it counted on by one is left out.
ANCHORS = {(24, 10): (2, 51), (25, 6): (2, 59), (25, 7): (2, 59), (25, 8): (2, 60)}
OLDEST = (2, 51)
# Message and field: the first version that knows it.
SINCE = {("ModelEnsembling", "max_inflight_requests"): ((2, 63), "25.11")}


@dataclass(frozen=True, order=True)
class TritonRelease:
    """A version of Triton, such as 2.69."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a version of Triton (2.69, 2.69.0) or of its container (26.05, 26.05-py3)."""
        match = re.fullmatch(r"v?(\d{1,2})\.(\d{1,2})(?:\.\d+|-.*)?", text.strip())
        if not match:
            raise UserError(
                f"{text!r} is no version of Triton",
                "a version like 2.69, or a container's like 26.05, is expected",
                code=Exit.USAGE,
            )
        version = int(match[1]), int(match[2])
        if version[0] > 2:
            version = _by_container(*version)
        if version < OLDEST:
            raise UserError(
                f"Triton {text} is older than what repositories are built for",
                f"{OLDEST[0]}.{OLDEST[1]} (24.10) or later is expected",
                code=Exit.USAGE,
            )
        return cls(*version)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    def unknown_fields(self, config: Any) -> list[str]:
        """Return the fields that are set in a config and that this release does not know, with what does."""
        return [
            f"{path} (known from Triton {since[0]}.{since[1]}, container {container}, on)"
            for path, since, container in _recent_fields(config, "")
            if (self.major, self.minor) < since
        ]


def _by_container(year: int, month: int) -> tuple[int, int]:
    """Containers come monthly, and Triton counts on by one each, with the exceptions in ANCHORS."""
    if not 1 <= month <= 12:
        raise UserError(
            f"{year}.{month:02} is no version of Triton's container", "a year and a month", code=Exit.USAGE
        )
    anchor = max((known for known in ANCHORS if known <= (year, month)), default=min(ANCHORS))
    months = (year - anchor[0]) * 12 + month - anchor[1]
    major, minor = ANCHORS[anchor]
    return major, minor + months


def _recent_fields(message: Any, path: str) -> list[tuple[str, tuple[int, int], str]]:
    found = []
    for field, value in message.ListFields():
        here = f"{path}{field.name}"
        if (message.DESCRIPTOR.name, field.name) in SINCE:
            found.append((here, *SINCE[message.DESCRIPTOR.name, field.name]))
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for item in (value,) if hasattr(value, "ListFields") else value:
            found += _recent_fields(item, f"{here}.")
    return found


EMBEDDED = TritonRelease(2, 51)  # in the nvidia-pytriton wheel
PRODUCTION = TritonRelease(2, 72)  # container 26.08, the default of `build --profile gpu`
