"""Screenshots of pages for the documentation: serves an app on a free port and saves WebP files from a real browser."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "images"
expect.set_options(timeout=60_000)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an app inside the context, and yield its address."""
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


def shoot(page: Any, out: Path, name: str, *, full: bool = False) -> None:
    """Save the page as a WebP file, once it has settled."""
    page.wait_for_timeout(1500)
    with Image.open(io.BytesIO(page.screenshot(full_page=full))) as image:
        image.convert("RGB").save(out / f"{name}.webp", quality=80, method=6)
    print(f"{out / name}.webp: {(out / f'{name}.webp').stat().st_size:,} bytes")


def photograph(
    description: str | None,
    served: Callable[[str], AbstractContextManager[str]],
    take: Callable[[Any, str, Path], None],
    out: Path,
) -> None:
    """The command line, with --model and --out. Calls take(browser, address, folder) while `served` serves the page."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with served(arguments.model) as url, sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        take(opened, url, out)
        opened.close()
