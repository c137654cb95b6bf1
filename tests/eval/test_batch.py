"""A bucket on loopback scored by Ray's workers, killed on the way, against the same images asked directly."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from retinaserve.eval.batch import Plan, write_part
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.scripts.server.triton import free_ports
from retinaserve.training.errors import UserError
from tests.images import checker, encode

pq = pytest.importorskip("pyarrow.parquet", reason="the extra [batch] is not installed")
pytest.importorskip("ray", reason="the extra [batch] is not installed")
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
    s3fs = pytest.importorskip("s3fs")
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


def test_parts_on_a_disk(toy_onnx: Path, tmp_path: Path) -> None:
    for name, content in images().items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(content)
    detector = open_detector(toy_onnx, threads=1)
    plan = Plan.make(str(tmp_path / "images"), str(tmp_path / "out"), part=PART)
    assert plan.parts() == 8 and plan.waiting() == list(range(8)) and len(plan.uris_of(7)) == PART
    done = [write_part(plan, number, detector) for number in (0, 1)]
    assert [part.failed for part in done] == [0, 1]
    (tmp_path / "images" / "new.jpg").write_bytes(b"")
    again = Plan.make(str(tmp_path / "images"), str(tmp_path / "out"), part=3)
    assert again == plan and again.waiting() == list(range(2, 8)), "what was listed and cut stays"
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["uri"] for row in rows] == [f"file://{tmp_path}/images/{name}" for name in sorted(images())[:10]]
    (found,) = detector.predict([images()[sorted(images())[0]]])
    assert rows[0]["boxes"] == found.boxes.tolist() and rows[0]["scores"] == found.scores.tolist()
    assert rows[0]["classes"] == [detector.class_names[index] for index in found.classes]
    assert (rows[0]["height"], rows[0]["width"], rows[0]["error"]) == (*found.size, None)  # type: ignore[misc]
    assert rows[BAD]["boxes"] == [] and rows[BAD]["width"] is None and rows[BAD]["error"]
    with pytest.raises(UserError, match="holds the boxes of"):
        Plan.make(str(tmp_path), str(tmp_path / "out"), part=PART)
    with pytest.raises(UserError, match="no images there"):
        Plan.make(str(tmp_path / "none"), str(tmp_path / "other"), part=PART)


@pytest.mark.timeout(600)
def test_a_bucket_over_kills(bucket: dict[str, str], toy_onnx: Path, tmp_path: Path) -> None:
    import s3fs

    words = ["batch", "s3://bucket/images", "s3://bucket/boxes", "--model", str(toy_onnx), "--workers", "2"]
    command = [sys.executable, "-m", "retinaserve", *words, "--part", str(PART)]
    files = s3fs.S3FileSystem(endpoint_url=bucket["AWS_ENDPOINT_URL"], key="key", secret="secret")

    def parts() -> int:
        files.invalidate_cache()
        return len(files.glob("bucket/boxes/part-*"))

    log = (tmp_path / "log").open("w+")
    first = subprocess.Popen(command, env=os.environ | bucket, start_new_session=True, stderr=log)
    deadline = time.monotonic() + 200
    while parts() < 2 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):  # it has done all of it already
        os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    left = parts()
    log.seek(0)
    assert left >= 2, log.read()
    log.close()
    last = subprocess.run(command, env=os.environ | bucket, capture_output=True, text=True)
    assert last.returncode in (0, 3), last.stderr
    assert left == 8 or "images are there already" in last.stderr
    assert last.stdout == f"s3://bucket/boxes: {IMAGES} rows in 8 files\n"
    rows = pq.read_table("bucket/boxes", filesystem=files).to_pylist()
    assert [row["uri"] for row in rows] == [f"s3://bucket/images/{name}" for name in sorted(images())]
    plain = [content for content in images().values()]
    answers = dict(zip(images(), open_detector(toy_onnx, threads=1).predict_many(plain), strict=True))
    for row in rows:
        answer = answers[row["uri"].removeprefix("s3://bucket/images/")]
        if row["error"]:
            assert row["uri"].endswith(sorted(images())[BAD]) and row["error"] == answer.message  # type: ignore[union-attr]
        else:
            assert np.allclose(np.reshape(row["boxes"], (-1, 4)), answer.boxes, atol=1e-2)  # type: ignore[union-attr]
