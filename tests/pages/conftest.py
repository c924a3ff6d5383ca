"""Fixtures of the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.page_browser import BROWSER, running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser, for all tests of a file."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if BROWSER is None:
        pytest.skip("no chromium is installed")
    with running(playwright) as found:
        yield found
