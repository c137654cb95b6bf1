"""The page in a real browser on the real server: what is drawn where, keys and pointer, outages."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from retinaserve.build_tools.graph.graft import graft, save
from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.eval.client.client import Client
from retinaserve.eval.predictions import coco_results, json_line
from retinaserve.eval.web.app import MOST_UPLOADS
from retinaserve.eval.web.gateway import Gateway
from retinaserve.scripts.server.triton import Server, ServerOptions, TritonServer, free_ports
from tests.eval.web.web_page import (
    DROP,
    IMAGE,
    NARROW,
    PASTE,
    assert_drawn,
    choose,
    drawn,
    expected,
    hand,
    opened,
    show,
    until,
    wait_for_boxes,
)
from tests.eval.web.web_server import page_of, stuck_uploads
from tests.images import bad_images, checker, encode

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def repository(toy_heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy detector with boxes that are nearly its anchors, so that their sizes and places differ."""
    folder = tmp_path_factory.mktemp("page")
    heads = onnx.load(toy_heads)
    (weight,) = (each for each in heads.graph.initializer if each.name == "box_head.output.weight")
    weight.CopyFrom(numpy_helper.from_array(0.05 * numpy_helper.to_array(weight), weight.name))
    onnx.save(heads, folder / "heads.onnx")
    save(graft(folder / "heads.onnx"), folder / "model.onnx")
    return build_repository(folder / "model.onnx", folder / "repository").repository


@pytest.fixture(scope="module")
def server(browser: Any, repository: Path) -> Iterator[TritonServer]:
    """A server of this module's own; without a browser nothing is started."""
    with Server(repository) as running:
        yield running


@pytest.fixture(scope="module")
def url(browser: Any, server: TritonServer) -> Iterator[str]:
    with page_of(Gateway(server.grpc_url, metrics=server.metrics_url)) as address:
        yield address


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as tab:
        yield tab


def test_a_page_without_images_explains_itself(page: Any) -> None:
    text = page.inner_text("#empty")
    for word in ("Drop images here", "choose files", "disc, box, étoile filante", "32 MiB", "forgotten"):
        assert word in text
    assert page.locator("#take").is_hidden() and page.locator("#time").is_hidden()


@pytest.mark.parametrize("how", [DROP, PASTE], ids=["dropped", "pasted"])
def test_boxes_are_drawn_where_the_server_said(page: Any, server: TritonServer, how: str) -> None:
    image = encode(checker(300, 200))
    hand(page, how, "checker.jpg", image)
    wait_for_boxes(page)
    assert_drawn(page, expected(server, image))
    assert page.inner_text("#caption-name") == "checker.jpg" and "300 \u00d7 200" in page.inner_text(
        "#caption-size"
    )


