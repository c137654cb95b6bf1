import asyncio
from pathlib import Path

import pytest

from retinaserve.scripts.drills.load import Request
from retinaserve.scripts.lab.capacity import (
    CapacityOptions,
    Measured,
    Trial,
    beside,
    highest,
    measure,
    mix,
    trial_of,
)
from tests.images import checker, encode


@pytest.mark.parametrize(
    ("limit", "start"),
    [(10.0, 8.0), (10.0, 40.0), (10.0, 1.0), (10.0, 10.0)],
    ids=["near", "above", "below", "at"],
)
def test_the_search_ends_just_below_the_limit(limit: float, start: float) -> None:
    tried = []

    async def attempt(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = asyncio.run(highest(attempt, start=start, resolution=0.05))
    assert limit / 1.05 <= found <= limit and len(tried) < 20


def test_a_service_that_bears_nothing_has_no_capacity() -> None:
    async def attempt(rate: float) -> bool:
        return False

    assert asyncio.run(highest(attempt, start=5, resolution=0.05)) == 0


@pytest.mark.parametrize(
    ("trial", "holds"),
    [
        (Trial(5, 0, 0, 0, 0), False),
        (Trial(5, 100, 0, 10, 500), True),
        (Trial(5, 100, 0, 10, 501), False),
        (Trial(5, 99, 1, 10, 20), False),
    ],
    ids=["nothing answered", "in time", "late", "one refused"],
)
def test_when_a_rate_holds(trial: Trial, holds: bool) -> None:
    assert trial.holds(500) is holds


def test_one_bad_load_of_three_does_not_decide() -> None:
    def load(milliseconds: float, status: str = "ok") -> list[Request]:
        return [Request(0.0, milliseconds / 1000, status)] * 10

    assert trial_of(7, [load(90), load(2000), load(110)]) == Trial(7, 30, 0, 110, 110)
    assert trial_of(7, [load(90), load(5, "unavailable"), load(110)]) == Trial(7, 20, 10, 90, 90)


def test_services_are_compared_with_the_hand_written_one() -> None:
    def run(service: str, capacity: float) -> Measured:
        return Measured(service, 1.0, 1.0, capacity, (), {}, {})

    grpc, web, nothing = run("triton-grpc", 12), run("web", 8), run("web", 0)
    assert beside([grpc, web]) == {"triton-grpc": 1.5}
    assert beside([grpc, nothing]) == beside([grpc]) == {}


def test_the_mix_tells_pictures_apart() -> None:
    one, two = mix([encode(checker(64, 48)), encode(checker(30, 20), "PNG")])
    assert one["width_height"] == (64, 48) and two["width_height"] == (30, 20)
    assert len({one["sha256"], two["sha256"]}) == 2


@pytest.mark.server
def test_triton_and_the_web_service_are_measured(toy_onnx: Path, repository: Path) -> None:
    images = [encode(checker(320, 200))]
    options = CapacityOptions(bound_ms=300, seconds=0.4, resolution=1.0, warm_up=0.2, pause=0.1)
    triton, web = measure(toy_onnx, repository, images, options, services=["triton-grpc", "web"])
    assert (triton.service, web.service) == ("triton-grpc", "web")
    for service in (triton, web):
        held = [trial.rate for trial in service.trials if trial.holds(300)]
        assert service.capacity == pytest.approx(max(held), abs=0.01) and service.peak > 1
        assert any(not trial.holds(300) for trial in service.trials)
    assert set(triton.memory_mb) == {"tritonserver", "preprocess 1", "preprocess 1 (2)", "retinanet 1"}
    assert len(web.memory_mb) == 1 and min(web.memory_mb.values()) > 20
