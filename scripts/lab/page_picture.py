"""The README's picture of the page, from what the demo's server answered.

python -m retinaserve.scripts.lab.page_picture runs/demo docs/web.jpg

It needs a Chromium and `pip install 'retinaserve[browser]'`.
"""

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.draw import open_picture
from retinaserve.training.errors import UserError

VIEW = {"width": 1180, "height": 740}
SCALE, WIDTH, PICTURES, MOST_BOXES = 2, 1600, 7, 6
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def open_page(repository: Path, **options: Any) -> Iterator[Any]:
    """Serve a repository and its page, and give the page, ready, in a headless browser."""
    from playwright.sync_api import sync_playwright

    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        raise UserError("no Chromium is installed", "apt-get install chromium")
    free = ServerOptions.free_ports()
    with TritonServer(repository, free) as server:
        server.wait_until_ready()
        command = [
            sys.executable,
            "-m",
            "retinaserve",
            "web",
            "--port",
            "0",
            "--server",
            server.grpc_url,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program, sync_playwright() as driver:
            assert program.stdout is not None
            try:
                address = program.stdout.readline().split()[-1]
                running = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
                page = running.new_context(**options).new_page()
                page.goto(address)
                page.wait_for_selector("#state[data-state=ready]")
                yield page
                running.close()
            finally:
                program.terminate()


def page_picture(demo: Path, output: Path) -> None:
    """Show the first held-out pictures that are wider than high to the page and write a picture of it."""
    files = sorted((demo / "data" / "val" / "images").iterdir())
    wide = [path for path in files if open_picture(path).width > open_picture(path).height][:PICTURES]
    with open_page(demo / "repository", viewport=VIEW, device_scale_factor=SCALE) as page:
        _drop(page, wide, already=0)
        # Several boxes, but not so many that they hide the picture.
        counts = [int(text) for text in page.locator("#strip .badge").all_inner_texts()]
        best = wide.pop(max(range(len(counts)), key=lambda n: counts[n] if counts[n] <= MOST_BOXES else 0))
        # Again, that one last and alone: its times are those of one picture, not of seven at once.
        page.reload()
        page.wait_for_selector("#state[data-state=ready]")
        _drop(page, wide, already=0)
        _drop(page, [best], already=len(wide))
        page.click(f"#strip li:nth-child({len(wide) + 1}) button")
        page.wait_for_timeout(500)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    shot.save(output, quality=82, optimize=True)


def _drop(page: Any, files: list[Path], *, already: int) -> None:
    page.set_input_files("#files", files)
    page.wait_for_selector(f"#strip li:nth-child({already + len(files)}) button[data-state=done]")
    page.wait_for_timeout(1000)  # thumbnails


if __name__ == "__main__":
    page_picture(Path(sys.argv[1]), Path(sys.argv[2]))
