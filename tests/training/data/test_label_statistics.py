from pathlib import Path

import numpy as np
import pytest

from retinaserve.scripts.cli.train_console import announce_labels
from retinaserve.training.data.dataset import describe_labels
from retinaserve.training.spec import DetectorSpec
from tests.training.squares import SPEC, draw


def test_a_set_without_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statistics = describe_labels(draw(tmp_path / "set", 3, boxes=False), SPEC)
    assert statistics.empty_images == 3 and not len(statistics.sizes) and statistics.covered == 0
    announce_labels(statistics)
    assert capsys.readouterr().err == "labels: dark 0, light 0; 3 images without boxes\n"


def test_sizes_are_the_networks_and_anchors_are_told_to_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw(tmp_path / "set", 5)
    sides = [labels.boxes[0, 2] - labels.boxes[0, 0] for labels in data.labels]
    statistics = describe_labels(data, SPEC)
    assert statistics.per_class == {"dark": 3, "light": 2}
    assert statistics.sizes[:, 0].tolist() == sides == statistics.sizes[:, 1].tolist()
    # Squares of 20 px and more: anchors measure 32, 40, 51 px, and half of 32 x 32 is 22.6 x 22.6.
    assert statistics.covered == np.mean([side >= 32 / 2**0.5 for side in sides])
    larger = DetectorSpec.create(["dark", "light"], size=(128, 128), category_ids=[2, 5])
    assert describe_labels(data, larger).sizes[:, 0].tolist() == [2 * side for side in sides]
    tiny = DetectorSpec.create(["dark", "light"], size=(16, 16), category_ids=[2, 5])
    announce_labels(describe_labels(data, tiny))
    assert "0% of them fit an anchor; see --anchor-size and --size" in capsys.readouterr().err
