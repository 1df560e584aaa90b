"""Features on disk, keyed by everything that determines them: computed only once, resumable. Knows no classifiers.

A cache folder contains one folder per representation and source of images, named by a hash of both, with `facts.json`
(the hashed facts) and blocks of images `ITEM.HASH.npz`: their numbers, and their values. A subset, or a sample with
another seed, uses the blocks that exist for its images. Pictures of a folder are numbered by path, size and time, so
that others may come or go; images of other sources by row, and with any change of the source all are computed again.
Blocks are written atomically; a damaged one is removed, with a warning, and computed again.
"""

# n rows (images)

from __future__ import annotations

import functools
import glob
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.datasets import FolderSet, ImageSet
from bigr_repr.datasets.image_set import stamps
from bigr_repr.evaluate.data.splits import Part
from bigr_repr.evaluate.representations.base import Representation
from bigr_repr.images.formats import ImageError
from bigr_repr.system.damaged import named_if_damaged
from bigr_repr.system.files import replacing
from bigr_repr.system.threads import map_ahead

__all__ = ["DIGESTS", "FeatureCache", "default_cache", "digests_of"]

DIGESTS: Final = "digests"  # item: 16 bytes of each image's pixels' hash, (n, 16) uint8
_BLOCK: Final = 1024
_FORMAT: Final = 2

_log = logging.getLogger(__name__)

CachedRow = tuple[Path, int]
OnProgress = Callable[[int, int], None]


def default_cache() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/bigr-repr, or ~/.cache/bigr-repr."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bigr-repr"


