"""Image sets in files: folders, Parquet files with image bytes, arrays of generated images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.captions.sources import parquet_captions, sidecar_captions
from bigr_repr.datasets.image_set import ImageSet, fingerprint_of, stamps
from bigr_repr.images.decode import as_rgb, decode_image
from bigr_repr.images.find import find_images
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns, read_parquet
from bigr_repr.system.damaged import named_if_damaged


class FolderSet(ImageSet):
    """All images under a folder; if every image is in a subfolder, the first-level names are the classes."""

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder).absolute()
        found = sorted(find_images([os.fspath(folder)]), key=lambda source: source.path)
        self.files = [source.file for source in found]
        parts = [Path(source.path).parts for source in found]
        if all(len(part) > 1 for part in parts):
            self.class_names = tuple(sorted({part[0] for part in parts}))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels = np.array([number[part[0]] for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def captions(self) -> Sequence[Sequence[str]] | None:
        return sidecar_captions(self.files)

    def load(self, index: int) -> Image.Image:
        return decode_image(self.files[index])

    def fingerprint(self) -> str:
        return fingerprint_of(["folder", stamps(self.files)])


class ParquetSet(ImageSet):
    """A Parquet file with a column of encoded images: bytes, or the `{"bytes": …}` structs of the Hugging Face hub.

    Integers in the label column are labels, with their names in the schema's metadata: see
    bigr_repr.images.parquet.class_names. Strings are classes in alphabetical order. Rows without a label
    (null, or a negative number, as in test sets on the hub) have -1. The encoded bytes are held in memory.

    Raises ImageError for a file that is damaged or has no such columns.
    """

    def __init__(self, file: PathLike, columns: Columns = USUAL_COLUMNS) -> None:
        self._file, self._columns, name = file, columns, os.fspath(file)
        if not Path(file).exists():
            raise FileNotFoundError(f"{name}: no such file")
        self._parts, self.labels, self.class_names, self.class_ids = read_parquet(name, columns)
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def captions(self) -> Sequence[Sequence[str]] | None:
        return parquet_captions(self._file, self._columns.caption)

    def load(self, index: int) -> Image.Image:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        content = self._parts[part][index - int(self._starts[part])].as_py()
        return decode_image(content or b"", name=f"{os.fspath(self._file)}#{index}")

    def fingerprint(self) -> str:
        usual = (self._columns.image, self._columns.label) == (USUAL_COLUMNS.image, USUAL_COLUMNS.label)
        named = [] if usual else [self._columns.image, self._columns.label]
        return fingerprint_of(["parquet", stamps([self._file]), *named])


class ArraySet(ImageSet):
    """Generated images as written by `bigr-repr generate --npz` and ADM's scripts: `arr_0`, uint8 (n, H, W, 3).

    They are held in memory, without labels. Raises ValueError for other content.
    """

    def __init__(self, file: PathLike) -> None:
        self._file = file
        name = os.fspath(file)
        try:
            with named_if_damaged(name), Path(file).open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files if key == "arr_0"}
        except AttributeError as error:
            raise ValueError(f"{name} is not a complete .npz file ({error}); write it again") from error
        if "arr_0" not in arrays:
            raise ValueError(f"{name} has no array arr_0; images are uint8 (n, H, W, 3) under that name")
        self._images = arrays["arr_0"]
        if self._images.dtype != np.uint8 or self._images.ndim != 4 or self._images.shape[3] != 3:
            found = f"{self._images.dtype} {self._images.shape}"
            raise ValueError(f"{name}: arr_0 is {found}; images are uint8 (n, H, W, 3)")

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        return as_rgb(self._images[index])

    def fingerprint(self) -> str:
        return fingerprint_of(["npz", stamps([self._file])])
