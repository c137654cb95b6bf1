"""The documentation's picture of an evaluation report: what a headless Chromium shows of it, without its images.

python -m retinaserve.scripts.lab.report_picture runs/demo/report.html docs/report.png

It needs Chromium on the PATH and `pip install 'retinaserve[browser]'`.
"""

import importlib
import io
import shutil
import sys
from pathlib import Path

from PIL import Image

from retinaserve.training.errors import Exit, UserError

WIDTH, COLOURS = 1100, 160


def report_picture(report: Path, output: Path) -> None:
    """Draw the page from its head to the section of images into a PNG. Raises UserError without a browser."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        raise UserError("no Chromium is installed", "apt-get install chromium", code=Exit.USAGE)
    playwright = importlib.import_module("playwright.sync_api")  # an optional package without a stub of ours
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        end = page.locator("#images").bounding_box()["y"]
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end}
        shot = page.screenshot(full_page=True, clip=clip)
        browser.close()
    # A palette: flat colours and letters take a third of the bytes.
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(output, optimize=True)


if __name__ == "__main__":
    report_picture(Path(sys.argv[1]), Path(sys.argv[2]))
