"""A page in headless Chromium, for tests of what is seen in a browser.

    from browser import browser_pages

    with browser_pages() as open_page:
        page = open_page(address, width=390, dark=True)
        page.screenshot(path=...)  # a page of playwright's
        page.assert_clean()        # no error in its console, and no request to another host

The browser is the system's own: playwright downloads none. The test is skipped where playwright or Chromium is not installed.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120_000  # milliseconds; playwright's own 30 seconds are too few on a machine that is busy
HERE = ("localhost", "127.0.0.1", "::1", None)  # hosts that count as this machine; files and data have none


class WatchedPage:
    """A page of playwright's, whose methods and attributes it has, and what happened in it.

    Attributes:
        errors: errors in the console, exceptions that no script caught, and requests that failed.
        external: addresses on other hosts that the page asked for. They get no answer.
    """

    def __init__(self, page):
        self._page = page
        self.errors: list[str] = []
        self.external: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("requestfailed", lambda request: self._failed(request))
        page.route(lambda address: urlsplit(address).hostname not in HERE, self._refuse)

    def __getattr__(self, name: str):
        return getattr(self._page, name)

    def _refuse(self, route) -> None:
        self.external.append(route.request.url)
        route.abort()

    def _failed(self, request) -> None:
        if request.url not in self.external and request.failure != "net::ERR_ABORTED":  # aborted: the page was left
            self.errors.append(f"{request.url}: {request.failure}")

    def assert_clean(self) -> None:
        """No error was shown, and nothing was asked of another host."""
        assert not self.external, f"requests to other hosts: {self.external}"
        assert not self.errors, f"errors in the browser: {self.errors}"

    def assert_fits(self) -> None:
        """The page is not wider than its window, so that it does not scroll sideways."""
        page = "document.documentElement"
        wide, window = self._page.evaluate(f"[{page}.scrollWidth, {page}.clientWidth]")
        assert wide <= window, f"the page is {wide} pixels wide, in a window of {window}"


@contextmanager
def browser_pages() -> Iterator[Callable[..., WatchedPage]]:
    """Start Chromium. Yields a function that opens pages: open_page(address, width=1280, height=800, dark=False, **context)."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed")
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]  # containers run as root and have a small /dev/shm
        try:
            browser = started.chromium.launch(executable_path=program, args=flags, timeout=PATIENCE)
        except playwright.Error as error:
            pytest.skip(f"{program} does not start here: {str(error).splitlines()[0]}")

        def open_page(address: str, width: int = 1280, height: int = 800, dark: bool = False, **context) -> WatchedPage:
            """Open an address; `context` is for playwright's `new_context`, such as `is_mobile`."""
            scheme = "dark" if dark else "light"
            window = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **context)
            window.set_default_timeout(PATIENCE)
            page = WatchedPage(window.new_page())
            page.goto(address)
            return page

        try:
            yield open_page
        finally:
            browser.close()
