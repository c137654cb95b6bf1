"""`admit`: refused images are named with their reasons."""

import json
from pathlib import Path

from tests.cli import invoke
from tests.images import bad_images, checker, encode


def test_nothing_to_do_is_a_usage_error() -> None:
    result = invoke("admit")
    assert result.exit_code == 2 and "no images are given" in result.output


def test_refused_pictures_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(encode(checker(64, 48)))
    (tmp_path / "cut.jpg").write_bytes(bad_images()["jpeg truncated"][0])
    (tmp_path / "corrupt.webp").write_bytes(bad_images()["webp corrupt"][0])
    result = invoke("admit", tmp_path, "--json", tmp_path / "r.json")
    assert result.exit_code == 1
    assert "cut.jpg: the JPEG image is truncated" in result.output
    assert "2 of 3 images refused" in result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert sorted(Path(path).name for path in report["refused"]) == ["corrupt.webp", "cut.jpg"]
    result = invoke("admit", tmp_path, "--no-trial")
    assert "1 of 3 images refused" in result.output  # only a decoder can tell of the WebP
