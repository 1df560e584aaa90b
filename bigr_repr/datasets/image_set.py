"""Images by number, with or without labels, and several sets as one. Knows nothing of files or models."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.images.augment import random_resized_crop
from bigr_repr.images.decode import center_crop
from bigr_repr.images.formats import ImageError

IntArray = np.ndarray[Any, np.dtype[np.int64]]


class ImageSet(ABC):
    """Images by number, with labels if the source has them.

    `labels` is int64 (n,) or None; `class_names` has one name per label, or is empty; `class_ids` the WordNet id of
    each, if the source has them. A negative label means that the image has none.
    """

    labels: IntArray | None = None
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def captions(self) -> Sequence[Sequence[str]] | None:
        """The captions of each image, none or several; None if the source has none. Raises ValueError for bad ones.

        They are read on the first call.
        """
        return None

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Image `index` as RGB, 8 bit. Raises ImageError, which names file and row, when it cannot be decoded."""

    def load_square(self, index: int, side: int) -> NDArray[np.uint8]:
        """Image `index` resized and cropped to its middle square, for training: uint8 (side, side, 3).

        Raises ImageError as `load` does, with the remedy.
        """
        with _remedy_named():
            return center_crop(self.load(index), side)

    def load_part(
        self, index: int, side: int, random: np.random.Generator, *, least: float, mirror: bool
    ) -> NDArray[np.uint8]:
        """A random part of image `index`, for training, cropped by `random_resized_crop`: uint8 (side, side, 3).

        Raises ImageError as `load_square` does.
        """
        with _remedy_named():
            return np.asarray(random_resized_crop(self.load(index), side, random, least=least, mirror=mirror))

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies this set by 64 hexadecimal digits, computed from names, sizes and times of files."""


@contextmanager
def _remedy_named() -> Iterator[None]:
    """Add the remedy to the error for a picture that cannot be read."""
    try:
        yield
    except ImageError as error:
        remedy = "replace this picture by one that can be read, then repeat the command"
        raise ImageError(error.kind, f"{error}; {remedy}") from error


class JoinedSet(ImageSet):
    """Several sets concatenated. Sets with the same class names share labels; other names follow as new labels.

    Labels are dropped unless every part has them.
    """

    def __init__(self, parts: Sequence[ImageSet]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        if all(part.labels is not None for part in parts):
            self._join_labels()

    def _join_labels(self) -> None:
        offsets: dict[tuple[str, ...], int] = {}
        names: list[str] = []
        labels = []
        # Parts without names number the same classes: one numbering for all of them.
        nameless = [part.labels for part in self._parts if part.labels is not None and not part.class_names]
        count = max((int(numbers.max(initial=-1)) for numbers in nameless), default=-1) + 1
        shared = tuple(str(i) for i in range(count))
        for part in self._parts:
            assert part.labels is not None
            own = part.class_names or shared
            if own not in offsets:
                offsets[own] = len(names)
                names.extend(own)
            labels.append(np.where(part.labels < 0, -1, part.labels + offsets[own]))
        self.labels = np.concatenate(labels)
        self.class_names = tuple(names)
        if all(part.class_names == self.class_names for part in self._parts):
            self.class_ids = self._parts[0].class_ids

    def __len__(self) -> int:
        return int(self._starts[-1])

    def load(self, index: int) -> Image.Image:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part].load(index - int(self._starts[part]))

    @cached_property
    def captions(self) -> Sequence[Sequence[str]] | None:
        found = [part.captions for part in self._parts]
        if all(each is None for each in found):
            return None
        pairs = zip(found, self._parts, strict=True)
        return [captions for own, part in pairs for captions in (own or [()] * len(part))]

    def fingerprint(self) -> str:
        return fingerprint_of(["joined", [part.fingerprint() for part in self._parts]])


def stratified_split(labels: IntArray, share: float, generator: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Row numbers (kept, drawn), sorted: about `share` of each class is drawn, at least one row and never all."""
    order = generator.permutation(len(labels))
    drawn = np.zeros(len(labels), np.bool_)
    for name in np.unique(labels):
        rows = order[labels[order] == name]
        drawn[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def fingerprint_of(facts: object) -> str:
    """Identifies a set by a digest of plain data."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def stamps(files: Iterable[PathLike]) -> list[list[object]]:
    """Absolute path, size and modification time of each file."""
    stats = ((Path(file).absolute(), Path(file).stat()) for file in files)
    return [[os.fsencode(path).hex(), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
