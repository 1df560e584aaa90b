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
from bigr_repr.evaluate.data.arrays import RAGGED, Arrays, read_arrays
from bigr_repr.evaluate.data.text_lines import text_lines

__all__ = ["FeatureSet", "open_features"]

_FEATURES: Final = ("features", "embedding", "embeddings", "feature", "vector", "vectors", "emb", "x", "arr_0")
_LABELS: Final = ("label", "labels", "target", "targets", "class", "y")

Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSet:
    """Features (n, D), or (n, N, D) of tokens, as stored in a file; labels int64 (n,), -1 for none, or None.

    `files`: their sources; `why_unlabeled`: what the file holds in place of labels, if anything; `fingerprint()`: of
    the numbers themselves.
    """

    name: str
    features: NDArray[Any]
    labels: NDArray[np.int64] | None
    class_names: Names
    files: tuple[str, ...]
    why_unlabeled: str = ""

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
    label per line; names, integers, booleans or whole floats (NaN: no label). None: an array or column `label`,
    `labels`, `target` … of the same file.

    Raises FileNotFoundError, or ValueError that names the file, for anything else, and for no rows.
    """
    file, name = _split(path)
    arrays = read_arrays(file)
    features = _pick(file, arrays, name, _FEATURES, _is_features)
    if features is None:
        raise ValueError(f"{file} holds no features: numbers (n, D) or (n, N, D) are needed, it holds {arrays.words()}")
    if not len(features):
        raise ValueError(f"{path} holds 0 rows of features, {features.shape}; save at least one, one per image")
    found = _labels_in(labels) if labels is not None else _pick(file, arrays, "", _LABELS, _is_label, only_named=True)
    numbers, names = (None, ()) if found is None else _numbered(found, labels or file)
    if numbers is not None and len(numbers) != len(features):
        raise ValueError(f"{file} holds {len(features)} rows but there are {len(numbers)} labels; give one per row")
    files = tuple(str(each) for each in (path, labels) if each is not None)
    return FeatureSet(
        name=Path(file).stem, features=features, labels=numbers, class_names=names, files=files,
        why_unlabeled=_odd_labels(arrays) if numbers is None else "",
    )  # fmt: skip


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
            present, places = np.unique(labels, return_inverse=True)
            own = [
                "" if label < 0 else each.class_names[label] if each.class_names else str(label) for label in present
            ]
            unknown = [name for name in own if name and name not in number]
            if unknown:
                raise ValueError(
                    f"{each.name}: the labels are numbers, for example {unknown[0]}, those of the other set are names, "
                    f"for example {names[0]!r}; give both as numbers or both as names"
                )
            labels = np.array([number.get(name, -1) for name in own], np.int64)[places]
        found.append(dataclasses.replace(each, labels=labels, class_names=names if labels is not None else ()))
    return found


def _split(path: PathLike) -> tuple[Path, str]:
    file, _, name = str(path).partition("#")
    return Path(file), name


def _labels_in(path: PathLike) -> NDArray[Any]:
    file, name = _split(path)
    if file.suffix in (".txt", ".csv", ".tsv"):
        return np.array([line.strip() for line in text_lines(file)])
    arrays = read_arrays(file)
    found = _pick(file, arrays, name, _LABELS, _is_label, rather=lambda array: array.dtype.kind in "iuU")
    if found is None:
        wanted = "one array of integers or names (n,) is needed"
        remedy = "save whole numbers, or names with dtype=str"
        raise ValueError(f"{file} holds no labels: {wanted}, it holds {arrays.words()}; {remedy}")
    return found


def _is_features(array: NDArray[Any]) -> bool:
    wide = 0 not in array.shape[1:] or not len(array)  # lists have no width where there is no row
    return array.ndim in (2, 3) and wide and array.dtype.kind in "biuf"


def _is_label(array: NDArray[Any]) -> bool:
    """Whether an array is one of names, integers, booleans or whole floats, NaN for none."""
    if array.ndim != 1 or array.dtype.kind != "f":
        return array.ndim == 1 and array.dtype.kind in "biuU"
    known = array[~np.isnan(array)]
    return bool(np.all(np.abs(known) < 2**53) and np.all(known == np.rint(known)))  # which doubles tell apart


def _odd_labels(arrays: Arrays) -> str:
    """What has the name of labels but cannot serve as such; "" if nothing has."""
    for name in _LABELS:
        if name in arrays.unusable:
            return f"{name} {arrays.unusable[name]}"
        if name in arrays.found:
            found = f"{arrays.found[name].dtype} {arrays.found[name].shape}"
            return f"{name} is {found}; labels are whole numbers or names, one per row"
    return ""


def _pick(
    file: Path,
    arrays: Arrays,
    name: str,
    usual: Names,
    fits: Callable[[NDArray[Any]], bool],
    *,
    only_named: bool = False,
    rather: Callable[[NDArray[Any]], bool] = lambda array: True,
) -> NDArray[Any] | None:
    """The array called `name`, else one with a usual name, else the only one that fits; None for none.

    rather: of several that fit, those to choose from, if there are any.
    """
    held, unusable = arrays
    if name in unusable:
        raise ValueError(f"{file}: {name or 'its array'} {unusable[name]}")
    if name:
        if name not in held:
            raise ValueError(f"{file} holds no {name!r}; it holds {', '.join(held)}")
        if not fits(held[name]):
            found = f"{held[name].dtype} {held[name].shape}"
            raise ValueError(f"{file}: {name!r} is {found}, which cannot serve here; name another: {', '.join(held)}")
        return held[name]
    fitting = {key: array for key, array in held.items() if fits(array)}
    for key in usual:
        if key in fitting:
            return fitting[key]
        if unusable.get(key) == RAGGED and not only_named:
            raise ValueError(f"{file}: {key} {RAGGED}")
    if only_named or not fitting:
        return None
    if odd := [key for key in usual if key in unusable]:
        raise ValueError(f"{file}: {odd[0]} {unusable[odd[0]]}; or name another: {file.name}#{next(iter(fitting))}")
    fitting = {key: array for key, array in fitting.items() if rather(array)} or fitting
    if len(fitting) > 1:
        raise ValueError(f"{file} holds {', '.join(fitting)}; name one: {file.name}#{next(iter(fitting))}")
    return next(iter(fitting.values()))


def _numbered(labels: NDArray[Any], file: PathLike) -> tuple[NDArray[np.int64], Names]:
    """Integers unchanged; names as numbers, with the names. An empty name and NaN mean no label: -1."""
    if labels.dtype.kind == "f":
        return np.where(np.isnan(labels), -1, labels).astype(np.int64), ()
    if labels.dtype.kind in "biu":
        _check_range(file, int(labels.min(initial=0)), int(labels.max(initial=0)))
        return labels.astype(np.int64), ()
    texts = [str(label) for label in labels]
    if all(text.removeprefix("-").isdecimal() for text in texts if text):
        numbers = [int(text) if text else -1 for text in texts]
        _check_range(file, min(numbers, default=0), max(numbers, default=0))
        return np.array(numbers, np.int64), ()
    names = tuple(sorted({text for text in texts if text}))
    number = {name: i for i, name in enumerate(names)} | {"": -1}
    return np.array([number[text] for text in texts], np.int64), names


def _check_range(file: PathLike, least: int, most: int) -> None:
    limits = np.iinfo(np.int64)
    for label in (least, most):
        if not limits.min <= label <= limits.max:
            raise ValueError(f"{file}: label {label} is outside {limits.min}..{limits.max}; use smaller ones, or names")
