from pathlib import Path

import pytest
from PIL import Image

from retinaserve.eval.report.analysis import Analysis
from retinaserve.eval.report.page.page import write_page
from retinaserve.scripts.lab.images import report
from retinaserve.training.errors import UserError
from tests.browser import need_browser
from tests.eval.scenes import label, report_on


def test_the_image_ends_where_the_images_begin(tmp_path: Path) -> None:
    need_browser()
    write_page(Analysis.of(report_on(label(tmp_path)), resamples=50), tmp_path / "report.html")
    report(tmp_path, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as image:
        assert image.width == 1100 and 1500 < image.height < 3000
    assert (tmp_path / "report.png").stat().st_size < 200_000


def test_without_a_browser_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no Chromium"):
        report(tmp_path, tmp_path / "report.png")
