"""What a drill found: each promise with its figure and its bound, and whether it held.

result = Result("overload", [Check("goodput / peak", 0.97, at_least=0.95)], figures={...})
result.passed, result.table(), result.to_dict()
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from retinaserve.scripts.drills.load import Request, good
from retinaserve.training.machine import machine


@dataclass(frozen=True)
class Check:
    """One promise: a figure that has to be at least, or at most, something; `note` is for the reader."""

    promise: str
    figure: float
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def held(self) -> bool:
        """Whether the figure is within its bounds."""
        low = self.at_least is None or self.figure >= self.at_least
        return low and (self.at_most is None or self.figure <= self.at_most)

    @property
    def bound(self) -> str:
        """The bounds in words."""
        parts = [f">= {self.at_least:g}"] if self.at_least is not None else []
        return " and ".join(parts + ([f"<= {self.at_most:g}"] if self.at_most is not None else []))


def none_failed(promise: str, requests: Sequence[Request]) -> Check:
    """Return the check that every request was answered with detections."""
    return Check(promise, len(requests) - len(good(requests)), at_most=0, note=f"of {len(requests)}")


@dataclass(frozen=True)
class Result:
    """All checks of a drill, and the figures behind them."""

    drill: str
    checks: Sequence[Check]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every promise held."""
        return all(check.held for check in self.checks)

    def table(self) -> str:
        """Return a line a promise."""
        width = max(len(check.promise) for check in self.checks)
        return "\n".join(
            f"{'ok  ' if check.held else 'FAIL'}  {check.promise:<{width}}  {check.figure:>10.4g}  "
            f"{check.bound:<12}  {check.note}".rstrip()
            for check in self.checks
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        checks = [
            {
                "promise": check.promise,
                "figure": round(check.figure, 4),
                "bound": check.bound,
                "held": check.held,
                **({"note": check.note} if check.note else {}),
            }
            for check in self.checks
        ]
        return {
            "drill": self.drill,
            "passed": self.passed,
            "checks": checks,
            "figures": self.figures,
            "machine": machine(),
        }
