"""One line of the doctor's, and how the lines come about.

    for check in examine([python, packages]):
        print(check.status, check.name, check.detail)

A probe that fails by an exception is a line like any other: the rest is still looked at.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from retinaserve.training.errors import UserError


class Status(StrEnum):
    """How it stands: fit for use, usable with a drawback, or not usable."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """What was found, and for all that is not ok what to do about it."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


Probe = Callable[[], Check]


def examine(probes: Iterable[Probe]) -> Iterator[Check]:
    """Run one probe after the other and give its check as soon as it is there."""
    for probe in probes:
        name = probe.__name__.replace("_", " ")
        try:
            yield probe()
        except UserError as error:
            yield Check(name, Status.FAIL, error.message, error.hint)
        except Exception as error:  # whatever a broken installation raises
            reason = " ".join(str(error).split()) or type(error).__name__
            yield Check(name, Status.FAIL, reason[:300], f"{type(error).__name__} while looking at it")
