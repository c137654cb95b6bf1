"""A headless browser for tests of pages: a Chromium of the system, driven by playwright.

    with open_browser() as browser:
        page = browser.new_page()

Without one, the test is skipped with a reason.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Chromium's own sandbox needs rights that containers don't give; the pages are ours. No name but localhost
# resolves, so that the browser asks nothing of the network by itself either.
ARGUMENTS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"]


def need_browser() -> str:
    """Return the path of a Chromium, or skip the test and say what is missing."""
    pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'retinaserve[browser]'"
    )
    binary = next((path for name in NAMES if (path := shutil.which(name))), None)
    if binary is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    return binary


@contextmanager
def open_browser(*arguments: str) -> Iterator[Any]:
    """Give playwright's browser, started with further arguments.

    No longer than for a module: its event loop stays in this thread, where asyncio.run() is then impossible.
    """
    binary = need_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=[*ARGUMENTS, *arguments])
        try:
            yield browser
        finally:
            browser.close()
