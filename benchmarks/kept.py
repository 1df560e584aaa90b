"""Arrays that a benchmark computes once and caches.

The name of a cache file is a hash of the facts that determine its content, so another model, source or limit never
reuses an old file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Cache:
    """Arrays keyed by the facts that determine them, as .npz files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, facts: Sequence[str], compute: Callable[[], dict[str, np.ndarray]]) -> Any:
        """The opened .npz file, computed on first use. Arrays are read when indexed."""
        path = self._folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.npz"
        if not path.exists():
            started = time.perf_counter()
            beside = path.with_suffix(".tmp.npz")
            np.savez(beside, **compute())  # type: ignore[arg-type]
            beside.replace(path)
            print(f"  {facts[0]}: computed in {time.perf_counter() - started:.0f} s", flush=True)
        return np.load(path)
