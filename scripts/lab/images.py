"""The images of README and docs, and the checkpoint of examples/, from what `make demo` left.

    python -m retinaserve.scripts.lab.images readme runs/demo docs/detections.jpg
    python -m retinaserve.scripts.lab.images page runs/demo docs/web.jpg
    python -m retinaserve.scripts.lab.images report runs/demo docs/report.png
    python -m retinaserve.scripts.lab.images checkpoint runs/demo examples/shapes.pth

page and report need a Chromium and `pip install 'retinaserve[browser]'`.
"""

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from retinaserve.eval.client.client import Client
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.triton import Server
from retinaserve.training.checkpoint import Checkpoint, load, save
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.images.draw import contact_sheet, draw, open_image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
COLUMNS, TILE, SCORE, DETECTIONS = 4, (400, 300), 0.5, 8  # of the README's
VIEW, SCALE, WIDTH, DROPPED, MOST_BOXES = {"width": 1180, "height": 740}, 2, 1600, 7, 6  # of the page's
REPORT_WIDTH, COLOURS = 1100, 160


@contextmanager
def open_browser() -> Iterator[Any]:
    """Give playwright's headless Chromium. Raises UserError where none is installed."""
    binary = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if binary is None:
        raise UserError("no Chromium is installed", "apt-get install chromium", code=Exit.USAGE)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(repository: Path, **options: Any) -> Iterator[Any]:
    """Serve a repository and its page, and give the page, ready, in a browser."""
    with Server(repository) as server:
        command = [sys.executable, "-m", "retinaserve", "web", "--port", "0", "--server", server.grpc_url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program, open_browser() as browser:
            assert program.stdout is not None
            try:
                page = browser.new_context(**options).new_page()
                page.goto(program.stdout.readline().split()[-1])
                page.wait_for_selector("#state[data-state=ready]")
                yield page
            finally:
                program.terminate()


def readme(demo: Path, output: Path) -> None:
    """Draw what the demo's repository answers for the first held-out images with more than two boxes."""
    files = _wide(demo)
    with Server(demo / "repository") as server, Client(server.grpc_url) as client:
        answers = client.predict([path.read_bytes() for path in files])
        names = client.class_names
    found = [(path, answer.above(SCORE)) for path, answer in zip(files, answers, strict=True)]
    chosen = [(path, answer) for path, answer in found if len(answer) > 2][:DETECTIONS]
    drawn = [(draw(open_image(path), answer, names, within=TILE), path.name) for path, answer in chosen]
    contact_sheet(drawn, columns=COLUMNS, tile=TILE).save(output, quality=88)


def page(demo: Path, output: Path) -> None:
    """Show the first held-out images to the page, and write what it looks like."""
    files = _wide(demo)[:DROPPED]
    with open_page(demo / "repository", viewport=VIEW, device_scale_factor=SCALE) as shown:
        _drop(shown, files, already=0)
        # Several boxes, but not so many that they hide the image.
        counts = [int(text) for text in shown.locator("#strip .badge").all_inner_texts()]
        best = files.pop(max(range(len(counts)), key=lambda n: counts[n] if counts[n] <= MOST_BOXES else 0))
        # Again, that one last and alone: its times are those of one image, not of seven at once.
        shown.reload()
        shown.wait_for_selector("#state[data-state=ready]")
        _drop(shown, files, already=0)
        _drop(shown, [best], already=len(files))
        shown.click(f"#strip li:nth-child({len(files) + 1}) button")
        shown.wait_for_timeout(500)
        screen = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    screen.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    screen.save(output, quality=82, optimize=True)


def report(demo: Path, output: Path) -> None:
    """Write the demo's report from its head to the section of images as a PNG."""
    with open_browser() as browser:
        shown = browser.new_page(viewport={"width": REPORT_WIDTH, "height": 900}, color_scheme="light")
        shown.goto((demo / "report.html").resolve().as_uri())
        end = shown.locator("#images").bounding_box()["y"]
        clip = {"x": 0, "y": 0, "width": REPORT_WIDTH, "height": end}
        screen = shown.screenshot(full_page=True, clip=clip)
    # A palette: flat colours and letters take a third of the bytes.
    Image.open(io.BytesIO(screen)).convert("RGB").quantize(COLOURS).save(output, optimize=True)


def checkpoint(demo: Path, output: Path) -> None:
    """Write the demo's checkpoint without the optimizer's state: a third of the file."""
    found = load(demo / "checkpoint.pth")
    save(output, Checkpoint(found.spec, found.weights, found.iteration))


def _wide(demo: Path) -> list[Path]:
    """Return the held-out images that are wider than high."""
    sizes = {path: open_image(path).size for path in sorted((demo / "data" / "val" / "images").iterdir())}
    return [path for path, (width, height) in sizes.items() if width > height]


def _drop(shown: Any, files: list[Path], *, already: int) -> None:
    shown.set_input_files("#files", files)
    shown.wait_for_selector(f"#strip li:nth-child({already + len(files)}) button[data-state=done]")
    shown.wait_for_timeout(1000)  # thumbnails


def main() -> None:
    """Write one of the project's images, or its example checkpoint."""
    makers = {each.__name__: each for each in (readme, page, report, checkpoint)}
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", choices=makers)
    parser.add_argument("demo", type=Path, help="The folder that `make demo` wrote.")
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    makers[given.what](given.demo, given.output)


if __name__ == "__main__":
    run(main)
