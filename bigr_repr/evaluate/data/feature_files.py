"""Features from any tool, with labels: .npy, .npz, Parquet files and folders of them. Knows no models or images.

A file may be followed by the name of the array or column to use: `clip.npz#image_embeds`.
"""

# n rows (images), N tokens, D features

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.system.damaged import named_if_damaged

__all__ = ["FeatureSet", "open_features"]

_FEATURES: Final = ("features", "embedding", "embeddings", "feature", "vector", "vectors", "emb", "x", "arr_0")
_LABELS: Final = ("label", "labels", "target", "targets", "class", "y")

Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSet:
    """Features (n, D), or (n, N, D) of tokens, as stored in a file; labels int64 (n,), -1 for none, or None.

    `files`: their sources; `fingerprint()`: of the numbers themselves.
    """

    name: str
    features: NDArray[Any]
    labels: NDArray[np.int64] | None
    class_names: Names
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)

    def fingerprint(self) -> str:
        """SHA-256 of shape, dtype and numbers, 64 hexadecimal digits."""
        found = hashlib.sha256(f"{self.features.dtype} {self.features.shape}".encode())
        found.update(np.ascontiguousarray(self.features).data)
        return found.hexdigest()


def open_features(path: PathLike, labels: PathLike | None = None) -> FeatureSet:
    """Features of a file or folder, with labels from it or from another file.

    path: .npy, .npz, .parquet, or a folder of Parquet files; the array or column has one of the usual names (features,
    embedding, x …), is the only one that fits, or is named after a `#`. labels: .npy, .npz, .parquet, or text with one
    label per line; integers or names. None: an array or column `label`, `labels`, `target` … of the same file.

    Raises FileNotFoundError, or ValueError that names the file, for anything else.
    """
    file, name = _split(path)
    arrays = _arrays(file)
    features = _pick(file, arrays, name, _FEATURES, lambda array: array.ndim in (2, 3) and array.dtype.kind in "biuf")
    if features is None:
        shapes = ", ".join(f"{key or 'array'} {array.dtype} {array.shape}" for key, array in arrays.items())
        raise ValueError(f"{file} holds no features: numbers (n, D) or (n, N, D) are needed, it holds {shapes}")
    found = _labels_in(labels) if labels is not None else _pick(file, arrays, "", _LABELS, _is_label, only_named=True)
    numbers, names = (None, ()) if found is None else _numbered(found)
    if numbers is not None and len(numbers) != len(features):
        raise ValueError(f"{file} holds {len(features)} rows but there are {len(numbers)} labels; give one per row")
    files = tuple(str(each) for each in (path, labels) if each is not None)
    return FeatureSet(name=Path(file).stem, features=features, labels=numbers, class_names=names, files=files)


def joined_classes(sets: Sequence[FeatureSet]) -> list[FeatureSet]:
    """The same sets with a common numbering of the classes in their labels.

    If one set has names, numbers of another are names too: "7" was read as 7 if all of a set's labels are such.
    Raises ValueError if these do not occur among the names.
    """
    names = tuple(sorted({name for each in sets for name in each.class_names}))
    number = {name: i for i, name in enumerate(names)}
    found = []
    for each in sets:
        labels = each.labels
        if labels is not None and names:
            own = each.class_names or tuple(str(label) for label in range(max(0, int(labels.max(initial=-1)) + 1)))
            unknown = [own[label] for label in np.unique(labels[labels >= 0]) if own[label] not in number]
            if unknown:
                raise ValueError(
                    f"{each.name}: the labels are numbers, for example {unknown[0]}, those of the other set are names, "
                    f"for example {names[0]!r}; give both as numbers or both as names"
                )
            labels = np.array([*(number.get(name, -1) for name in own), -1])[np.maximum(labels, -1)]
        found.append(dataclasses.replace(each, labels=labels, class_names=names if labels is not None else ()))
    return found


def _split(path: PathLike) -> tuple[Path, str]:
    file, _, name = str(path).partition("#")
    return Path(file), name