def test_the_lines_pixels_have_the_classes_colour(page: Any, server: TritonServer, tmp_path: Path) -> None:
    """Read from a screenshot: at each edge's middle, unless another box or a label lies there."""
    image = show(page)
    page.uncheck("#labels-on")
    found = expected(server, image)
    page.screenshot(path=tmp_path / "page.png")
    screen = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    frame = page.locator("#image").bounding_box()
    scale = frame["width"] / 300
    hits = 0
    for (x1, y1, x2, y2), kind in zip(found.boxes.tolist(), found.classes.tolist(), strict=True):
        colour = page.evaluate(
            "(kind) => getComputedStyle(document.querySelector(`#boxes g[data-index='${kind}']`)).color",
            int(np.flatnonzero(found.classes == kind)[0]),
        )
        wanted = np.array([int(value) for value in colour[4:-1].split(",")])
        middles = [((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2), (x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2)]
        for x, y in middles:
            column, row = round(frame["x"] + x * scale), round(frame["y"] + y * scale)
            around = screen[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].reshape(-1, 3)
            hits += bool((np.abs(around - wanted).max(axis=1) < 12).any())
    assert hits >= 0.8 * 4 * len(found)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_phone_photos(page: Any, server: TritonServer, orientation: int) -> None:
    image = encode(checker(300, 200), orientation=orientation)
    show(page, image)
    until(lambda: page.evaluate("document.getElementById('image').naturalWidth"), "the image was not shown")
    size = page.evaluate(
        "[document.getElementById('image').naturalWidth, document.getElementById('image').naturalHeight]"
    )
    found = expected(server, image)
    assert found.size is not None and size == [found.size[1], found.size[0]]
    assert_drawn(page, found)


def test_boxes_stay_at_any_zoom(page: Any, server: TritonServer) -> None:
    image = show(page)
    width = page.locator("#image").bounding_box()["width"]
    for _ in range(3):
        page.keyboard.press("+")
    assert page.locator("#image").bounding_box()["width"] > 2 * width
    assert_drawn(page, expected(server, image), tolerance=0.1 + 0.6)
    stroke = page.evaluate("getComputedStyle(document.querySelector('#boxes .box')).vectorEffect")
    assert stroke == "non-scaling-stroke", "lines keep their width"
    page.keyboard.press("0")
    assert page.locator("#image").bounding_box()["width"] == pytest.approx(width)


def test_score_and_classes_ask_the_server_nothing(page: Any, server: TritonServer) -> None:
    image = show(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    everything = expected(server, image, 0.0)
    page.locator("#score").fill("0.05")
    assert len(drawn(page)) == len(everything) == page.locator("#list li").count()
    score = round(float(np.median(everything.scores)), 2)
    page.locator("#score").fill(str(score))
    above = expected(server, image, score)
    assert 0 < len(above) < len(everything)
    assert_drawn(page, above)
    assert f"{len(above)} of {len(everything)} boxes" in page.inner_text("#count")
    with Client(server.grpc_url) as client:
        name = client.class_names[int(above.classes[0])]
    page.uncheck(f"#classes input[data-name='{name}']")
    assert len(drawn(page)) == int((above.classes != above.classes[0]).sum())
    page.locator("#score").fill("1")
    assert "Nothing passes" in page.inner_text("#nothing")
    assert not [address for address in asked if "/api/detect" in address]


def test_list_and_boxes_light_each_other(page: Any) -> None:
    show(page)
    page.hover("#list li:nth-child(2)")
    lit = page.get_attribute("#list li:nth-child(2)", "data-index")
    assert page.locator("#boxes g.lit").get_attribute("data-index") == lit
    page.hover("h1")
    assert page.locator("#boxes g.lit").count() == 0
    # Drawn last of those with an area, so nothing covers it.
    smallest = page.locator("#boxes g:has(.box:not([width='0']):not([height='0']))").last
    smallest.locator(".box").hover()
    assert page.locator("#list li.lit").get_attribute("data-index") == smallest.get_attribute("data-index")
    smallest.locator(".box").click()
    assert page.evaluate("document.activeElement.closest('li')?.dataset.index") == smallest.get_attribute(
        "data-index"
    )


def test_the_keyboard_is_enough(page: Any) -> None:
    choose(page, ("a.jpg", encode(checker(300, 200))), ("b.jpg", encode(checker(200, 300, seed=1))))
    until(lambda: page.locator("#strip button").count() == 2, "two thumbnails")
    wait_for_boxes(page)
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#caption-name") == "b.jpg"
    page.keyboard.press("]")
    assert page.inner_text("#score-text") == "0.10"
    page.keyboard.press("[")
    wait_for_boxes(page)
    page.locator("#list button").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate(
        "document.activeElement.closest('li') === document.querySelector('#list li:nth-child(2)')"
    )
    assert page.locator("#boxes g.lit").count() == 1, "focus lights as the pointer does"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Delete")
    assert page.inner_text("#caption-name") == "a.jpg"
    page.locator("#tab-images").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#server").is_visible() and page.locator("#images").is_hidden()
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button,input')].filter((e) => e.checkVisibility() && !e.labels?.length &&"
        " !(e.textContent.trim() || e.ariaLabel)).length"
    )
    assert unnamed == 0


def test_a_bad_file_says_what_is_wrong(page: Any) -> None:
    data, words = bad_images()["jpeg truncated"]
    choose(page, ("good.jpg", encode(checker(300, 200))), ("cut.jpg", data))
    until(lambda: page.locator("#strip button[data-state=failed]").count(), "the bad one did not fail")
    page.click("#strip li:nth-child(2) button")
    assert words in page.inner_text("#problem") and "can't be read" in page.inner_text("#problem h2")
    assert page.locator("#boxes g").count() == 0
    page.click("#strip li:nth-child(1) button")
    assert page.locator("#problem").is_hidden() and page.locator("#boxes g").count() > 0


def test_a_busy_server_may_be_asked_again(page: Any, url: str) -> None:
    with stuck_uploads(url, MOST_UPLOADS):
        choose(page, ("checker.jpg", encode(checker(300, 200))))
        until(lambda: "is busy" in page.inner_text("#problem"), "nothing said that it is busy")
    time.sleep(0.3)
    page.click("#problem button")
    wait_for_boxes(page)
    assert page.locator("#problem").is_hidden()


def test_a_format_the_browser_does_not_know(page: Any, server: TritonServer) -> None:
    image = encode(checker(300, 200), "TIFF")
    choose(page, ("scan.tiff", image), kind="image/tiff")
    wait_for_boxes(page)
    until(lambda: page.evaluate(f"{IMAGE}.naturalWidth") == 300, "no preview came")
    assert_drawn(page, expected(server, image))


def test_ten_images_at_once(page: Any, server: TritonServer) -> None:
    images = [encode(checker(300 + 10 * n, 200, seed=n)) for n in range(10)]
    choose(page, *((f"{n}.jpg", image) for n, image in enumerate(images)))
    until(lambda: page.locator("#strip button[data-state=done]").count() == 10, "not all were answered")
    counts = [int(text) for text in page.locator("#strip .badge").all_inner_texts()]
    assert counts == [len(expected(server, image)) for image in images]
    until(
        lambda: page.evaluate("[...document.querySelectorAll('#strip canvas')].every((c) => c.height === 112)"),
        "thumbs",
    )
    for n in (3, 9):
        page.click(f"#strip li:nth-child({n + 1}) button")
        assert_drawn(page, expected(server, images[n]))
    assert "Of this image alone" in page.inner_text("#time-note")
    rows = page.inner_text("#parts")
    assert "preprocess" in rows and "retinanet" in rows and "queues" in rows


def test_what_is_copied_is_what_predict_prints(browser: Any, url: str, server: TritonServer) -> None:
    images = {"a.jpg": encode(checker(300, 200)), "b.jpg": encode(checker(240, 200, seed=4))}
    with opened(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        choose(page, *images.items())
        until(lambda: page.locator("#strip button[data-state=done]").count() == 2, "not all were answered")

        def copied(kind: str) -> Any:
            page.click(f"#copy-{kind}")
            until(lambda: "Copied" in page.inner_text("#copied"), "nothing was copied")
            return json.loads(page.evaluate("navigator.clipboard.readText()"))

        found = {name: expected(server, image) for name, image in images.items()}
        with Client(server.grpc_url) as client:
            names, ids = client.class_names, client.category_ids
        assert copied("json") == json.loads(json_line(Path("a.jpg"), found["a.jpg"], names))
        page.check("#all")
        coco, wanted = (
            copied("coco"),
            coco_results([(Path(name), each) for name, each in found.items()], names, ids),
        )
        assert coco["images"] == wanted["images"] and coco["categories"] == wanted["categories"]
        for got, annotation in zip(coco["annotations"], wanted["annotations"], strict=True):
            for box in (got, annotation):  # hundredths may be rounded the other way
                box["numbers"] = [*box.pop("bbox"), box.pop("area")]
            assert got.pop("numbers") == pytest.approx(annotation.pop("numbers"), abs=0.011)
            assert got == annotation


def test_a_narrow_screen(browser: Any, url: str, server: TritonServer) -> None:
    with opened(browser, url, viewport=NARROW, device_scale_factor=3, has_touch=True) as page:
        image = show(page)
        assert_drawn(page, expected(server, image))
        for tab in ("images", "server"):
            page.click(f"#tab-{tab}")
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"], "it scrolls sideways"
        assert page.locator("#server table").is_visible()


def test_the_server_tab_counts(page: Any) -> None:
    page.click("#tab-server")
    until(lambda: page.locator("#server tbody tr").count() == 3, "no table")
    page.click("#server .choice label:nth-child(2)")
    requests = "#server tbody tr:nth-child(1) td:nth-child(3)"
    before = int(page.inner_text(requests).replace(",", ""))
    page.click("#tab-images")
    show(page)
    page.click("#tab-server")
    until(lambda: int(page.inner_text(requests).replace(",", "")) == before + 1, "the count did not move")
    text = page.inner_text("#server")
    for word in ("Triton 2.", "detector v1", "ready", "Mean batch", "Latency", "CPU", "3 classes"):
        assert word in text


def test_the_server_goes_and_comes_back(browser: Any, repository: Path) -> None:
    http_port, grpc_port, metrics_port = free_ports(3)
    options = ServerOptions(http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)
    image = encode(checker(300, 200))
    with page_of(Gateway(f"127.0.0.1:{grpc_port}")) as url, opened(browser, url, ready=False) as page:
        until(lambda: "no Triton server answers" in page.inner_text("#banner"), "no banner")
        choose(page, ("early.jpg", image))
        until(lambda: "The server is away" in page.inner_text("#problem"), "no words about the outage")
        with TritonServer(repository, options) as running:
            running.wait_until_ready(60)
            wait_for_boxes(page)  # by itself
            assert page.locator("#banner").is_hidden() and page.locator("#problem").is_hidden()
            assert_drawn(page, expected(running, image))
        until(lambda: page.get_attribute("#state", "data-state") == "away", "the outage was not noticed")
        assert page.locator("#boxes g").count() > 0, "what was answered stays"
        page.click("#tab-server")
        assert "The server is away" in page.inner_text("#server")


def test_the_pages_own_program_ends_and_starts_again(browser: Any, server: TritonServer) -> None:
    (port,) = free_ports(1)
    with page_of(Gateway(server.grpc_url), port=port) as url:
        tab = opened(browser, url)
        page = tab.__enter__()
    try:
        until(lambda: "retinaserve web" in page.inner_text("#banner"), "the end was not noticed")
        choose(page, ("late.jpg", encode(checker(300, 200))))
        with page_of(Gateway(server.grpc_url), port=port):
            wait_for_boxes(page)
    finally:
        tab.__exit__(None)


LONG_TASKS = """() => {
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
  }).observe({entryTypes: ["longtask"]});
}"""


def test_twenty_megapixels_do_not_freeze_the_page(browser: Any, url: str, server: TritonServer) -> None:
    image = encode(checker(5472, 3648, cell=300), quality=90)
    with opened(browser, url) as page:
        page.evaluate(LONG_TASKS)
        choose(page, ("photo.jpg", image))
        wait_for_boxes(page)
        for _ in range(4):
            page.keyboard.press("+")
        page.keyboard.press("0")
        until(lambda: page.evaluate(f"{IMAGE}.complete"), "the image was not shown")
        assert_drawn(page, expected(server, image), tolerance=12)  # a quarter of a pixel on the screen is 2 of its
        assert page.evaluate("window.longest") < 250, "ms; a decode on the page's thread takes more"
