"""What several benchmarks need: labelled samples of image sets, and arrays that are computed once and cached.

Files in the cache are named by what they hold, so another model, source or limit never meets an old file.
"""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigr_repr.datasets import ImageSet, open_images
from bigr_repr.evaluate._scaling import stratified_split


@dataclass(frozen=True, kw_only=True)
class Split:
    """A labelled image set, or the stratified part of it that `limit` leaves, and how messages and caches call it."""

    name: str
    images: ImageSet
    rows: np.ndarray
    labels: np.ndarray
    source: str

    @classmethod
    def open(cls, name: str, pattern: str, *, train: bool, limit: int | None, seed: int) -> Split:
        """`pattern` is a source of bigr_repr.datasets.open_images, or a file pattern for several."""
        found = glob.glob(pattern)  # noqa: PTH207  (a pattern may be absolute)
        files = [pattern] if pattern in found else sorted(found)
        images = open_images(files or [pattern], train=train)
        if images.labels is None:
            raise SystemExit(f"{name}: {pattern} has no labels; a probe needs them")
        rows = np.arange(len(images))
        if limit is not None and limit < len(images):
            _, rows = stratified_split(images.labels, limit / len(images), np.random.default_rng(seed))
        stamps = [[str(Path(file).absolute()), int(Path(file).stat().st_mtime)] for file in files]
        source = json.dumps([stamps or pattern, train, len(images), limit, seed])
        return cls(name=name, images=images, rows=rows, labels=images.labels[rows], source=source)


class Cache:
    """Arrays by the facts that determine them, as npz files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, facts: Sequence[str], compute: Callable[[], dict[str, np.ndarray]]) -> Any:
        """The opened npz (arrays are read when indexed), computed at first."""
        path = self._folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.npz"
        if not path.exists():
            started = time.perf_counter()
            beside = path.with_suffix(".tmp.npz")
            np.savez(beside, **compute())  # type: ignore[arg-type]
            beside.replace(path)
            print(f"  {facts[0]}: computed in {time.perf_counter() - started:.0f} s", flush=True)
        return np.load(path)
