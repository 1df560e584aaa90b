"""Screenshots of the studio's pages for the documentation, taken in a real browser.

    python benchmarks/studio.py                # about a minute on 2 cores

Data: examples/images. Needs playwright and a Chromium.

Writes five WebP files, under 120 kB each, to benchmarks/results/studio.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigr_repr_cli.app.server import build
from bigr_repr_cli.app.studio import Studio
from playwright.sync_api import expect
from screens import PHOTOS, ROOT, photograph, serving, shoot

import bigr_repr as br
from bigr_repr.serve import Access
from bigr_repr.system.scratch import scratch_folder

LABEL = "seashore"


@contextmanager
def studio(model: str) -> Iterator[str]:
    """Serve a studio, and yield its address."""
    with tempfile.TemporaryDirectory() as drawn, scratch_folder() as folder:
        os.chdir(drawn)  # so that the page shows no path of this machine
        app = build(Studio(br.load(model), Path("drawn")), folder, Access())
        try:
            with serving(app) as url:
                try:
                    yield url
                finally:
                    app.state.desk.halt()
        finally:
            os.chdir(ROOT)


def drag(page: Any, *points: tuple[float, float]) -> None:
    """Drag over the photograph. points: fractions of its width and height."""
    box = page.locator("#marks").bounding_box()
    for i, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def paint(page: Any, seed: int) -> None:
    """Select the dandelions, and mark a part of them."""
    page.locator("[title='dandelions.jpg']").click()
    expect(page.locator("#photo")).to_have_attribute("alt", "dandelions.jpg")
    page.locator("#photo").evaluate("each => each.decode()")  # wait until it and the layer over it have their size
    page.fill("#seed", str(seed))
    page.check("#lock")
    page.locator("[name=tool][value=lasso]").check(force=True)
    drag(page, (0.62, 0.42), (0.8, 0.4), (0.88, 0.6), (0.84, 0.9), (0.66, 0.92), (0.58, 0.66))


def press(page: Any) -> None:
    """Start drawing, and wait for the result."""
    page.click("#draw")
    expect(page.locator("#shown")).to_be_visible()
    expect(page.locator("#draw")).to_be_enabled()


def take(opened: Any, url: str, out: Path) -> None:
    """Take all screenshots."""

    def page(path: str, width: int = 1280, height: int = 860, scheme: str = "light") -> Any:
        made = opened.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
        made.set_default_timeout(120_000)
        made.goto(url + path)
        return made

    at = page("/")
    paint(at, 3)
    press(at)
    at.fill("#compare", "70")
    shoot(at, out, "draw", full=True)
    at = page("/", scheme="dark")
    paint(at, 3)
    shoot(at, out, "dark")
    at = page("/", width=390, height=780)
    paint(at, 3)
    shoot(at, out, "phone")
    at = page("/search/")
    at.fill("#path", os.path.relpath(PHOTOS))
    with at.expect_navigation():
        at.click("#opening button[type=submit]")
    expect(at.locator("#about")).to_contain_text("pictures")
    at.set_input_files("#file", PHOTOS / "cat.jpg")
    expect(at.locator(".hit").first).to_be_visible()
    at.fill("#path", "examples/images")  # show the path that a reader has
    at.wait_for_timeout(1500)
    shoot(at, out, "search")
    at = page("/inside/")
    at.locator("[title='coffee.jpg']").click()
    expect(at.locator("#views")).to_be_visible()
    at.locator("[data-view=expected]").hover()
    at.fill("#label", LABEL)
    at.fill("#seed", "1")
    at.click("#watch button[type=submit]")
    expect(at.locator("#at-value")).to_have_text("16 of 16")
    at.fill("#at", "11")
    shoot(at, out, "inside", full=True)


if __name__ == "__main__":
    photograph(__doc__, studio, take, ROOT / "benchmarks" / "results" / "studio")
