"""A detector of a short-side rule on the real server: landscape, portrait and panorama, mixed in one queue."""

from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from retinaserve.build_tools.repository.builder import build
from retinaserve.eval.client.client import Client
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.checkpoint import Checkpoint, save
from tests.images import checker, encode
from tests.toys import CLASSES, small_spec, toy_model

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Pixels as its author's weights have them.
    spec = small_spec(CLASSES, size=(160, 267), resize_rule="torchvision", pixels="float32", clip="canvas")
    path = tmp_path_factory.mktemp("orientations") / "model.pth"
    weights = toy_model(spec).state_dict()
    weights["box_head.output.weight"] *= 0.1  # boxes of a size that boxes have
    save(path, Checkpoint(spec, weights))
    return path


def test_every_orientation_is_answered_as_offline(checkpoint: Path) -> None:
    build(checkpoint, checkpoint.with_name("repository"))
    sizes = ((400, 300), (300, 400), (333, 200), (50, 400), (640, 480), (480, 640), (2000, 100))
    images = [encode(checker(w, h, seed=n, cell=17), "PNG") for n, (w, h) in enumerate(sizes * 4)]
    expected = open_detector(checkpoint, threads=1).predict(images)
    with TritonServer(checkpoint.with_name("repository"), ServerOptions.free_ports(threads=2)) as server:
        server.wait_until_ready()
        with Client(server.grpc_url) as client:
            found = client.predict(images)
        # Two images in one request: as large as the larger of them, as their author batches them.
        both = [encode(checker(w, h, cell=17), "BMP") for w, h in ((96, 64), (64, 96))]
        given = InferInput("image_bytes", [2, len(both[0])], "UINT8")
        given.set_data_from_numpy(np.stack([np.frombuffer(each, np.uint8) for each in both]))
        with InferenceServerClient(server.grpc_url) as client:
            answer = client.infer("detector", [given])
    assert answer.as_numpy("letterbox").tolist() == [[64, 96, 160, 240], [96, 64, 240, 160]]
    assert (answer.as_numpy("num_detections") > 0).all()
    assert sum(len(each.boxes) for each in expected) > 100
    assert any((each.boxes[:, 3] > each.size[0] + 1).any() for each in expected if each.size)  # in the padding
    for one, other in zip(found, expected, strict=True):
        assert one.size == other.size and len(one.boxes) == len(other.boxes)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        same = np.isclose(one.boxes, other.boxes, atol=1e-2).all(axis=1) & (one.classes == other.classes)
        assert same.sum() >= 0.97 * len(same)  # of two scores that are all but equal, either may come first
