"""The comparison of precisions on a toy detector: exported, served on the real Triton, scored and timed."""

from pathlib import Path
from typing import get_args

import pytest

from retinaserve.build_tools.quantize.calibrate import Int8Options
from retinaserve.build_tools.quantize.ranges import Calibrator
from retinaserve.scripts.cli.deploy.int8 import CALIBRATORS
from retinaserve.scripts.precisions import Options, Row, compare, flavours, markdown, ratio, to_dict
from retinaserve.training.checkpoint import Checkpoint, save
from tests.coco import write_coco
from tests.images import checker, encode
from tests.toys import toy_model, toy_spec


def test_every_flavour_starts_from_float() -> None:
    options = Options(Path("out"), Path("images"), None, Int8Options(Path("train")), size=(256, 384))
    ways = flavours(options)
    assert list(ways) == ["fp32", "int8 minmax", "int8 in f32", "int8 percentile", "int8 entropy"]
    assert ways["fp32"][0].int8 is None and {way.size for way, _ in ways.values()} == {(256, 384)}
    assert ways["int8 minmax"][0] == ways["int8 in f32"][0]
    assert [arithmetic for _, arithmetic in ways.values()] == ["f32", "bf16", "f32", "bf16", "bf16"]


def test_one_calibrator_is_the_default_everywhere() -> None:
    assert get_args(Calibrator) == CALIBRATORS == Options(Path(), Path(), None, Int8Options(Path())).calibrators
    assert Int8Options(Path()).calibrator == CALIBRATORS[0]


def test_ratios_are_taken_within_a_round() -> None:
    """By hand: 10/5, 4/1 and 3/2 have the median 2, though the machine was ten times slower in between."""
    base = Row("fp32", 40.0, {"f32": 78}, 0.5, 0.75, [5.0, 1.0, 2.0])
    row = Row("int8", 10.0, {"u8": 68, "f32": 10}, 0.4975, 0.76, [10.0, 4.0, 3.0])
    assert ratio(row, base) == 2 and ratio(base, base) == 1
    lines = markdown([base, row]).splitlines()
    assert lines[3] == "| int8 | 49.75 | -0.25 | 76.00 | 10.0 | 0.25 | 4.00 | 2.00 | 10 f32, 68 u8 |"
    assert to_dict([base, row], "x")["rows"][1]["throughput_ratio"] == 2


def test_nothing_measured_is_a_dash() -> None:
    assert markdown([Row("fp32", 1.0, {})]).splitlines()[2] == "| fp32 | - | - | - | 1.0 | 1.00 | - | - |  |"


@pytest.mark.server
def test_int8_is_served_and_scored(tmp_path: Path) -> None:
    spec = toy_spec()
    save(tmp_path / "model.pth", Checkpoint(spec, toy_model(spec).state_dict()))
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(encode(checker(300, 200, seed=number)))
    annotations = write_coco(
        tmp_path / "annotations.json",
        {number: f"{number}.jpg" for number in range(4)},
        [(number, 1, [40, 40, 80, 80]) for number in range(4)],
        dict(zip(spec.category_ids, spec.classes, strict=True)),
    )
    options = Options(
        tmp_path / "out", images, annotations, Int8Options(images), ("minmax",), rounds=1, seconds=1.0
    )
    heard: list[str] = []
    rows = compare(tmp_path / "model.pth", options, log=heard.append)
    assert [row.name for row in rows] == ["fp32", "int8 minmax", "int8 in f32"]
    assert rows[1].megabytes == rows[2].megabytes < rows[0].megabytes
    assert set(rows[0].convolutions) == {"f32"} and rows[2].convolutions["f32"] == 10
    # On a processor with bf16 the ten are in bf16.
    assert rows[1].convolutions.get("bf16", 0) + rows[1].convolutions.get("f32", 0) == 10
    assert all(row.ap is not None and len(row.ips) == 1 and row.ips[0] > 0 for row in rows)
    assert [word for word in heard if "export" in word] == ["fp32: export", "int8 minmax: export"]
    assert len(heard) == 9
