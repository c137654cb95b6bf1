"""A detector of a sensor that uses 12 of 16 bits, on the real server: its files are answered as what they show."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaserve.build_tools.repository.builder import build
from retinaserve.eval.client.client import Client
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.checkpoint import Checkpoint, save
from tests.images import checker, encode
from tests.toys import toy_model, toy_spec

pytestmark = pytest.mark.server


def test_twelve_of_sixteen_bits_are_answered_as_the_eight_they_show(tmp_path: Path) -> None:
    spec = replace(toy_spec(), value_range=(0, 4095))
    save(tmp_path / "model.pth", Checkpoint(spec, toy_model(spec).state_dict()))
    build(tmp_path / "model.pth", tmp_path / "repository")
    levels = np.asarray(checker(300, 200, cell=17).convert("L"))
    sensor = io.BytesIO()
    # 255 v / 4095, rounded, is the level again.
    Image.fromarray(np.round(levels * (4095 / 255)).astype(np.uint16)).save(sensor, "PNG")
    shown = encode(Image.fromarray(levels), "PNG")
    with TritonServer(tmp_path / "repository", ServerOptions.free_ports(threads=2)) as server:
        server.wait_until_ready()
        with Client(server.grpc_url) as client:
            assert client.served.value_range == (0, 4095)
            found, expected = client.predict([sensor.getvalue(), shown])
    assert len(expected) > 0
    assert found.boxes.tolist() == expected.boxes.tolist() and found.scores.tolist() == expected.scores.tolist()
