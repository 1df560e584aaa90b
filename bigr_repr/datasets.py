"""Labelled image sets for training and evaluation: folders, Parquet files with image bytes, torchvision data sets.

One small interface, `ImageSet`; decoding and its errors are `bigr_repr.images`'. Knows nothing of models or tensors.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bigr_repr.images import as_rgb, decode, find_images

IntArray = np.ndarray[Any, np.dtype[np.int64]]


class ImageSet(ABC):
    """Images by number, with a label each where the source has labels.

    `labels` is int64 (n,) or None; `class_names` has one name a label, or none.
    """

    labels: IntArray | None = None
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Image `index` as RGB, 8 bit. Raises ImageError when it cannot be decoded."""


class FolderSet(ImageSet):
    """All images under a folder; if every image lies in a sub-folder, the first-level names are the classes."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        found = sorted(find_images([os.fspath(folder)]), key=lambda source: source.path)
        self._files = [source.file for source in found]
        parts = [Path(source.path).parts for source in found]
        if all(len(part) > 1 for part in parts):
            self.class_names = tuple(sorted({part[0] for part in parts}))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels = np.array([number[part[0]] for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def load(self, index: int) -> Image.Image:
        return decode(self._files[index])


class ParquetSet(ImageSet):
    """A Parquet file with a column `image` (encoded bytes, or the `{"bytes": …}` structs of the Hugging Face hub).

    An integer column `label` gives labels; schema metadata `classes` their names, separated by `|`, or by commas where
    there is no `|`. The encoded bytes are held in memory.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        if "image" not in names:
            raise ValueError(
                f"{os.fspath(file)} has columns {names}; a column named image with encoded bytes is needed"
            )
        table = parquet.read(columns=[name for name in ("image", "label") if name in names])
        column = table.column("image")
        if pa.types.is_struct(column.type):
            column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
        self._images = column
        metadata = parquet.schema_arrow.metadata or {}
        if "label" in names:
            self.labels = table.column("label").to_numpy().astype(np.int64)
            classes = metadata.get(b"classes", b"").decode()
            self.class_names = tuple(classes.split("|" if "|" in classes else ",")) if classes else ()

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        return decode(self._images[index].as_py() or b"")


class TorchvisionSet(ImageSet):
    """A torchvision data set that is already on disk, by class name and root: CIFAR10, STL10, Flowers102, …"""

    def __init__(self, name: str, root: str, *, train: bool = True) -> None:
        import inspect

        import torchvision.datasets

        factory = getattr(torchvision.datasets, name, None)
        if factory is None:
            raise ValueError(
                f"torchvision has no data set {name!r}; names are those of torchvision.datasets, as CIFAR10"
            )
        takes = inspect.signature(factory).parameters
        split: dict[str, Any] = {"train": train} if "train" in takes else {}
        if "split" in takes:
            split = {"split": "train" if train else "test"}
        try:
            self._data = factory(root, **split)
        except RuntimeError as error:
            remedy = f"download it there first (torchvision.datasets.{name}({root!r}, download=True))"
            raise FileNotFoundError(f"torchvision data set {name} is not under {root}: {remedy}") from error
        labels = getattr(self._data, "targets", getattr(self._data, "labels", getattr(self._data, "_labels", None)))
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(str(name) for name in getattr(self._data, "classes", ()))

    def __len__(self) -> int:
        return len(self._data)

    def load(self, index: int) -> Image.Image:
        image, _ = self._data[index]
        return as_rgb(image)


class JoinedSet(ImageSet):
    """Several sets one after the other. Sets with the same class names share labels; other names follow as new labels.

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
            labels.append(part.labels + offsets[own])
        self.labels = np.concatenate(labels)
        self.class_names = tuple(names)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def load(self, index: int) -> Image.Image:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part].load(index - int(self._starts[part]))


def open_images(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, train: bool = True) -> ImageSet:
    """Open one source, or several joined.

    A source is a folder of images, a Parquet file (`*.parquet`), a folder of Parquet files, or
    `torchvision:NAME:ROOT` (`train` chooses the split there). Raises FileNotFoundError or ValueError naming the source.
    """
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not listed:
        raise ValueError("sources is empty; give a folder, a Parquet file or torchvision:NAME:ROOT")
    parts: list[ImageSet] = []
    for source in (os.fspath(item) for item in listed):
        if source.startswith("torchvision:"):
            _, name, root = (*source.split(":", 2), "", "")[:3]
            parts.append(TorchvisionSet(name, root or ".", train=train))
        elif Path(source).suffix == ".parquet":
            parts.append(ParquetSet(source))
        elif files := sorted(Path(source).glob("*.parquet")):
            parts.extend(ParquetSet(file) for file in files)
        else:
            parts.append(FolderSet(source))
    joined = parts[0] if len(parts) == 1 else JoinedSet(parts)
    if len(joined) == 0:
        raise ValueError(f"{', '.join(os.fspath(item) for item in listed)}: no images found")
    return joined
