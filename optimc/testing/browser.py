"""A headless browser for the pages that optimc writes: Debian's chromium, by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VARIABLE = "OPTIMC_CHROMIUM"


def chromium() -> str | None:
    """The browser's program: ``$OPTIMC_CHROMIUM``, or what is installed; None where none is."""
    named = os.environ.get(VARIABLE)
    return named or shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def open_browser(program: str) -> Iterator[Browser]:
    """The browser, headless; it has no network to use."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers often let nobody make the name spaces that the sandbox needs; the pages are
        # our own.
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-background-networking"]
        )
        try:
            yield browser
        finally:
            browser.close()