class FeatureCache:
    """Features of images, computed on first use."""

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

        Missing values are computed in one pass over their images, and are shared with other parts of the same source.
        Raises ImageError that names an unreadable image; OSError if the cache cannot be written.
        """
        assert isinstance(part.source, ImageSet)
        source, numbers = _numbered(part.source)
        folder, numbers = self._folder(representation, part, source), numbers[part.rows]
        held = {item: _held(folder, item) for item in dict.fromkeys([*items, *representation.along])}
        lacking = np.array([[number not in held[item] for number in numbers.tolist()] for item in items])
        missing = np.flatnonzero(lacking.any(axis=0))
        for start in range(0, len(missing), _BLOCK):
            places = missing[start : start + _BLOCK]
            own = numbers[places]
            wanted = [item for item in items if any(number not in held[item] for number in own.tolist())]
            wanted += [each for each in representation.along if each not in wanted and own[0] not in held[each]]
            advance = functools.partial(_advance, on_progress, start, len(missing))
            for item, values in self._block(representation, part, part.rows[places], wanted, advance):
                path = folder / f"{item}.{hashlib.sha256(own.tobytes()).hexdigest()[:16]}.npz"
                with replacing(path) as file:
                    np.savez(file, rows=own, values=values)
                held[item] |= {number: (path, place) for place, number in enumerate(own.tolist())}
        found = {item: _gather(held[item], numbers) for item in items}
        whole = {item: values for item, values in found.items() if values is not None}
        return whole if len(whole) == len(found) else self.get(representation, part, items, on_progress)

    def _folder(self, representation: Representation, part: Part, source: str) -> Path:
        facts = {
            "format": _FORMAT,
            "representation": representation.fingerprint,
            "preprocessing": representation.record.get("preprocessing", representation.record["image_size"]),
            "images": source,
            **({"condition": told} if (told := representation.record.get("condition")) else {}),
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        folder = self.folder / "features" / key
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "facts.json").exists():
            with replacing(folder / "facts.json") as file:
                text = {**facts, "model": representation.record, "source": part.name}
                file.write((json.dumps(text, indent=1) + "\n").encode())
        return folder

    def _block(
        self,
        representation: Representation,
        part: Part,
        rows: NDArray[np.int64],
        items: Sequence[str],
        advance: Callable[[int], None],
    ) -> list[tuple[str, NDArray[Any]]]:
        def load(row: np.int64) -> tuple[NDArray[np.uint8], NDArray[Any]]:
            image = _image(part, row)
            return _digest(image), representation.prepare(image)

        computed = [item for item in items if item != DIGESTS]
        found: dict[str, list[NDArray[Any]]] = {item: [] for item in items}
        stream, done = map_ahead(load, rows, workers=self._workers, ahead=4 * self._batch_size), 0
        while batch := list(islice(stream, self._batch_size)):
            if computed:
                arrays = representation.arrays([pixels for _, pixels in batch], computed)
                for item in computed:
                    found[item].append(arrays[item])
            if DIGESTS in found:
                found[DIGESTS].append(np.stack([digest for digest, _ in batch]))
            done += len(batch)
            advance(done)
        return [(item, np.concatenate(blocks)) for item, blocks in found.items()]


def _advance(on_progress: OnProgress, before: int, total: int, done: int) -> None:
    on_progress(before + done, total)


def _numbered(source: ImageSet) -> tuple[str, NDArray[np.int64]]:
    """What identifies a source, and numbers (n,) that identify its images."""
    if not isinstance(source, FolderSet):
        return source.fingerprint(), np.arange(len(source))
    # Subclasses show the same files otherwise: segments are cropped.
    digests = (hashlib.sha256(json.dumps(stamp).encode()).digest() for stamp in stamps(source.files))
    numbers = [int.from_bytes(digest[:8], signed=True) for digest in digests]
    return f"{type(source).__name__} {source.folder}", np.array(numbers, np.int64)


def _held(folder: Path, item: str) -> dict[int, CachedRow]:
    """{number of the image: (file, place in it)} of an item."""
    held: dict[int, CachedRow] = {}
    for file in sorted(folder.glob(f"{glob.escape(item)}.{'[0-9a-f]' * 16}.npz")):
        if (rows := _read(file, "rows")) is not None:
            held |= {row: (file, place) for place, row in enumerate(rows.tolist())}
    return held


def _read(file: Path, name: str) -> NDArray[Any] | None:
    """An array of a block; None if the file is damaged: it is removed, with a warning."""
    try:
        with named_if_damaged(file, "remove it"), file.open("rb") as opened, np.load(opened) as block:
            found: NDArray[Any] = block[name]
            return found
    except ValueError as error:
        if isinstance(error.__cause__, MemoryError):  # of this machine
            raise
        _log.warning("%s is damaged; it is removed, and its features are computed again", file)
        file.unlink(missing_ok=True)
        return None


def _gather(held: dict[int, CachedRow], numbers: NDArray[np.int64]) -> NDArray[Any] | None:
    """The values of images; each file is read once. None if one is damaged."""
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for target, number in enumerate(numbers.tolist()):
        file, place = held[number]
        by_file.setdefault(file, []).append((target, place))
    found: NDArray[Any] | None = None
    for file, pairs in by_file.items():
        values = _read(file, "values")
        if values is None:
            return None
        if found is None:
            found = np.empty((len(numbers), *values.shape[1:]), values.dtype)
        targets, places = zip(*pairs, strict=True)
        found[list(targets)] = values[list(places)]
    assert found is not None
    return found


def digests_of(part: Part, workers: int | None = None) -> NDArray[np.uint8]:
    """What `DIGESTS` stands for, of a part's images, (n, 16) uint8; nothing is stored. Raises ImageError as `get`."""
    return np.stack(list(map_ahead(lambda row: _digest(_image(part, row)), part.rows, workers=workers)))


def _image(part: Part, row: np.int64) -> Image.Image:
    assert isinstance(part.source, ImageSet)
    try:
        return part.source.load(int(row))
    except ImageError as error:
        raise ImageError(error.kind, f"{part.name}, image {row}: {error}") from error


def _digest(image: Image.Image) -> NDArray[np.uint8]:
    """A 16-byte digest of a decoded picture."""
    content = hashlib.blake2b(image.tobytes(), digest_size=16, salt=f"{image.width}x{image.height}".encode()[:16])
    return np.frombuffer(content.digest(), np.uint8)