def _labels_in(path: PathLike) -> NDArray[Any]:
    file, name = _split(path)
    if file.suffix in (".txt", ".csv", ".tsv"):
        return np.array([line.strip() for line in file.read_text(encoding="utf-8").splitlines()])
    found = _pick(file, _arrays(file), name, _LABELS, _is_label)
    if found is None:
        raise ValueError(f"{file} holds no labels: one array of integers or names (n,) is needed")
    return found


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a file by name; that of an .npy file is called ""."""
    if file.suffix == ".parquet" or file.is_dir():
        return _columns(file)
    if file.suffix not in (".npy", ".npz"):
        raise ValueError(f"{file}: features and labels are read from .npy, .npz, .parquet or a folder of Parquet files")
    with named_if_damaged(file):
        if file.suffix == ".npy":
            return {"": np.load(file, mmap_mode="r", allow_pickle=False)}
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _columns(file: Path) -> dict[str, NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(file.rglob("*.parquet")) if file.is_dir() else [file]
    if not files:
        raise FileNotFoundError(f"{file}: no Parquet files here")
    tables = []
    for each in files:
        with named_if_damaged(each):
            tables.append(pq.read_table(each, partitioning=None, page_checksum_verification=True))
    table = pa.concat_tables(tables)
    found = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if _is_list(column.type):
            found[name] = _matrix(file, name, column)
        elif pa.types.is_integer(column.type):
            found[name] = column.fill_null(-1).to_numpy(zero_copy_only=False)
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found[name] = np.array(column.fill_null("").to_pylist(), dtype=str)
    return found


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _matrix(file: Path, name: str, column: Any) -> NDArray[Any]:
    """A column of lists as (n, D)."""
    import pyarrow as pa

    numbers = column.flatten()
    while _is_list(numbers.type):
        numbers = numbers.flatten()
    values = numbers.to_numpy(zero_copy_only=False)
    if column.null_count or len(values) % max(1, len(column)):
        raise ValueError(f"{file}: rows of {name} are null or differ in length; give one vector of one length per row")
    shape = (len(column), -1)
    if pa.types.is_fixed_size_list(column.type) and pa.types.is_fixed_size_list(column.type.value_type):
        shape = (len(column), column.type.list_size, -1)  # type: ignore[assignment]
    return np.asarray(values.reshape(shape))


def _is_label(array: NDArray[Any]) -> bool:
    return array.ndim == 1 and array.dtype.kind in "iuU"


def _pick(
    file: Path,
    arrays: dict[str, NDArray[Any]],
    name: str,
    usual: Names,
    fits: Callable[[NDArray[Any]], bool],
    *,
    only_named: bool = False,
) -> NDArray[Any] | None:
    """The array called `name`, else one with a usual name, else the only one that fits; None for none."""
    if name:
        if name not in arrays:
            raise ValueError(f"{file} holds no {name!r}; it holds {', '.join(arrays)}")
        if not fits(arrays[name]):
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise ValueError(f"{file}: {name!r} is {found}, which cannot serve here; name another: {', '.join(arrays)}")
        return arrays[name]
    fitting = {key: array for key, array in arrays.items() if fits(array)}
    for key in usual:
        if key in fitting:
            return fitting[key]
    if only_named or not fitting:
        return None
    if len(fitting) > 1:
        raise ValueError(f"{file} holds {', '.join(fitting)}; name one: {file.name}#{next(iter(fitting))}")
    return next(iter(fitting.values()))


def _numbered(labels: NDArray[Any]) -> tuple[NDArray[np.int64], Names]:
    """Integers unchanged; names as numbers, with the names. An empty name means no label: -1."""
    if labels.dtype.kind in "iu":
        return labels.astype(np.int64), ()
    texts = [str(label) for label in labels]
    if all(text.removeprefix("-").isdecimal() for text in texts if text):
        return np.array([int(text) if text else -1 for text in texts], np.int64), ()
    names = tuple(sorted({text for text in texts if text}))
    number = {name: i for i, name in enumerate(names)} | {"": -1}
    return np.array([number[text] for text in texts], np.int64), names
