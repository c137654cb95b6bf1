"""The page in a real browser: it shows the numbers, follows the threshold, runs nothing foreign, loads nothing."""

from pathlib import Path
from typing import Any

import pytest

from retinaserve.eval.report.analysis import Analysis, read_baseline
from retinaserve.eval.report.page.page import page, write_page
from retinaserve.training.files import write_json
from tests.eval.scenes import ANSWERS, CATEGORIES, LABELS, Row, label, report_on
from tests.images import checker

EVIL = "</script><script>alert('1')</script>\"'&\u2028é {{data}}"
EVIL_FILE = '"><img src=x onerror=alert(2)>{{style}}.png'


class Opened:
    """A page in the browser, and everything it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}") or dialog.dismiss()
        )
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def figures(self) -> dict[str, str]:
        cells = self.page.locator("#at-threshold dd")
        return {cell.get_attribute("data-name"): cell.inner_text() for cell in cells.all()}

    def table(self, selector: str) -> list[list[str]]:
        rows = self.page.locator(f"{selector} tbody tr").all()
        return [row.locator("th, td").all_inner_texts() for row in rows]

    def slide(self, value: int) -> None:
        self.page.locator("#threshold").fill(str(value))

    def check_quiet(self) -> None:
        loaded = [url for url in self.requests if not url.startswith("data:")]
        assert self.complaints == [] and len(loaded) == 1, (self.complaints, loaded)


def write(
    folder: Path,
    answers: dict[int, list[Row]] = ANSWERS,
    *,
    categories: dict[int, str] = CATEGORIES,
    labels: Any = LABELS,
    first: str = "a.png",
) -> Path:
    truth = label(folder, labels, images={10: first, 11: "b.png", 12: "empty.png"}, categories=categories)
    for number, name in enumerate(truth.images.values()):
        checker(720, 720, seed=number).save(folder / name)
    write_page(Analysis.of(report_on(truth, answers), resamples=50), folder / "report.html")
    return folder / "report.html"


def test_the_numbers_are_there_and_nothing_is_loaded(tmp_path: Path, browser: Any) -> None:
    opened = Opened(browser, write(tmp_path))
    text = opened.page.inner_text("body")
    assert "labels.json: AP 0.337" in text  # 51/101 * 2/3
    cats, dogs = opened.table("#class-table")
    assert cats == ["cat", "2", "4", "0.505", "0.505", "0.500", "0.81", "1.000", "0.500", "0.667"]
    assert dogs == ["dog", "2", "3", "0.168", "0.168", "0.500", "0.00", "-", "0.000", "0.000"]
    assert opened.figures() == {
        "precision": "1.000", "recall": "0.250", "F1": "0.400", "right": "1", "wrong": "0", "not found": "3",
    }  # fmt: skip
    errors = {row[0]: row[1:3] for row in opened.table("#error-table")}
    assert errors["missed"] == ["3", "0.083"] and errors["localisation"] == ["0", "0.165"]
    opened.check_quiet()


# As tests/eval/report/test_thresholds.py has them, by hand.
MOVED = {
    0: (["0.286", "0.500", "2", "5", "2"], [[1, 1, 0], [0, 1, 1], [3, 1, ""]], [1, 1, 1, 1, 1, 1]),
    65: (["0.333", "0.250", "1", "2", "3"], [[1, 0, 1], [0, 0, 2], [2, 0, ""]], [1, 0, 0, 1, 0, 2]),
    100: (["-", "0.000", "0", "0", "4"], [[0, 0, 2], [0, 0, 2], [0, 0, ""]], [0, 0, 0, 0, 0, 4]),
}


@pytest.mark.parametrize("step", MOVED)
def test_everything_follows_the_threshold(step: int, tmp_path: Path, browser: Any) -> None:
    figures, confusion, errors = MOVED[step]
    opened = Opened(browser, write(tmp_path))
    opened.slide(step)
    shown = opened.figures()
    assert [shown[name] for name in ("precision", "recall", "right", "wrong", "not found")] == figures
    rows = [row[1:] for row in opened.table("#confusion")]
    known = [[str(value) for value in row] for row in confusion]
    assert rows == known
    assert [int(row[1]) for row in opened.table("#error-table")] == errors
    boxes = opened.page.locator(".box.detected:visible").count()
    assert boxes == {0: 7, 65: 3, 100: 0}[step]
    lost = opened.page.locator(".box.truth.lost").count()
    assert lost == {0: 2, 65: 3, 100: 4}[step]
    opened.page.locator("#suggested").click()
    assert opened.page.locator("#threshold-value").inner_text() == "0.81"
    opened.check_quiet()


def test_tables_sort_and_classes_are_picked(tmp_path: Path, browser: Any) -> None:
    opened = Opened(browser, write(tmp_path))
    first = "#class-table thead th:nth-child(4) button"
    opened.page.locator(first).click()
    assert [row[0] for row in opened.table("#class-table")] == ["cat", "dog"]
    opened.page.locator(first).click()
    assert [row[0] for row in opened.table("#class-table")] == ["dog", "cat"]
    before = opened.page.locator("#f1-chart").inner_html()
    opened.page.locator("#f1-class").select_option(label="dog")
    assert opened.page.locator("#f1-chart").inner_html() != before
    opened.page.locator("#f1-chart svg").hover(position={"x": 200, "y": 100})
    assert "recall 0." in opened.page.locator("#f1-chart .readout").inner_text()
    opened.check_quiet()


def test_names_from_outside_are_only_text(tmp_path: Path, browser: Any) -> None:
    # A slash would be a folder, so the file's name can't close an element; the class's can.
    path = write(tmp_path, categories={7: EVIL, 3: "dog"}, first=EVIL_FILE)
    opened = Opened(browser, path)
    opened.slide(0)
    assert opened.table("#class-table")[0][0] == EVIL
    assert any(EVIL_FILE in text for text in opened.page.locator("h4").all_inner_texts())
    assert opened.page.locator("img").count() == 0 and opened.page.locator("script").count() == 2
    opened.check_quiet()


def test_a_foreign_script_would_not_run(tmp_path: Path, browser: Any) -> None:
    path = write(tmp_path)
    path.write_text(
        path.read_text().replace("</main>", "<script>alert(1)</script><img src=http://x.invalid/></main>")
    )
    opened = Opened(browser, path)
    assert len(opened.complaints) == 2
    assert all("Content Security Policy" in text for text in opened.complaints), opened.complaints


EMPTY: dict[str, tuple[Any, dict[int, list[Row]]]] = {
    "nothing labelled, nothing found": ([], {}),
    "nothing labelled": ([], ANSWERS),
    "nothing found": (LABELS, {}),
}


@pytest.mark.parametrize("case", EMPTY)
def test_a_page_with_little_to_tell_still_works(case: str, tmp_path: Path, browser: Any) -> None:
    labels, answers = EMPTY[case]
    opened = Opened(browser, write(tmp_path, answers, labels=labels))
    opened.slide(20)
    assert "NaN" not in opened.page.inner_text("body") and "undefined" not in opened.page.inner_text("body")
    opened.check_quiet()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone_in_light_and_dark(tmp_path: Path, browser: Any, scheme: str) -> None:
    path = write(tmp_path)
    opened = Opened(browser, path, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")


def test_the_whole_confusion_is_in_sight(tmp_path: Path, browser: Any) -> None:
    """Eight classes, one with a name of a sentence, in half of a window of 1200 pixels."""
    categories = {n: f"category {n}" for n in range(1, 8)} | {8: "a name that nobody would want to read " * 3}
    labels = [(10, n, (80 * n, 0, 80 * n + 40, 40)) for n in categories]
    answers = {10: [(80 * n, 0, 80 * n + 40, 40, 0.9, place) for place, n in enumerate(categories)]}
    path = write(tmp_path, answers, categories=categories, labels=labels)
    opened = Opened(browser, path, viewport={"width": 1200, "height": 900})
    place = opened.page.locator("#confusion")
    assert place.locator("thead th").count() == 1 + 8 + 1
    assert place.evaluate("each => each.scrollWidth <= each.clientWidth")
    assert max(head.bounding_box()["height"] for head in place.locator("thead th").all()) <= 180
    opened.check_quiet()


def test_a_comparison_shows_what_changed(tmp_path: Path, browser: Any) -> None:
    write(tmp_path)
    truth = label(tmp_path)
    write_json(tmp_path / "old.json", Analysis.of(report_on(truth), resamples=50).to_dict())
    better = {10: [(0, 0, 100, 100, 0.9, 0), (200, 200, 300, 300, 0.8, 0)], 11: ANSWERS[11]}
    baseline = read_baseline(tmp_path / "old.json", truth)
    write_page(Analysis.of(report_on(truth, better), baseline, resamples=50), tmp_path / "report.html")
    opened = Opened(browser, tmp_path / "report.html")
    assert "AP +0.416" in opened.page.inner_text("#comparison")  # (1 + 51/101)/2 - 51/101 * 2/3
    cards = opened.page.locator("#comparison .card").all_inner_texts()
    assert len(cards) == 2 and "1 error before, 0 now" in cards[0]
    assert opened.page.locator("#comparison .card").first.locator("svg").count() == 3
    opened.check_quiet()


def test_pictures_that_cannot_be_shown_are_named(tmp_path: Path) -> None:
    truth = label(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    text = page(Analysis.of(report_on(truth), resamples=50))
    assert text.count("can't be shown here") == 2 and "data:image" not in text
