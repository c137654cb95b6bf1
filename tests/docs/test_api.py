"""docs/api.md: the public names are those of `__all__`, typed and explained, and its programs run."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import retinaserve
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.scripts.shapes.draw import draw_dataset
from tests.images import checker, encode

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()
ROWS = re.findall(r"^\| `(retinaserve\.[\w.]+)` \| (.*?) \|", PAGE, re.MULTILINE)
NAMES = re.findall(r"^\| (`[^|]*`) \|", PAGE.split("## Names")[1].split("These modules")[0], re.MULTILINE)
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
OF_README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_documented_names_are_those_of_the_package() -> None:
    assert sorted(re.findall(r"`(\w+)`", " ".join(NAMES))) == sorted(retinaserve.__all__)


@pytest.mark.parametrize(("module", "names"), ROWS, ids=[module for module, _ in ROWS])
def test_documented_names_are_the_public_ones(module: str, names: str) -> None:
    loaded = importlib.import_module(module)
    assert sorted(re.findall(r"`(\w+)`", names)) == sorted(loaded.__all__)
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == module and inspect.getdoc(value), name
    assert (ROOT / "src" / "retinaserve" / "py.typed").is_file()


def run(program: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, cwd=folder, env=environment
    ).stdout


def test_ask_a_server(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encode(checker(320, 200, seed=number)))
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"")
    lines = run(PROGRAMS[0].replace("localhost:8001", server.grpc_url), tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["photos/0.jpg", "photos/1.jpg", "photos/bad.jpg"]
    assert "failed: the image is empty" in lines[2]


def test_without_a_server_and_with_one_of_its_own(tmp_path: Path) -> None:
    drawn = draw_dataset(tmp_path / "drawn", images=1, seed=5)
    (picture,) = drawn.images.iterdir()
    picture.rename(tmp_path / "IMAGE.jpg")
    (tmp_path / "photo.jpg").symlink_to(tmp_path / "IMAGE.jpg")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run(PROGRAMS[1], tmp_path)
    assert (tmp_path / "boxes.jpg").stat().st_size > 1000
    (found,) = open_detector(ROOT / "examples" / "shapes.pth").predict([(tmp_path / "IMAGE.jpg").read_bytes()])
    assert run(OF_README[1], tmp_path).count("[") == 1 + len(found) > 1  # the array of boxes, printed
