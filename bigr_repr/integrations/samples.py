"""Rows of other programs' tables as pictures, exactly one each. Knows no networks and no frameworks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from bigr_repr.images.decode import load_image
from bigr_repr.images.find import MAGIC
from bigr_repr.images.inputs import Picture, Pictures
from bigr_repr.system.threads import map_ahead

__all__ = ["samples"]

_ROW = "a path, a PIL image, an array (H, W, 3), a tensor (3, H, W), or {'bytes': …, 'path': …} as of datasets.Image"
_FORM = "pass an array (n, H, W, 3), a tensor (n, 3, H, W), or a sequence of paths or pictures"


def samples(rows: Any, name: str, side: int) -> Pictures:
    """The pictures in rows, one each and in order, for extract_features with a model of `side` pixels.

    rows: a sequence, a 1-D array or a Series of paths, PIL images, arrays, tensors or the dictionaries that `datasets`
    makes of pictures not to be decoded; a DataFrame of one such column; an array (n, H, W, C) or a tensor (n, C, H, W).
    name: what errors call them. Encoded pictures are decoded in threads.

    Raises ValueError for several columns, for numbers that are not n pictures, and for a row that is not one picture,
    such as a folder, a pattern or None; ImageError for an encoded picture that cannot be read, once it is reached.
    """
    found = _rows(rows, name)
    if isinstance(found, Tensor):  # which is used as is where it has the right size
        return found
    for number, row in enumerate(found):
        _check(row, f"{name}, row {number}")
    if not any(isinstance(row, Mapping) for row in found):
        return found
    return map_ahead(lambda numbered: _decoded(*numbered, side), enumerate(found))


def _rows(rows: Any, name: str) -> Tensor | list[Any]:
    if hasattr(rows, "columns"):
        names = list(rows.columns)
        if len(names) != 1:
            found = f"{name} has {len(names)} columns ({', '.join(map(str, names[:5]))}{', …' * (len(names) > 5)})"
            raise ValueError(f"{found}; pass only the one with the pictures, as in table[['path']]")
        rows = rows[names[0]]
    if isinstance(rows, str | os.PathLike | bytes | Mapping | Image.Image):
        raise ValueError(f"{name} is a single {type(rows).__name__}, not one picture for each row; {_FORM}")
    if isinstance(rows, np.ndarray | Tensor):
        objects = isinstance(rows, np.ndarray) and rows.dtype.kind in "OUST"
        if objects and rows.ndim == 2 and rows.shape[1] == 1:
            rows = rows[:, 0]
        if rows.ndim != (1 if objects else 4):
            raise ValueError(f"{name} has shape {tuple(rows.shape)}, which is not one picture for each row; {_FORM}")
        if isinstance(rows, Tensor):
            return rows
    return [_path_alone(row) for row in rows]


def _path_alone(row: Any) -> Any:
    """The path of a picture of `datasets` whose bytes are not there; anything else unchanged."""
    return row["path"] if isinstance(row, Mapping) and row.get("bytes") is None and "path" in row else row


def _check(row: Any, name: str) -> None:
    """Raise ValueError for a row that is not exactly one picture."""
    if row is None or (isinstance(row, float) and np.isnan(row)):
        raise ValueError(f"{name} is {row}, not a picture; leave such rows out first, as with filter or dropna")
    if isinstance(row, str | os.PathLike):
        if Path(row).is_dir() or (MAGIC.search(os.fsencode(row)) and not os.path.lexists(row)):
            raise ValueError(f"{name} is {os.fspath(row)!r}, a folder or a pattern; list its files, one for each row")
        return
    several = isinstance(row, np.ndarray | Tensor) and row.ndim > 3
    known = isinstance(row, Image.Image | np.ndarray | Tensor) or (isinstance(row, Mapping) and "bytes" in row)
    if several or not known:
        shape = f" of shape {tuple(row.shape)}" if several else ""
        raise ValueError(f"{name} is a {type(row).__name__}{shape}, not one picture; give {_ROW}")


def _decoded(number: int, row: Picture | Mapping[str, Any], side: int) -> Picture:
    if not isinstance(row, Mapping):
        return row
    return load_image(row["bytes"], side, name=row.get("path") or f"image {number}")
