"""A bucket on loopback scored by Ray's workers, killed on the way, against the same images asked directly."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from retinaserve.eval.batch import INPUTS, Plan, Recorded, _put, write_part
from retinaserve.eval.report.report import evaluate_detector
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.eval.sources import list_images, read_images
from retinaserve.scripts.cli.ask.batch import batch as verb
from retinaserve.scripts.server.triton import TritonServer, free_ports
from retinaserve.training.coco import Annotations
from retinaserve.training.detections import ImageError
from retinaserve.training.errors import UserError
from tests.coco import write_coco
from tests.images import checker, encode

fsspec = pytest.importorskip("fsspec", reason="the extra [batch] is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="the extra [batch] is not installed")
pytest.importorskip("ray", reason="the extra [batch] is not installed")
s3fs = pytest.importorskip("s3fs")
IMAGES, BAD, PART = 40, 7, 5


def images() -> dict[str, bytes]:
    """Return images by name, one of them damaged."""
    found = {f"{n % 3}/{n:03}.jpg": encode(checker(150 + n, 120, seed=n)) for n in range(IMAGES)}
    name = sorted(found)[BAD]
    return {**found, name: found[name][:-400]}


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """An S3 server with the images in a bucket; what reaches it, as environment variables."""
    pytest.importorskip("moto", reason="moto[server] is not installed")
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with suppress(OSError), urlopen(f"{url}/moto-api/") as answer:
                answer.read()
                break
            time.sleep(0.1)
        files = s3fs.S3FileSystem(key="key", secret="secret", endpoint_url=url)
        files.mkdir("bucket")
        for name, content in images().items():
            files.pipe_file(f"bucket/images/{name}", content)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.kill()
        server.wait()


def put(folder: Path) -> list[str]:
    """Write the images; return their names in order."""
    for name, content in images().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return sorted(images())


def check(rows: list[dict[str, Any]], model: Path, places: list[str]) -> None:
    """Each image is there once, in order, with the boxes of a detector that is asked directly."""
    names = sorted(images())
    assert [row["uri"] for row in rows] == places
    answers = open_detector(model, threads=1).predict_many([images()[name] for name in names])
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        if isinstance(answer, ImageError):
            assert number == BAD and row["error"] == answer.message and row["boxes"] == []
        else:
            assert (row["height"], row["width"], row["error"]) == (*answer.size, None)  # type: ignore[misc]
            assert np.allclose(np.reshape(row["boxes"], (-1, 4)), answer.boxes, atol=1e-2)


def test_parts_on_a_disk(toy_onnx: Path, tmp_path: Path) -> None:
    names, source, output = put(tmp_path / "images"), str(tmp_path / "images"), str(tmp_path / "out")
    detector = open_detector(toy_onnx, threads=1)
    plan = Plan.make(source, output, part=PART, model="one")
    assert plan.parts() == 8 and plan.waiting() == list(range(8)) and len(plan.images_of(7)) == PART
    done = [write_part(source, output, number, plan.images_of(number), detector) for number in (0, 1)]
    assert [part.failed for part in done] == [0, 1]
    (tmp_path / "images" / "new.jpg").write_bytes(b"")
    again = Plan.make(source, output, part=3, model="one")
    assert again.images == plan.images and again.waiting() == list(range(2, 8)), "what was listed and cut stays"
    rows = pq.read_table(output).to_pylist()
    assert [row["uri"] for row in rows] == [f"file://{source}/{name}" for name in names[:10]]
    (found,) = detector.predict([images()[names[0]]])
    assert rows[0]["boxes"] == found.boxes.tolist() and rows[0]["scores"] == found.scores.tolist()
    assert rows[0]["classes"] == [detector.class_names[index] for index in found.classes]
    assert rows[BAD]["boxes"] == [] and rows[BAD]["width"] is None and rows[BAD]["error"]
    with pytest.raises(UserError, match="holds the boxes of"):
        Plan.make(str(tmp_path), output, part=PART, model="one")
    with pytest.raises(UserError, match="of another model"):
        Plan.make(source, output, part=PART, model="other")


def test_two_runs_that_begin_together_share_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise parts of two sizes would take each other's places, and images would be missing."""
    put(tmp_path / "images")
    both, listing = Barrier(2), list_images

    def together(source: str) -> Any:
        found = listing(source)
        both.wait(30)
        return found

    monkeypatch.setattr("retinaserve.eval.batch.list_images", together)
    source, output = str(tmp_path / "images"), str(tmp_path / "out")
    with ThreadPoolExecutor(2) as threads:
        plans = list(threads.map(lambda part: Plan.make(source, output, part=part), (3, 5)))
    assert plans[0].part == plans[1].part
    assert [path.name for path in (tmp_path / "out").iterdir()] == [INPUTS]


