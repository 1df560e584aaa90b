"""Screenshots of the search page for the documentation, taken in a real browser.

    python benchmarks/search_page.py                # half a minute on 2 cores

Data: examples/images. Needs playwright and a Chromium.

Writes three WebP files, under 140 kB each, to benchmarks/results/serve: a query of several pictures; the page in dark
mode, with a selected part of the query and decoded bits; and the page at a phone's width, with a filter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import expect
from screens import PHOTOS, ROOT, photograph, serving, shoot

import bigr_repr as br
from bigr_repr.retrieval import build_index
from bigr_repr.serve import Service, create_app


@contextmanager
def served(model: str) -> Iterator[str]:
    """Serve an index of the photographs, and yield the address."""
    with tempfile.TemporaryDirectory() as work:
        pre = br.load(model)
        br.embed_images(PHOTOS, f"{work}/data", model=pre, codes=True)
        build_index(f"{work}/data", f"{work}/index", binarizer="bits")
        app = create_app(Service(pre, index=f"{work}/index", images=PHOTOS))
        with serving(app) as url:
            yield url


def take(opened: Any, url: str, out: Path) -> None:
    """Take all screenshots."""

    def page(width: int = 1280, height: int = 860, scheme: str = "light", scale: float = 1) -> Any:
        size = {"width": width, "height": height}
        context = opened.new_context(viewport=size, color_scheme=scheme, device_scale_factor=scale)
        made = context.new_page()
        made.goto(url)
        made.set_input_files("#file", PHOTOS / "cat.jpg")
        expect(made.locator(".hit")).to_have_count(len(list(PHOTOS.iterdir())))
        return made

    at = page()
    for name, key in (("raccoon.jpg", "+"), ("coffee.jpg", "-")):
        at.locator(f".hit[title^='{name}']").press(key)
        expect(at.locator("#others")).to_contain_text(name)
    shoot(at, out, "desktop")
    at = page(scheme="dark")
    at.check("#bits")
    box = at.locator("#frame").bounding_box()
    at.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.2 * box["height"])
    at.mouse.down()
    at.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.7 * box["height"], steps=8)
    at.mouse.up()
    expect(at.locator("#status")).to_contain_text("by the part you drew")
    shoot(at, out, "dark")
    at = page(390, 844, scale=1.5)
    at.fill("#filter", 'not path like "c%"')
    at.press("#filter", "Enter")
    expect(at.locator("#hits:not(.busy) .hit").first).not_to_have_attribute("title", "cat.jpg")
    shoot(at, out, "phone")


if __name__ == "__main__":
    photograph(__doc__, served, take, ROOT / "benchmarks" / "results" / "serve")
