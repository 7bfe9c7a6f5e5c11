"""Pages in a real browser: Playwright drives the distribution's Chromium, alone on its machine.

Tests ask for the fixture ``browser_page`` (conftest.py), which skips them where there is no browser.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


@contextmanager
def started(home: Path) -> Iterator[Page]:
    """The one page of a browser whose settings and caches stay in ``home``; skips the test where there is none."""
    path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser found ({', '.join(BROWSERS)})")
    with sync_playwright() as playwright:
        arguments, environment = [*FLAGS.split(), OFFLINE], {**os.environ, "HOME": str(home)}
        browser = playwright.chromium.launch(executable_path=path, args=arguments, env=environment)
        yield browser.new_page()
        browser.close()


class BrowserPage:
    """A page with what it said and whom it asked since this was made.

    The page may have shown others before, for a new one takes a new process; :meth:`leave` forgets them.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        """Lines in the console and errors that no script caught."""
        self.requests: list[str] = []
        """Addresses asked for, files of this machine left out."""
        self._heard: dict[str, Callable[[Any], None]] = {
            "console": lambda message: self.said.append(message.text),
            "pageerror": lambda error: self.said.append(str(error)),
            "request": lambda request: self._note(request.url),
            "websocket": lambda socket: self._note(socket.url),
        }
        for event, note in self._heard.items():
            page.on(event, note)

    def leave(self) -> None:
        """Nothing is kept of what was opened: neither its scripts, nor what they stored."""
        self.page.evaluate("/^(http|file)/.test(location.protocol) && (localStorage.clear(), sessionStorage.clear())")
        self.page.context.clear_cookies()
        self.page.goto("about:blank")
        for event, note in self._heard.items():
            self.page.remove_listener(event, note)

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
