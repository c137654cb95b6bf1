"""The arithmetic of loads and verdicts; what they do to a server is in test_drills.py."""

import pytest

from retinaserve.scripts.drills.drill import Check, Result
from retinaserve.scripts.drills.load import Request, milliseconds, percentile, rate_of


def requests(ends: list[float], *, last_start: float) -> list[Request]:
    """Answers at these times, of requests sent from 0 to `last_start`."""
    return [Request(0.0, end, "ok") for end in ends] + [Request(last_start, 1.0, "unavailable")]


@pytest.mark.parametrize(
    ("ends", "rate"),
    [
        ([], 0.0),
        ([1.0], 0.0),
        ([0.1 * n for n in range(1, 100)], 10.0),
        # Batches of four a second: a count between two moments would say anything from 3.6 to 4.4.
        ([float(second) for second in range(1, 11) for _ in range(4)], 4.0),
    ],
    ids=["none", "one", "even", "batches"],
)
def test_rate(ends: list[float], rate: float) -> None:
    assert rate_of(requests(ends, last_start=10.5)) == pytest.approx(rate, rel=0.02)


def test_what_is_answered_after_the_last_request_does_not_count() -> None:
    even = [0.1 * n for n in range(1, 100)]
    assert rate_of(requests([*even, 50.0, 60.0], last_start=10.0)) == pytest.approx(10.0, rel=0.02)
    assert rate_of(requests(even, last_start=10.0), skip=5) == pytest.approx(10.0, rel=0.02)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, 0.0), ([3.0], 0.99, 3.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 3.0), (list(range(100)), 0.99, 99)],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_milliseconds() -> None:
    assert milliseconds([Request(0, 0.002, "ok")]) == {"p50": 2.0, "p95": 2.0, "p99": 2.0}


@pytest.mark.parametrize(
    ("check", "held"),
    [
        (Check("a", 1.0, at_least=1.0), True),
        (Check("a", 0.9, at_least=1.0), False),
        (Check("a", 2.1, at_most=2), False),
        (Check("a", 1.5, at_least=1, at_most=2), True),
        (Check("a", float("nan"), at_most=2), False),
    ],
)
def test_checks(check: Check, held: bool) -> None:
    result = Result("x", [check, Check("b", 0, at_most=0)])
    assert check.held is held and result.passed is held
    assert result.table().splitlines()[0].startswith("ok" if held else "FAIL")
    assert result.to_dict()["checks"][0]["held"] is held
