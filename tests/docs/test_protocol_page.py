"""The requests of README, docs/serving.md and examples/, run on the real server: every language has one answer."""

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

ROOT = Path(__file__).parents[2]
REQUESTS = (ROOT / "docs" / "serving.md").read_text().split("## Send requests")[1].split("## ")[0]
PYTHON = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
CURL = re.findall(r"```bash\n(.*?)```", REQUESTS, re.DOTALL)[0]
JAVASCRIPT = (ROOT / "examples" / "detect.mjs").read_text()


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


def here(code: str, server: TritonServer, picture: Path) -> str:
    """Return code with this server's ports and a picture that exists, without a threshold."""
    found = code.replace("127.0.0.1:8000", server.http_url).replace("localhost:8001", server.grpc_url)
    assert found != code
    return re.sub(r"IMAGE\.jpg|photo\.jpg", picture.name, found).replace("< 0.3)", "< 0)")


def run(*command: str, cwd: Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=cwd).stdout


def test_curl(server: TritonServer, picture: Path, expected: Detections) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    answer = json.loads(run("bash", "-c", here(CURL, server, picture), cwd=picture.parent))
    found = {output["name"]: output["data"] for output in answer["outputs"]}
    assert found["num_detections"] == [len(expected)]
    np.testing.assert_allclose(found["scores"][: len(expected)], expected.scores, rtol=1e-6)


def test_python(server: TritonServer, picture: Path, expected: Detections) -> None:
    printed = run(sys.executable, "-c", here(PYTHON, server, picture), cwd=picture.parent)
    scores = [float(re.search(r" ([\d.]+) \[", line)[1]) for line in printed.splitlines()]
    np.testing.assert_allclose(scores, expected.scores, atol=0.0051)


def test_javascript(server: TritonServer, picture: Path, expected: Detections, tmp_path: Path) -> None:
    if not shutil.which("node"):
        pytest.skip("Node is not installed")
    (tmp_path / "detect.mjs").write_text(here(JAVASCRIPT, server, picture))
    rows = [line.split() for line in run("node", "detect.mjs", str(picture), cwd=tmp_path).splitlines()]
    assert [int(row[0]) for row in rows] == expected.classes.tolist()
    np.testing.assert_allclose([[float(x) for x in row[2:]] for row in rows], expected.boxes, rtol=1e-5)
