"""A real headless browser for tests of pages: any Chromium of the system, driven by playwright.

    with open_browser() as browser:
        page = browser.new_page()

Without one, `open_browser` skips the test and says what is missing.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Give playwright's browser."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'retinaserve[browser]'"
    )
    binary = next((path for name in NAMES if (path := shutil.which(name))), None)
    if binary is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox needs rights that containers don't give; the pages are ours.
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
