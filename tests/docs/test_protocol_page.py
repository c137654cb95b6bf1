"""The requests of docs/serving.md, run as they stand on the real server: every language gets the same answer."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retinaserve.eval.client.client import Client
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.detections import Detections
from tests.images import checker, encode

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
REQUESTS = PAGE.split("## Send requests")[1].split("## ")[0]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.jpg"
    path.write_bytes(encode(checker(320, 200)))
    return path


@pytest.fixture
def expected(server: TritonServer, picture: Path) -> Detections:
    with Client(server.grpc_url) as client:
        (found,) = client.predict([picture.read_bytes()])
    assert len(found) > 3
    return found


EXAMPLE = (Path(__file__).parents[2] / "examples" / "detect.mjs").read_text()


def block(language: str, server: TritonServer, picture: str) -> str:
    """Return a page's code with this server's ports and a picture that exists."""
    return for_the_test(re.findall(rf"```{language}\n(.*?)```", REQUESTS, re.DOTALL)[0], server, picture)


def for_the_test(code: str, server: TritonServer, picture: str) -> str:
    assert "127.0.0.1:800" in code
    # The toy detector, which was never trained, is sure of nothing.
    code = code.replace("above(0.3)", "above(0)").replace("< 0.3)", "< 0)")
    code = code.replace("127.0.0.1:8000", server.http_url).replace("127.0.0.1:8001", server.grpc_url)
    return code.replace("IMAGE.jpg", picture)


def run(*command: str, cwd: Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=cwd).stdout


def test_curl(server: TritonServer, picture: Path, expected: Detections) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    answer = json.loads(run("bash", "-c", block("bash", server, picture.name), cwd=picture.parent))
    found = {output["name"]: output["data"] for output in answer["outputs"]}
    assert found["num_detections"] == [len(expected)]
    np.testing.assert_allclose(found["scores"][: len(expected)], expected.scores, rtol=1e-6)


def test_python(server: TritonServer, picture: Path, expected: Detections) -> None:
    printed = run(sys.executable, "-c", block("python", server, str(picture)), cwd=Path(__file__).parents[2])
    scores = [float(re.search(r" ([\d.]+) \[", line)[1]) for line in printed.splitlines()]
    np.testing.assert_allclose(scores, expected.scores, atol=0.0051)


def test_javascript(server: TritonServer, picture: Path, expected: Detections, tmp_path: Path) -> None:
    if not shutil.which("node"):
        pytest.skip("Node is not installed")
    (tmp_path / "detect.mjs").write_text(for_the_test(EXAMPLE, server, "IMAGE.jpg"))
    rows = [line.split() for line in run("node", "detect.mjs", str(picture), cwd=tmp_path).splitlines()]
    assert [int(row[0]) for row in rows] == expected.classes.tolist()
    np.testing.assert_allclose([[float(x) for x in row[2:]] for row in rows], expected.boxes, rtol=1e-5)
