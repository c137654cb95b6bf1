"""`admit`: pictures named with their reasons, and a cost that is measured."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from retinaserve.scripts.admission import definition_cost, draw_jpegs, step_cost
from retinaserve.scripts.cli.main import main
from tests.pictures import bad_pictures, checker, encode


def test_nothing_to_do_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["admit"])
    assert result.exit_code == 2 and "no images are given" in result.output


def test_refused_pictures_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(encode(checker(64, 48)))
    (tmp_path / "cut.jpg").write_bytes(bad_pictures()["jpeg truncated"][0])
    (tmp_path / "corrupt.webp").write_bytes(bad_pictures()["webp corrupt"][0])
    result = CliRunner().invoke(main, ["admit", str(tmp_path), "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 1
    assert "cut.jpg: the JPEG image is truncated" in result.output
    assert "2 of 3 pictures refused" in result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert sorted(Path(path).name for path in report["refused"]) == ["corrupt.webp", "cut.jpg"]
    result = CliRunner().invoke(main, ["admit", str(tmp_path), "--no-trial"])
    assert "1 of 3 pictures refused" in result.output  # only a decoder can tell of the WebP


def test_the_drawn_jpegs_are_of_the_size_that_is_claimed() -> None:
    assert all(80_000 < len(data) < 125_000 for data in draw_jpegs(3))


@pytest.mark.server
def test_the_costs_are_those_of_work_done() -> None:
    jpegs = draw_jpegs(4)
    alone = definition_cost(jpegs, rounds=3)
    assert 1 < alone < 1000  # microseconds: 16 on the machine of docs/export.md
    step = step_cost(jpegs, requests=600, concurrency=8)
    assert alone < step.microseconds < 5000
    assert 1 <= step.mean_batch <= 8
