"""The drills on the real server, shortened; bounds are generous, because a test machine is a busy one.

The overload needs a server whose speed is known: its engine step sleeps 20 ms an image, all else is the real one.
"""

import asyncio
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from retinaserve.eval.client.transport import Endpoint, Transport
from retinaserve.scripts.drills.drill import Result, fixture
from retinaserve.scripts.drills.faults import killed, never_loads, scarce_room
from retinaserve.scripts.drills.load import Request, send
from retinaserve.scripts.drills.overload import OverloadOptions, overload
from retinaserve.scripts.drills.reload import ReloadOptions, reload
from retinaserve.scripts.drills.scarce import run_scarce
from retinaserve.scripts.drills.soak import SoakOptions, soak
from tests.damage import damaged, good_images
from tests.images import bad_images, checker, encode

pytestmark = pytest.mark.server
IMAGES = [encode(checker(200 + 20 * n, 150, seed=n, cell=15 + n)) for n in range(4)]
# Bytes a request: the decoder's buffers hide less in six seconds, and so large a block takes no freed memory.
LEAK = 160_000
# A reason is a sentence about the image, not what a library said of itself.
REASON = re.compile(
    r"^(in ensemble 'detector', )?(\[request id: \S+ )?"
    r"(the (image|data|[A-Z]+ image)|this kind of [A-Z]+)\b.{5,300}$"
)


def figures(result: Result) -> dict[str, float]:
    return {check.promise: check.figure for check in result.checks}


@pytest.fixture
def slow(repository: Path, tmp_path: Path) -> Path:
    """A repository that does 50 images a second, on any machine that is not slower."""
    copy = tmp_path / "slow"
    shutil.copytree(repository, copy)
    model = copy / "retinanet" / "1" / "model.py"
    code = model.read_text()
    assert "        request.infer(" in code
    code = code.replace(
        "        request.infer(", "        time.sleep(0.04)  # of each of two cores\n        request.infer("
    )
    model.write_text(code.replace("import os\n", "import os\nimport time\n", 1))
    return copy


def test_an_overload_is_refused_early_and_leaves_nothing(slow: Path) -> None:
    result = overload(slow, OverloadOptions(seconds=2, rounds=1, recovery=1), images=IMAGES)
    found = figures(result)
    assert found["refused / offered"] > 0.3
    assert found["goodput / peak"] > 0.8
    assert found["refused within, ms (p99)"] < 500
    assert found["neither answered nor UNAVAILABLE"] == 0 == found["failed afterwards"]
    bounded = next(check for check in result.checks if check.promise == "p99 of the accepted, s")
    assert bounded.held and found["memory / at the peak"] < 1.25


def test_versions_change_under_load(repository: Path) -> None:
    result = reload(repository, ReloadOptions(in_flight=2, pause=0.1), images=IMAGES)
    assert result.passed, result.table()


def test_damaged_images_harm_nobody(repository: Path) -> None:
    """Each is answered with detections or its own fault, the good ones between them with detections."""
    samples = [("ok", data) for data in good_images().values()]
    samples += [("invalid", data) for data, _ in bad_images().values()]
    for number, (_, data) in enumerate(damaged(per_kind=1)):
        samples += [("either", data), *([("ok", IMAGES[0])] if number % 5 == 0 else [])]

    async def ask(endpoint: Endpoint) -> list[Request]:
        transport, turns = Transport(endpoint, concurrency=8), asyncio.Semaphore(8)

        async def one(data: bytes) -> Request:
            async with turns:
                return await send(transport, data)

        try:
            return await asyncio.gather(*(one(data) for _, data in samples))
        finally:
            await transport.close()

    with fixture(repository, images=IMAGES) as fix:
        before = {name: process.pid for name, process in fix.usage().processes.items()}
        answers = asyncio.run(ask(fix.endpoint))
        assert {name: process.pid for name, process in fix.usage().processes.items()} == before, "none has died"
    for (expected, _), answer in zip(samples, answers, strict=True):
        assert answer.status in ("ok", "invalid") and expected in ("either", answer.status), answer
        assert answer.status == "ok" or REASON.match(answer.message), answer.message
    counts = Counter(answer.status for answer in answers)
    assert counts["invalid"] > 50 and counts["ok"] > 20


def test_a_dead_python_process_is_noticed_and_replaced(repository: Path) -> None:
    """Triton goes on saying that it is ready; only an image shows it is not. test_triton kills `preprocess`."""
    found: dict[str, dict[str, object]] = {}
    checks = killed(repository, found, IMAGES, lambda _: None, victims=("retinanet",))
    assert all(check.held for check in checks), [check for check in checks if not check.held]
    assert "internal" in str(found["retinanet killed"]["meanwhile"])


def test_a_hopeless_server_is_given_up_with_its_cause(repository: Path) -> None:
    found: dict[str, dict[str, object]] = {}
    (check,) = never_loads(repository, found, lambda _: None)
    assert check.held and found["hopeless"]["tries"] == 3
    assert "Unable to read the model" in str(found["hopeless"]["cause"])


def test_a_full_disk_leaves_no_half_a_repository_and_stops_no_server(repository: Path, tmp_path: Path) -> None:
    found = run_scarce("disk", repository, megabytes=0.05, folder=tmp_path)
    if found is None:
        pytest.skip("no user namespaces here (unshare -rm)")
    assert found["build"].endswith("could not be written: No space left on device")
    assert found["left_behind"] == []
    assert set(found["served"]) == {"ok"}


def test_scarce_shared_memory_stops_no_server(repository: Path, tmp_path: Path) -> None:
    found = run_scarce("shm", repository, megabytes=scarce_room(repository), folder=tmp_path)
    if found is None:
        pytest.skip("no user namespaces here (unshare -rm)")
    assert found["alive"] and set(found["before"]) == set(found["after"]) == {"ok"}
    assert "Failed to increase the shared memory pool" in str(found["crowded_messages"])


def test_a_soak_reports_every_process_and_the_one_that_leaks(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "leaky"
    shutil.copytree(repository, copy)
    model = copy / "preprocess" / "1" / "model.py"
    code = model.read_text()
    start = "            tensor = pb_utils.get_input_tensor_by_name("
    assert start in code
    leak = f"            self.__dict__.setdefault('_kept', []).append(b'x' * {LEAK})\n"
    model.write_text(code.replace(start, leak + start, 1))

    result = soak(copy, SoakOptions(minutes=0.1, rate=40), images=IMAGES)
    found = figures(result)
    assert found["failed requests"] == 0
    for name in ("tritonserver", "preprocess 1", "preprocess 1 (2)", "retinanet 1"):
        assert f"{name}: memory after / before" in found
        assert found[f"{name}: descriptors, growth"] <= 0
    assert found["files in /dev/shm, growth"] == 0
    growth = {c.promise.split(":")[0]: c for c in result.checks if c.promise.endswith("growth, bytes a request")}
    leaking = [growth[f"preprocess 1{instance}"] for instance in ("", " (2)")]  # requests go to one or the other
    assert not all(check.held for check in leaking), leaking
    assert 0.6 * LEAK < sum(check.figure for check in leaking) < 1.5 * LEAK
