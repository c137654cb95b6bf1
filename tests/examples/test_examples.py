"""The scripts of examples/, run as a user runs them on the real server; and the checkpoint that comes along."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from retinaserve.eval.client.client import Client
from retinaserve.scripts.cli.demo import RECIPE
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.scripts.shapes.draw import CATEGORIES, draw_dataset
from retinaserve.training.checkpoint import load, load_model
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.trainer.validate import predict, score
from tests.images import checker, encode

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=False
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.jpg"
    path.write_bytes(encode(checker(320, 200), quality=95, subsampling=0, orientation=6))
    return path


def rows(text: str) -> list[tuple[str, float, list[float]]]:
    """Read what two of the examples print. A class name may have spaces: numbers are the last five words."""
    found = []
    for line in text.splitlines():
        *name, score, x1, y1, x2, y2 = line.split()
        found.append((" ".join(name), float(score), [float(side) for side in (x1, y1, x2, y2)]))
    return found


def test_there_are_three_at_most() -> None:
    assert 0 < len(list(EXAMPLES.glob("*.py"))) <= 3


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_without_arguments_they_say_how(name: str) -> None:
    result = run(name)
    assert result.returncode == 1 and result.stderr.startswith("usage: ") and len(result.stderr.splitlines()) == 1


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_client(server: TritonServer, picture: Path, protocol: str) -> None:
    url = server.grpc_url if protocol == "grpc" else f"http://{server.http_url}"
    with Client(server.grpc_url) as client:
        (expected,) = client.predict([picture.read_bytes()])
        names = [client.class_names[index] for index in expected.classes]
    result = run("client.py", picture, url, 0)
    found = rows(result.stdout)
    assert len(found) == len(expected) > 3, result.stderr
    assert [name for name, *_ in found] == names
    strong = rows(run("client.py", picture, url, expected.scores[2]).stdout)
    assert len(strong) == np.count_nonzero(expected.scores >= expected.scores[2]) < len(expected)
    np.testing.assert_allclose([box for *_, box in found], expected.boxes, atol=0.051)


@pytest.mark.server
def test_folder(server: TritonServer, tmp_path: Path) -> None:
    """The bad picture is named, the table has the good ones, and the exit code tells."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(encode(checker(320, 200, seed=number)))
    (folder / "bad.jpg").write_bytes(b"no picture")
    result = run("folder.py", folder, tmp_path / "boxes.csv", server.grpc_url)
    assert result.returncode == 3 and "bad.jpg" in result.stderr and len(result.stderr.splitlines()) == 1
    with (tmp_path / "boxes.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["file"] for row in table} == {"0.jpg", "1.jpg", "2.jpg"}
    assert all(0 < float(row["score"]) < 1 and float(row["x1"]) <= float(row["x2"]) for row in table)


@pytest.mark.server
def test_own_preprocessing_finds_what_the_server_finds(server: TritonServer, picture: Path) -> None:
    """Pillow scales a little differently from DALI, so scores near the threshold may fall on the other side."""
    with Client(server.grpc_url) as client:
        (expected,) = client.predict([picture.read_bytes()])
    result = run("own_preprocessing.py", picture, server.grpc_url, 0)
    found = rows(result.stdout)
    assert found, result.stderr
    strongest = min(5, len(expected))
    np.testing.assert_allclose(
        [score for _, score, _ in found[:strongest]], expected.scores[:strongest], atol=0.03
    )
    np.testing.assert_allclose([box for *_, box in found[:1]], expected.boxes[:1], atol=2.0)


@pytest.mark.server
@pytest.mark.parametrize("name", ["client.py", "own_preprocessing.py"])
def test_mistakes_are_a_line_or_two(server: TritonServer, tmp_path: Path, picture: Path, name: str) -> None:
    for file, where in ((tmp_path / "none.jpg", server.grpc_url), (picture, "localhost:9")):
        result = run(name, file, where)
        assert result.returncode == 1 and result.stderr.startswith("error: ") and not result.stdout
        assert len(result.stderr.splitlines()) <= 2


def test_the_checkpoint_is_small_and_what_the_demo_trains() -> None:
    path = EXAMPLES / "shapes.pth"
    assert path.stat().st_size < 5e6
    checkpoint = load(path)
    recipe = yaml.safe_load((ROOT / "training" / "recipes" / f"{RECIPE}.yaml").read_text())
    spec, network = checkpoint.spec, checkpoint.spec.network
    assert checkpoint.iteration == recipe["iters"] and not checkpoint.training
    assert list(spec.size) == recipe["size"] and recipe["anchor-size"] == 3
    assert (network.backbone, network.width, network.norm) == ("resnet18", recipe["width"], recipe["norm"])
    assert (network.fpn_channels, network.head_depth) == (recipe["fpn-channels"], recipe["head-depth"])
    assert dict(zip(spec.classes, spec.category_ids, strict=True)) == dict(CATEGORIES)


def test_the_checkpoint_finds_shapes_it_has_not_seen(tmp_path: Path) -> None:
    """Quickstart would show nothing otherwise. 24 pictures are few, so the bar is far below the demo's AP50."""
    drawn = draw_dataset(tmp_path, images=24, seed=123)
    dataset = CocoDataset(drawn.images, drawn.annotations)
    spec, model = load_model(EXAMPLES / "shapes.pth")
    assert score(dataset, spec, predict(model, spec, dataset, range(len(dataset)))).ap50 > 0.75
