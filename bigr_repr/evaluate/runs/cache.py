"""Features on disk by what determines them: never computed twice, and a broken run goes on. Knows no classifiers.

A cache folder holds one folder for each representation and set of images, named by a hash of both, with `facts.json`
(what was hashed) and blocks of rows `ITEM.00000.npy`. Blocks are written whole or not at all.
"""

# n rows (images)

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.datasets import ImageSet
from bigr_repr.evaluate.data.splits import Part
from bigr_repr.evaluate.representations.base import Representation
from bigr_repr.images.formats import ImageError
from bigr_repr.system.files import replacing
from bigr_repr.system.threads import map_ahead

__all__ = ["DIGESTS", "FeatureCache", "default_cache"]

DIGESTS: Final = "digests"  # item: 16 bytes of each image's pixels' hash, (n, 16) uint8
_BLOCK: Final = 1024
_FORMAT: Final = 1

OnProgress = Callable[[int, int], None]


def default_cache() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/bigr-repr, or ~/.cache/bigr-repr."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bigr-repr"


class FeatureCache:
    """Features of images, computed at first use."""

    def __init__(self, folder: PathLike, *, batch_size: int = 32, workers: int | None = None) -> None:
        self.folder, self._batch_size, self._workers = Path(folder), batch_size, workers

    def get(
        self,
        representation: Representation,
        part: Part,
        items: Sequence[str],
        on_progress: OnProgress = lambda done, total: None,
    ) -> dict[str, NDArray[Any]]:
        """Arrays (n, ...) by item, for the images of a part; `DIGESTS` may be one of the items.

        What is missing is computed in one pass over the images that lack it.
        Raises ImageError that names the image that cannot be read; OSError when the cache cannot be written.
        """
        assert isinstance(part.source, ImageSet)
        folder = self._folder(representation, part)
        starts = range(0, len(part), _BLOCK)
        missing = {start: [item for item in items if not _file(folder, item, start).exists()] for start in starts}
        total = sum(min(_BLOCK, len(part) - start) for start, lacking in missing.items() if lacking)
        done = 0
        for start, lacking in missing.items():
            if not lacking:
                continue
            rows = part.rows[start : start + _BLOCK]
            along = [item for item in representation.along if not _file(folder, item, start).exists()]
            computed = list(dict.fromkeys([*lacking, *along]))
            for item, values in self._block(
                representation, part, rows, computed, lambda n: on_progress(n, total), done
            ):
                with replacing(_file(folder, item, start)) as file:
                    np.save(file, values)
            done += len(rows)
        return {item: np.concatenate([np.load(_file(folder, item, start)) for start in starts]) for item in items}

    def _folder(self, representation: Representation, part: Part) -> Path:
        assert isinstance(part.source, ImageSet)
        facts = {
            "format": _FORMAT,
            "representation": representation.fingerprint,
            "preprocessing": representation.record.get("preprocessing", representation.record["image_size"]),
            "images": part.source.fingerprint(),
            "rows": hashlib.sha256(part.rows.astype("<i8").tobytes()).hexdigest(),
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        folder = self.folder / "features" / key
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "facts.json").exists():
            with replacing(folder / "facts.json") as file:
                text = {**facts, "model": representation.record, "source": part.record}
                file.write((json.dumps(text, indent=1) + "\n").encode())
        return folder

    def _block(
        self,
        representation: Representation,
        part: Part,
        rows: NDArray[np.int64],
        items: Sequence[str],
        advance: Callable[[int], None],
        done: int,
    ) -> list[tuple[str, NDArray[Any]]]:
        source = part.source
        assert isinstance(source, ImageSet)

        def load(row: np.int64) -> tuple[NDArray[np.uint8], NDArray[Any]]:
            try:
                image = source.load(int(row))
            except ImageError as error:
                raise ImageError(error.kind, f"{part.name}, image {row}: {error}") from error
            return _digest(image), representation.prepare(image)

        computed = [item for item in items if item != DIGESTS]
        found: dict[str, list[NDArray[Any]]] = {item: [] for item in items}
        stream = map_ahead(load, rows, workers=self._workers, ahead=4 * self._batch_size)
        while batch := list(islice(stream, self._batch_size)):
            if computed:
                arrays = representation.compute([pixels for _, pixels in batch], computed)
                for item in computed:
                    found[item].append(arrays[item])
            if DIGESTS in found:
                found[DIGESTS].append(np.stack([digest for digest, _ in batch]))
            done += len(batch)
            advance(done)
        return [(item, np.concatenate(blocks)) for item, blocks in found.items()]


def _file(folder: Path, item: str, start: int) -> Path:
    return folder / f"{item}.{start // _BLOCK:05d}.npy"


def _digest(image: Image.Image) -> NDArray[np.uint8]:
    """16 bytes that tell decoded pictures apart."""
    content = hashlib.blake2b(image.tobytes(), digest_size=16, salt=f"{image.width}x{image.height}".encode()[:16])
    return np.frombuffer(content.digest(), np.uint8)
