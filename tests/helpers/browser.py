"""Pages in a real browser: Playwright drives the distribution's Chromium, alone on its machine.

Tests ask for the fixture ``browser_page`` (conftest.py), which skips them where there is no browser.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


@contextmanager
def started(home: Path) -> Iterator[Browser]:
    """A browser whose settings and caches stay in ``home``; skips the test where there is none."""
    path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser found ({', '.join(BROWSERS)})")
    with sync_playwright() as playwright:
        arguments, environment = [*FLAGS.split(), OFFLINE], {**os.environ, "HOME": str(home)}
        browser = playwright.chromium.launch(executable_path=path, args=arguments, env=environment)
        yield browser
        browser.close()


class BrowserPage:
    """A page in a browser profile of its own, with what it said and whom it asked since it was made."""

    def __init__(self, browser: Browser) -> None:
        self.page = browser.new_page()
        self.said: list[str] = []
        """Lines in the console and errors that no script caught."""
        self.requests: list[str] = []
        """Addresses asked for, files of this machine left out."""
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, address: str) -> None:
        if not address.startswith(("file:", "data:", "blob:", "about:")):
            self.requests.append(address)

    def open(self, page: Path | str, width: int = 1400) -> str:
        """Load a file or an address in a window of that width; its HTML after its scripts ran."""
        self.page.set_viewport_size({"width": width, "height": 4000})
        self.page.goto("about:blank")  # another fragment of the same address would load nothing
        self.page.goto(page.as_uri() if isinstance(page, Path) else page)
        return self.page.content()

    def scroll_width(self) -> int:
        """How wide the document is, in pixels: wider than the window where it scrolls sideways."""
        return self.page.evaluate("document.scrollingElement.scrollWidth")
