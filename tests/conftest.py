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
from playwright.sync_api import Page

jaxtyping.jaxtyped = array_types.jaxtyped  # before the first import of the package, around which it stands


@pytest.fixture(scope="module")
def shared_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser a test file, not one a session: Playwright's event loop would be in the way of tests with asyncio."""
    with browser.started(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def browser_page(shared_page: Page) -> Iterator[browser.BrowserPage]:
    """The page of the browser, with nothing in it of the test before."""
    page = browser.BrowserPage(shared_page)
    yield page
    page.leave()


@pytest.fixture
def unchecked_arrays() -> Iterator[None]:
    """Arrays of a wrong type or shape reach the code, which has something to say to them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
