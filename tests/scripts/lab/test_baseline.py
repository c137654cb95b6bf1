import asyncio
import json
from pathlib import Path

import numpy as np
from aiohttp.test_utils import TestClient, TestServer

from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.scripts.lab.baseline import Detector, application
from tests.images import checker, encode
from tests.toys import CLASSES

PICTURE = encode(checker(640, 480), "PNG")  # a JPEG would be served from fewer of its pixels


def test_it_finds_what_the_detector_finds(toy_onnx: Path) -> None:
    """It decodes by Pillow and not by DALI, so that only most boxes agree."""
    (expected,) = open_detector(toy_onnx).predict([PICTURE])
    found = Detector(toy_onnx, threads=1).detect(PICTURE)
    assert abs(len(found) - len(expected)) <= 0.1 * len(expected)
    near = 0
    for box, index in zip(expected.boxes, expected.classes, strict=True):
        same = [each for each in found if each["class"] == CLASSES[index]]
        near += any(np.abs(np.subtract(each["box"], box)).max() < 4 for each in same)
    assert near >= 0.9 * len(expected)


def test_it_answers_over_http_and_refuses_what_is_no_picture(toy_onnx: Path) -> None:
    async def ask() -> tuple[dict[str, object], int]:
        async with TestClient(TestServer(application(Detector(toy_onnx, threads=1), workers=2))) as client:
            good = await (await client.post("/detect", data=PICTURE)).json()
            bad = await client.post("/detect", data=b"no image")
            return good, bad.status

    good, status = asyncio.run(ask())
    assert status == 400 and json.dumps(good).startswith('{"boxes": [{"box": [')