def test_what_is_no_output(tmp_path: Path) -> None:
    put(tmp_path / "images")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "other").mkdir()
    for content in (b"", b"PAR1"):
        (tmp_path / "other" / INPUTS).write_bytes(content)
        with pytest.raises(UserError, match="not of `retinaserve batch`"):
            Plan.make(str(tmp_path / "images"), str(tmp_path / "other"), part=PART)
    for place in ("file", "file/below"):
        with pytest.raises(UserError, match=place):
            Plan.make(str(tmp_path / "images"), str(tmp_path / place), part=PART)


def test_what_was_written_is_scored_as_the_detector_is(toy_onnx: Path, tmp_path: Path) -> None:
    put(tmp_path / "images")
    source, output, detector = str(tmp_path / "images"), str(tmp_path / "out"), open_detector(toy_onnx, threads=1)
    plan = Plan.make(source, output, part=25)
    for number in range(2):
        write_part(source, output, number, plan.images_of(number), detector)
    (tmp_path / "images" / "late.jpg").write_bytes(b"")
    names, boxes = dict(enumerate([*sorted(images()), "late.jpg"])), [(0, 1, [0, 0, 90, 90])]
    truth = Annotations.load(
        write_coco(tmp_path / "truth.json", names, boxes, dict(enumerate(detector.class_names, 1)))
    )
    one, other = (
        evaluate_detector(each, truth, tmp_path / "images") for each in (detector, Recorded.read(output))
    )
    assert one.scores.detections == other.scores.detections > 0
    assert one.scores.ap == pytest.approx(other.scores.ap, abs=1e-6)
    assert set(one.errors) == set(other.errors) == {BAD, IMAGES}
    with pytest.raises(UserError, match="no predictions of"):
        Recorded.read(source)


def test_a_place_without_objects_or_links_gets_whole_files() -> None:
    import pyarrow as pa

    files = fsspec.filesystem("memory")
    files.makedirs("/out")
    _put(files, "/out/part-000000.parquet", pa.table({"a": [1]}))
    assert files.ls("/out", detail=False) == ["/out/part-000000.parquet"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with a core each, as `ray start` makes it on two machines."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", "/tmp")
        ray = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.add_node(num_cpus=1)
        yield ray.address
    finally:
        ray.shutdown()


def batch(*words: str, **how: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "retinaserve", "batch", *words, "--part", str(PART)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **how
    )


