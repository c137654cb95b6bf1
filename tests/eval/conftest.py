"""What the tests of both pages share."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import open_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser; without one the test is skipped."""
    with open_browser() as running:
        yield running
