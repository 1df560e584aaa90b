"""Pictures of the search page for the documentation, by a real browser.

Data: examples/images. Command: python benchmarks/search_page.py. Expected: three WebP files, under 140 kB each, in
benchmarks/results/serve: a query of several pictures, the same page in dark colors with a part drawn and the bits
decoded, and a telephone's width with a filter. Time: half a minute on 2 cores. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import bigr_repr as br
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.retrieval import build_index
from bigr_repr.serve import Service, create_app

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "images"
expect.set_options(timeout=60_000)


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server with an index of the photographs."""
    with tempfile.TemporaryDirectory() as work:
        pre = br.load(model)
        br.embed_images(PHOTOS, f"{work}/data", model=pre, codes=True)
        build_index(f"{work}/data", f"{work}/index", binarizer="bits")
        app = create_app(Service(pre, index=f"{work}/index", images=PHOTOS))
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            listening.close()


def take(opened: Any, url: str, out: Path) -> None:
    """All pictures."""

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


def shoot(page: Any, out: Path, name: str) -> None:
    """The page as WebP."""
    page.wait_for_timeout(1500)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(out / f"{name}.webp", quality=80, method=6)
    print(f"{out / name}.webp: {(out / f'{name}.webp').stat().st_size:,} bytes")


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "serve")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with served(arguments.model) as url, sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        take(opened, url, out)
        opened.close()


if __name__ == "__main__":
    main()