def workers_below(cluster: str) -> dict[int, int]:
    """Return the processes of our actors, and the raylet (a node) each belongs to."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        if "_Worker" in " ".join(process.info["cmdline"] or ()):
            found[process.pid] = process.ppid()
    return found


@pytest.mark.server
@pytest.mark.timeout(300)
def test_a_cluster_asks_a_server_and_survives_a_worker(cluster: str, server: TritonServer, tmp_path: Path) -> None:
    names, source, output = put(tmp_path / "images"), str(tmp_path / "images"), str(tmp_path / "out")
    running = batch(source, output, "--server", server.grpc_url, "--ray", cluster)
    killed, nodes = 0, set[int]()
    deadline = time.monotonic() + 200
    while running.poll() is None and time.monotonic() < deadline:
        found = workers_below(cluster)
        nodes |= set(found.values())
        if not killed and len(nodes) == 2 and list((tmp_path / "out").glob("part-*")):
            killed = next(iter(found))
            with suppress(ProcessLookupError):
                os.kill(killed, signal.SIGKILL)
        time.sleep(0.02)
    stdout, stderr = running.communicate()
    assert running.returncode == 3, stderr
    assert stdout == f"{output}: {IMAGES} rows in 8 files\n" and len(nodes) == 2, "both nodes worked"
    rows = pq.read_table(output).to_pylist()
    check(
        rows, server.repository / "retinanet" / "1" / "model.onnx", [f"file://{source}/{name}" for name in names]
    )


@pytest.mark.timeout(600)
def test_a_bucket_over_kills(bucket: dict[str, str], toy_onnx: Path) -> None:
    words = ["s3://bucket/images", "s3://bucket/boxes", "--model", str(toy_onnx), "--workers", "2"]
    files = s3fs.S3FileSystem(endpoint_url=bucket["AWS_ENDPOINT_URL"], key="key", secret="secret")

    def parts() -> int:
        files.invalidate_cache()
        return len(files.glob("bucket/boxes/part-*"))

    first = batch(*words, env=os.environ | bucket)
    deadline = time.monotonic() + 200
    while parts() < 2 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):  # it has done all of it already
        os.killpg(first.pid, signal.SIGKILL)
    _, stderr = first.communicate()
    left = parts()
    assert left >= 2, stderr
    last = batch(*words, env=os.environ | bucket)
    stdout, stderr = last.communicate()
    assert last.returncode in (0, 3), stderr
    assert left == 8 or "images are there already" in stderr
    assert stdout == f"s3://bucket/boxes: {IMAGES} rows in 8 files\n"
    rows = pq.read_table("bucket/boxes", filesystem=files).to_pylist()
    check(rows, toy_onnx, [f"s3://bucket/images/{name}" for name in sorted(images())])


def test_an_image_is_one_request(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    call, asked = s3fs.S3FileSystem._call_s3, []

    async def counted(self: Any, method: str, *args: Any, **words: Any) -> Any:
        asked.append(method)
        return await call(self, method, *args, **words)

    files, rows = list_images("s3://bucket/images")
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    files.invalidate_cache()  # as of a worker, which has not listed them
    assert len(list(read_images(files, rows))) == IMAGES
    assert asked == ["get_object"] * IMAGES


@pytest.mark.timeout(200)
def test_more_workers_than_cores_do_not_wait_for_ever(cluster: str, toy_onnx: Path, tmp_path: Path) -> None:
    put(tmp_path / "images")
    source, output = str(tmp_path / "images"), str(tmp_path / "out")
    running = batch(source, output, "--model", str(toy_onnx), "--ray", cluster, "--workers", "5")
    stdout, stderr = running.communicate(timeout=150)
    assert stdout == f"{output}: {IMAGES} rows in 8 files\n", stderr


MISTAKES = {
    "no GPU": ("--model", "PLAN"),
    "nothing listens": ("--model", "MODEL", "--ray", "127.0.0.1:1"),
    "no server": ("--server", "127.0.0.1:1"),
    "neither model nor server": (),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_of_before_the_work(
    case: str, toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    put(tmp_path / "images")
    (tmp_path / "a.plan").write_bytes(b"")
    files = {"MODEL": str(toy_onnx), "PLAN": str(tmp_path / "a.plan")}
    words = [files.get(word, word) for word in MISTAKES[case]]
    result = CliRunner().invoke(verb, [str(tmp_path / "images"), str(tmp_path / "out"), *words])
    message = {
        "no GPU": "there is no GPU",
        "nothing listens": "no Ray cluster answers",
        "no server": "no Triton server answers",
    }
    said = result.output if isinstance(result.exception, SystemExit) else str(result.exception)
    assert message.get(case, "either --model or --server") in said
    assert not list(tmp_path.glob("out/part-*"))
