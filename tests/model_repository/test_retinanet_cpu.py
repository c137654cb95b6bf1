"""How the served engine shares the cores, and what becomes of an answer that can't be sent. Without a server."""

import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retinaserve.training.spec import OUTPUTS
from tests.model_repository.served import Sender, load_retinanet

SIZE = (128, 192)  # the toy detector's


@pytest.fixture(params=[1, 2, 3])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, toy_onnx: Path) -> Iterator[Any]:
    """The engine with one, two and three threads."""
    made = load_retinanet(monkeypatch).Engine(toy_onnx, threads=request.param, precision="f32")
    yield made
    made.close()


def pictures(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    chance = np.random.default_rng(0)
    letterbox = np.array([[*SIZE, *SIZE]], np.float32)
    return [(chance.integers(0, 256, (1, 3, *SIZE), np.uint8), letterbox) for _ in range(count)]


def collect(engine: Any, given: list[Any]) -> dict[int, Any]:
    """Run, wait for all answers, and return them by number."""
    found: dict[int, Any] = {}
    complete = threading.Event()

    def done(number: int, result: Any) -> None:
        assert number not in found
        found[number] = result
        if len(found) == len(given):
            complete.set()

    engine.run(given, done)
    assert not given or complete.wait(30)
    return found


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_each_picture_is_answered_once_and_as_alone(engine: Any, count: int) -> None:
    given = pictures(count)
    found = collect(engine, given)
    assert sorted(found) == list(range(count))
    for number, picture in enumerate(given):
        alone = collect(engine, [picture])[0]
        assert found[number].keys() == alone.keys() == OUTPUTS.keys()
        for name, values in alone.items():
            np.testing.assert_allclose(found[number][name], values, rtol=0, atol=1e-3)


def test_a_picture_that_fails_fails_alone(engine: Any) -> None:
    good = pictures(3)
    found = collect(engine, [good[0], (good[1][0][:, :, :7], good[1][1]), good[2]])
    assert [isinstance(found[number], Exception) for number in range(3)] == [False, True, False]
    assert len(collect(engine, good)) == 3, "and leaves its core free"


@pytest.mark.parametrize("sooner", [True, False])
def test_the_last_of_many_waits_for_all_cores_where_that_is_sooner(
    engine: Any, monkeypatch: pytest.MonkeyPatch, sooner: bool
) -> None:
    if engine._cores == 1:
        pytest.skip("nobody shares a single core")
    apart, release = [], threading.Event()
    monkeypatch.setattr(
        engine, "_apart", lambda *task, do=engine._apart: (apart.append(release.is_set()), do(*task))
    )
    at_work = engine._free.get()

    def ends() -> None:
        release.set()
        engine._free.put(at_work)

    threading.Timer(0.1, ends).start()
    engine._by_all, engine._by_one, engine._began = (0.0 if sooner else 9.0), 1.0, time.perf_counter()
    assert len(collect(engine, pictures(1))) == 1
    assert apart == [False] * (not sooner)
    assert release.wait(30)


def test_it_returns_when_a_core_is_free(engine: Any) -> None:
    if engine._cores == 1:
        pytest.skip("a single core is free when all is done")
    held, release, answered = threading.Event(), threading.Event(), []

    def done(number: int, result: Any) -> None:
        answered.append(number)
        if number == 0:
            held.set()
            release.wait(30)

    runner = threading.Thread(target=engine.run, args=(pictures(2), done))
    runner.start()
    assert held.wait(30)
    runner.join(30)
    assert not runner.is_alive(), "an answer on its way holds nothing up"
    release.set()
    engine.close()
    assert sorted(answered) == [0, 1]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model with stand-ins for what only a stub process has: tensors, responses and the log."""
    loaded = load_retinanet(monkeypatch)
    stub = SimpleNamespace(
        Tensor=lambda name, array: (name, array.shape),
        TritonError=str,
        InferenceResponse=lambda tensors=(), error=None: error or dict(tensors),
        Logger=SimpleNamespace(log_error=lambda text: None),
    )
    monkeypatch.setattr(loaded, "pb_utils", stub)
    return loaded


def test_a_request_of_two_pictures_is_answered_when_both_are_done(module: Any) -> None:
    sender = Sender()
    answer = module.Answer(sender, 2)
    row = {"num_detections": np.zeros((1, 1)), "boxes": np.zeros((1, 100, 4))}
    answer.put(1, row)
    assert not sender.sent
    answer.put(0, row)
    (response,) = sender.sent
    assert response["boxes"] == (2, 100, 4) and sender.ended


def test_a_failure_is_answered_too(module: Any) -> None:
    sender = Sender()
    module.Answer(sender, 1).put(0, ValueError("no such shape"))
    assert sender.sent == ["retinanet failed: no such shape"] and sender.ended


def test_an_answer_without_room_stops_nothing(module: Any) -> None:
    module.Answer(Sender(full=True), 1).put(0, {"boxes": np.zeros((1, 1))})


def test_a_picture_that_cannot_be_handed_on_fails_alone(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, numbers = engine._workers.submit, iter(range(10))

    def full(*task: Any) -> Any:
        if next(numbers) % 5 in (1, 2):
            raise RuntimeError("can't start new thread")
        return submit(*task)

    monkeypatch.setattr(engine._workers, "submit", full)
    handed = engine._cores > 1
    for _ in range(2):  # no core is lost
        found = collect(engine, pictures(5))
        assert [isinstance(found[n], RuntimeError) for n in range(5)] == [False, handed, handed, False, False]


def test_what_pictures_lie_in_is_kept_until_they_are_answered(module: Any) -> None:
    class Request:
        """What Triton lends memory by."""

    request, sender = Request(), Sender()
    gone = weakref.ref(request)
    answer = module.Answer(sender, 2, request)
    del request
    answer.put(0, {"boxes": np.zeros((1, 1))})
    assert gone() is not None
    answer.put(1, {"boxes": np.zeros((1, 1))})
    del answer
    assert gone() is None
