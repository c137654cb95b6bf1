"""How long the page takes from a picture's choice to its boxes, and how long its thread is busy at a stretch.

python -m retinaserve.scripts.lab.page_speed runs/demo/repository PICTURE.jpg ...

Each picture is shown TURNS times in a headless Chromium. "page" is the time from choice to painted boxes without
what the server says it took; the browser shares the machine's cores with the server. Run it on a machine at rest.
"""

import statistics
import sys
from pathlib import Path

from PIL import Image

from retinaserve.scripts.lab.page_picture import open_page

TURNS = 11
WATCH = """() => {
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
  }).observe({entryTypes: ["longtask"]});
  const files = document.getElementById("files");
  files.addEventListener("change", () => (window.chosen = performance.now()), {capture: true});
  new MutationObserver(() => {
    if (!window.chosen || !document.querySelector("#time:not([hidden])")) return;
    requestAnimationFrame(() => requestAnimationFrame(() => {
      window.shown ??= performance.now() - window.chosen; // the second frame: the first one is on the screen
    }));
  }).observe(document.getElementById("count"), {childList: true});
}"""
# What the page itself shows of the server's part: everything but the last line, which is the rest.
SERVER = """() => [...document.querySelectorAll("#parts dd")].slice(0, -1)
  .reduce((sum, part) => sum + Number(part.textContent.replace(/[^0-9.]/g, "")), 0)"""


def page_speed(repository: Path, pictures: list[Path]) -> list[str]:
    """Return a line of medians for each picture; the first turn warms up and is left out."""
    lines = []
    with open_page(repository) as page:
        page.evaluate(WATCH)
        for path in pictures:
            with Image.open(path) as picture:
                megapixels = picture.width * picture.height / 1e6
            whole, server, longest = [], [], []
            for _ in range(TURNS):
                page.evaluate("window.shown = undefined; window.longest = 0")
                page.set_input_files("#files", path)
                while not (shown := page.evaluate("window.shown")):
                    page.wait_for_timeout(10)
                page.wait_for_timeout(300)  # the picture itself may still be decoded
                whole.append(shown)
                server.append(page.evaluate(SERVER))
                longest.append(page.evaluate("window.longest"))
                page.keyboard.press("Delete")
            page_ms = [one - two for one, two in zip(whole[1:], server[1:], strict=True)]
            lines.append(
                f"{path.name} ({megapixels:.1f} MP): {statistics.median(whole[1:]):.0f} ms to the boxes, server "
                f"{statistics.median(server[1:]):.0f} ms, page {statistics.median(page_ms):.0f} ms; longest task "
                f"{max(longest):.0f} ms"
            )
    return lines


if __name__ == "__main__":
    sys.stdout.write("\n".join(page_speed(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])) + "\n")
