"""Several labels per image, from files: a 0/1 matrix, or lines of names. Knows no images, features or probes."""

# n rows (images), K classes

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.evaluate.data.text_lines import text_lines
from bigr_repr.system.damaged import named_if_damaged

__all__ = ["MultiLabels", "read_multi_labels"]


class MultiLabels(NamedTuple):
    """values: int8 (n, K), 1 for present, 0 for absent, -1 for unknown; class_names: K, or empty."""

    values: NDArray[np.int8]
    class_names: tuple[str, ...]


def read_multi_labels(files: tuple[PathLike, PathLike]) -> tuple[MultiLabels, MultiLabels]:
    """Labels of the training and test images, with the same classes.

    files: .npy or the only array of an .npz, (n, K) integers or booleans, negative: unknown; or text with a line
    per image: comma-separated class names, or an empty line. Raises ValueError that names the file.
    """
    train, test = (_lines(Path(file)) if _is_text(file) else _matrix(Path(file)) for file in files)
    if isinstance(train, np.ndarray) and isinstance(test, np.ndarray):
        if train.shape[1] != test.shape[1]:
            raise ValueError(f"{files[0]} has {train.shape[1]} classes and {files[1]} {test.shape[1]}; give the same")
        return MultiLabels(train, ()), MultiLabels(test, ())
    if isinstance(train, np.ndarray) or isinstance(test, np.ndarray):
        raise ValueError(f"{files[0]} and {files[1]}: one holds names and the other numbers; use one kind")
    names = tuple(sorted({name for line in train for name in line}))
    if not names:
        raise ValueError(f"{files[0]} names no class; give comma-separated class names, a line per image")
    if strange := sorted({name for line in test for name in line} - {*names}):
        raise ValueError(f"{files[1]} names {strange[0]!r}, which no training image has; leave it out, or add images")
    sides = (np.array([[name in line for name in names] for line in lines], np.int8) for lines in (train, test))
    one, other = (MultiLabels(side.reshape(-1, len(names)), names) for side in sides)
    return one, other


def _is_text(file: PathLike) -> bool:
    return Path(file).suffix not in (".npy", ".npz")


def _lines(file: Path) -> list[frozenset[str]]:
    return [frozenset(part.strip() for part in line.split(",") if part.strip()) for line in text_lines(file)]


def _matrix(file: Path) -> NDArray[np.int8]:
    with named_if_damaged(file):
        found = np.load(file, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        with found:
            if len(found.files) != 1:
                raise ValueError(f"{file} holds {', '.join(found.files)}; labels are the only array of a file")
            with named_if_damaged(file):
                found = found[found.files[0]]
    if found.ndim != 2 or found.dtype.kind not in "biu":
        raise ValueError(f"{file}: labels have shape {found.shape} and dtype {found.dtype}; expected 0 and 1, (n, K)")
    if found.size and int(found.max()) > 1:
        raise ValueError(f"{file}: a label is {int(found.max())}; use 1 (present), 0 (absent) or -1 (unknown)")
    return np.where(found < 0, -1, found).astype(np.int8) if found.dtype.kind == "i" else found.astype(np.int8)
