"""How the served `preprocess` answers where there is no room, for an answer or a request. Without a server."""

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.model_repository.served import Sender, load_preprocess

PREPARED = SimpleNamespace(image=np.zeros((3, 8, 8), np.uint8), letterbox=np.zeros(4, np.float32))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model with stand-ins for what only a stub process has: tensors, responses and the log."""
    loaded = load_preprocess(monkeypatch)
    stub = SimpleNamespace(
        TritonError=lambda message, code=None: message,
        InferenceResponse=lambda tensors=(), error=None: error or dict(tensors),
        Logger=SimpleNamespace(log_error=lambda text: None),
        get_input_tensor_by_name=lambda request, name: request.rows,
    )
    monkeypatch.setattr(loaded, "pb_utils", stub)
    monkeypatch.setattr(loaded, "to_tensor", lambda name, values: (name, values.shape))
    return loaded


@pytest.mark.parametrize("scarce", [False, True])
def test_an_answer_goes_out_once(module: Any, scarce: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCARCE", 2**80 if scarce else 0)
    sender = Sender()
    module.send(sender, "the answer")
    assert sender.sent == ["the answer"] and sender.ended


def test_a_request_whose_answer_finds_no_room_is_ended(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would wait forever: no other response is taken."""
    monkeypatch.setattr(module, "SCARCE", 2**80)
    sender = Sender(full=True)
    module.send(sender, "the answer")
    assert sender.sent == [] and sender.ended


def test_a_request_that_cannot_be_read_fails_alone(module: Any) -> None:
    """An exception of `execute` ends the server where other requests of the batch are answered already."""

    class Request:
        def __init__(self, rows: Any) -> None:
            self.rows, self.sender, self.answered = rows, Sender(), threading.Event()

        def get_response_sender(self) -> Any:
            return self

        def send(self, response: Any = None, flags: int = 0) -> None:
            self.sender.send(response, flags)
            self.answered.set()

    class Unreadable:
        def __dlpack__(self, **_: Any) -> Any:
            raise MemoryError("no room for a copy")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    model = module.TritonPythonModel()
    model._workers = module.ThreadPoolExecutor(1)
    model._free = module.SimpleQueue()
    model._free.put(SimpleNamespace(run=lambda images: [PREPARED]))
    good = np.zeros((1, 8), np.uint8)
    requests = [Request(good), Request(Unreadable()), Request(good)]
    model.execute(requests)
    assert all(request.answered.wait(10) for request in requests)
    assert [request.sender.sent[0] for request in requests] == [
        {"image": (1, 3, 8, 8), "letterbox": (1, 4)},
        "preprocess failed: no room for a copy",
        {"image": (1, 3, 8, 8), "letterbox": (1, 4)},
    ]
    model._workers.shutdown()


def test_a_request_is_kept_as_long_as_its_memory_is_read(module: Any) -> None:
    """Triton takes the memory of a request's tensors back when the request goes."""
    left, read = threading.Event(), []

    class Request:
        rows = np.zeros((1, 8), np.uint8)

        def get_response_sender(self) -> Any:
            return Sender()

    def run(images: Any) -> list[Any]:
        read.append(left.wait(10) and requested() is not None)
        return [PREPARED]

    model = module.TritonPythonModel()
    model._workers = module.ThreadPoolExecutor(1)
    model._free = module.SimpleQueue()
    model._free.put(SimpleNamespace(run=run))
    model._free.put(None)  # a free core, so that `execute` returns
    requests = [Request()]
    requested = weakref.ref(requests[0])
    model.execute(requests)
    requests.clear()
    left.set()
    model._workers.shutdown()
    assert read == [True] and requested() is None
