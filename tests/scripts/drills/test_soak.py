"""What the soak makes of a process's memory; the drill itself runs in test_drills.py."""

import random

import pytest

from retinaserve.scripts.drills.soak import SoakOptions, memory_checks

MINUTES, RATE = 30, 5
SECONDS, REQUESTS = 60 * MINUTES, 60 * MINUTES * RATE
MIB = 2**20


def samples(size: int, *, warm_up: int = 0, leak: float = 0.0, swing: int = 0) -> list[tuple[float, int]]:
    """Bytes every 10 s: `warm_up` comes within the first tenth, `leak` with each request, `swing` by chance."""
    chance = random.Random(1)
    return [
        (at, round(size + warm_up * min(1.0, at / (0.1 * SECONDS)) + leak * RATE * at + chance.uniform(0, swing)))
        for at in range(0, SECONDS, 10)
    ]


@pytest.mark.parametrize(
    ("seen", "held"),
    [
        pytest.param(samples(100 * MIB), (True, True), id="flat"),
        pytest.param(samples(100 * MIB, warm_up=20 * MIB), (True, True), id="grows until it is warm"),
        pytest.param(samples(15 * MIB, swing=MIB // 2), (True, True), id="arenas that swing"),
        pytest.param(samples(200 * MIB, leak=-1024), (True, True), id="shrinks"),
        # 15 minutes lie between the quarters' middles: 4500 requests.
        pytest.param(samples(20 * MIB, leak=1024), (False, False), id="1 kB a request of a small process"),
        pytest.param(samples(400 * MIB, leak=1024), (True, False), id="1 kB a request of a large process"),
        pytest.param(
            samples(400 * MIB, leak=1024, warm_up=20 * MIB, swing=MIB), (True, False), id="1 kB behind all else"
        ),
        pytest.param(samples(15 * MIB, leak=150), (False, True), id="150 bytes a request of a small process"),
    ],
)
def test_a_leak_is_told_from_warm_up(seen: list[tuple[float, int]], held: tuple[bool, bool]) -> None:
    checks = memory_checks("it", seen, seconds=SECONDS, requests=REQUESTS, options=SoakOptions())
    assert tuple(check.held for check in checks) == held


def test_growth_is_counted_in_bytes_a_request() -> None:
    _, growth = memory_checks(
        "it", samples(400 * MIB, leak=1024), seconds=SECONDS, requests=REQUESTS, options=SoakOptions()
    )
    assert growth.figure == pytest.approx(1024, rel=0.01)
    assert growth.at_most == 512


def test_a_short_run_does_not_claim_to_see_small_leaks() -> None:
    _, growth = memory_checks("it", samples(400 * MIB), seconds=SECONDS, requests=200, options=SoakOptions())
    assert growth.at_most == round(512 * 1024 / 100)
