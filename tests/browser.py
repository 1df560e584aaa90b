"""A real Chromium for the tests of pages, and pages that note what goes wrong in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright import sync_api as playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
NewPage = Callable[..., Any]
playwright.expect.set_options(timeout=60_000)  # machines may be busy: what comes in time is waited for no longer


@contextmanager
def chromium() -> Iterator[Any]:
    """A started browser."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@contextmanager
def pages(browser: Any, url: str) -> Iterator[NewPage]:
    """Opens pages, each with settings of its own; in the end none had an error, and none asked another host."""
    wrong: list[str] = []
    contexts = []

    def asked(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            wrong.append(request.url)

    def new_page(width: int, **settings: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", asked)
        return page

    yield new_page
    for context in contexts:
        context.close()
    assert not wrong
