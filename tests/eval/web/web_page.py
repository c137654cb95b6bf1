"""The page in a browser's tab, for tests: opening it, handing it images, reading what it drew."""

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest

from retinaserve.eval.client.client import Client
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.detections import Detections
from tests.images import checker, encode

SCORE = 0.05  # the toy detector is never surer than 0.1; the page itself starts at 0.3
IMAGE = "document.getElementById('image')"
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


class opened:
    """A tab of its own; closing it fails the test when the page threw, or asked another origin for anything."""

    def __init__(self, browser: Any, url: str, *, ready: bool = True, **options: Any) -> None:
        self._context = browser.new_context(**{"viewport": WIDE, **options})
        self._url, self._ready = url, ready

    def __enter__(self) -> Any:
        tab = self._context.new_page()
        self._wrong: list[str] = []
        tab.on("pageerror", lambda error: self._wrong.append(str(error)))
        tab.on("console", lambda line: "Content Security" in line.text and self._wrong.append(line.text))
        tab.on("request", lambda asked: self._foreign(asked.url))
        tab.goto(self._url)
        if self._ready:
            tab.wait_for_selector("#state[data-state=ready]")
        tab.locator("#score").fill(str(SCORE))
        tab.evaluate("document.activeElement.blur()")  # the slider has arrow keys of its own
        return tab

    def __exit__(self, kind: object, *_: object) -> None:
        self._context.close()
        if kind is None:
            assert self._wrong == [], self._wrong

    def _foreign(self, address: str) -> None:
        if not address.startswith((self._url, f"blob:{self._url}")):
            self._wrong.append(f"asked {address}")


def until(true: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """Wait for a condition; the page's policy forbids Playwright's own wait, which evaluates text."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.03)
    return value


def choose(page: Any, *files: tuple[str, bytes], kind: str = "image/jpeg") -> None:
    page.set_input_files("#files", [{"name": name, "mimeType": kind, "buffer": data} for name, data in files])


DROP = """([name, text, kind]) => {
  const data = new DataTransfer();
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  data.items.add(new File([bytes], name, {type: kind}));
  for (const type of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true}));
  }
}"""
PASTE = """([name, text, kind]) => {
  const data = new DataTransfer();
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  data.items.add(new File([bytes], name, {type: kind}));
  document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
}"""


def hand(page: Any, how: str, name: str, data: bytes, kind: str = "image/jpeg") -> None:
    page.evaluate(how, [name, base64.b64encode(data).decode(), kind])


def expected(server: TritonServer, image: bytes, score: float = SCORE) -> Detections:
    with Client(server.grpc_url) as client:
        return client.predict([image])[0].above(score)


def drawn(page: Any) -> list[dict[str, float]]:
    """The rectangles on the screen, in the image's pixels by where the image itself is on the screen."""
    rectangles: list[dict[str, float]] = page.evaluate(
        """() => {
          const frame = document.getElementById("image").getBoundingClientRect();
          const view = document.getElementById("boxes").getAttribute("viewBox");
          const [, , width, height] = view.split(" ").map(Number);
          const x = (value) => ((value - frame.left) / frame.width) * width;
          const y = (value) => ((value - frame.top) / frame.height) * height;
          return [...document.querySelectorAll("#boxes g")].map((group) => {
            const at = group.querySelector(".box").getBoundingClientRect();
            return {index: Number(group.dataset.index), box: [x(at.left), y(at.top), x(at.right), y(at.bottom)]};
          });
        }"""
    )
    return sorted(rectangles, key=lambda rectangle: rectangle["index"])


def wait_for_boxes(page: Any) -> None:
    until(lambda: page.locator("#boxes g").count(), "no boxes came")


def show(page: Any, image: bytes | None = None) -> bytes:
    """Give the page an image, a checkerboard by default, wait for its boxes, and return it."""
    image = image or encode(checker(300, 200))
    choose(page, ("checker.jpg", image))
    wait_for_boxes(page)
    return image


def assert_drawn(page: Any, found: Detections, *, tolerance: float = 0.6) -> None:
    boxes = drawn(page)
    assert len(boxes) == len(found) > 0
    for rectangle, box in zip(boxes, found.boxes.tolist(), strict=True):
        assert rectangle["box"] == pytest.approx(box, abs=tolerance)
