"""Fixtures of more than one test file."""

import os
from collections.abc import Iterator
from pathlib import Path

# Triton reads it when it is first imported, which torch does: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import array_types
import jaxtyping
import pytest
from helpers import browser
from playwright.sync_api import Browser

jaxtyping.jaxtyped = array_types.jaxtyped  # before the first import of the package, around which it stands


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser a test file, not one a session: Playwright's event loop would be in the way of tests with asyncio."""
    with browser.started(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def browser_page(shared_browser: Browser) -> Iterator[browser.BrowserPage]:
    """A new page of the browser; what it opened is closed after the test."""
    page = browser.BrowserPage(shared_browser)
    yield page
    page.page.close()


@pytest.fixture
def unchecked_arrays() -> Iterator[None]:
    """Arrays of a wrong type or shape reach the code, which has something to say to them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
