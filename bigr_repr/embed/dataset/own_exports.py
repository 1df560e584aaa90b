"""Recognizes what `embed export` wrote, so that an export replaces nothing else. Independent of how rows are made."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from bigr_repr.system.files import partial_name
from bigr_repr.system.object_store import ObjectPath, Place
from bigr_repr.system.targets import check_target, check_writable

__all__ = ["check_export_target", "paths_file"]

_ARRAYS: Final = {"values", "path", "label", "sha256"}  # of HDF5 files and Zarr groups
_HEADER: Final = 1 << 26  # bytes of a CSV file's longest first line
_CODE: Final = re.compile("[0-9a-f]{8,}")


def paths_file(target: Path) -> Path:
    """The file of paths that belongs to an array."""
    return target.with_suffix(".paths.txt")


def check_export_target(target: Path, data: Place) -> None:
    """Check, before any work, whether an export may write a file, or a folder for Zarr. data: the exported data set.

    Raises ValueError for a target in the data set, FileExistsError for one that exists and is neither empty nor an
    earlier export of the same format, another OSError if it cannot be written.
    """
    if not isinstance(data, ObjectPath) and target.resolve().is_relative_to(data.resolve()):
        raise ValueError(f"{target} is in the data set to export, {data}; choose a name outside of it")
    if target.suffix == ".zarr" and target.is_dir():
        check_writable(target.parent)
    else:
        check_target(target)
    written = (target, paths_file(target)) if target.suffix == ".npy" else (target,)
    there = [path for path in written if path.exists() and not (path.is_file() and not path.stat().st_size)]
    if there and not _recognized(target):
        raise FileExistsError(
            f"{there[0]} exists and is not an export of bigr-repr; choose another name, or move it away"
        )


def _recognized(target: Path) -> bool:
    """Whether a file, or a folder, is an earlier export, judging by its content."""
    try:
        return _KINDS[target.suffix](target)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, tarfile.TarError, csv.Error):
        return False


def _is_array(target: Path) -> bool:
    """An array with as many rows as its list has paths; or a list whose array was being replaced."""
    names = paths_file(target)
    if not target.exists():
        return partial_name(target).exists()
    with target.open("rb") as file, names.open("rb") as lines:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        return sum(1 for _ in lines) == shape[0]


def _is_table(target: Path) -> bool:
    with target.open("rb") as file:
        first = file.readline(_HEADER)
        columns = first.removesuffix(b"\r\n").split(b",")[1:]
        while columns and columns[0] in (b"label", b"sha256"):
            del columns[0]
        if not first.startswith(b"path,") or not first.endswith(b"\r\n") or not columns:
            return False
        if columns == [b"code"]:
            with io.TextIOWrapper(file, "utf-8", newline="") as rest:
                row = next(csv.reader(rest), None)  # whose path may have several lines
            return row is None or (len(row) == 2 and _CODE.fullmatch(row[1]) is not None)
        return columns == [str(number).encode() for number in range(len(columns))]


def _is_hdf5(target: Path) -> bool:
    import h5py

    with h5py.File(target, "r") as file:
        return set(file) <= _ARRAYS and _is_provenance(file.attrs["provenance"])


def _is_zarr(target: Path) -> bool:
    about = json.loads((target / "zarr.json").read_bytes())
    names = {path.name for path in target.iterdir()}
    return names <= {"zarr.json", *_ARRAYS} and _is_provenance(about["attributes"]["provenance"])


def _is_webdataset(target: Path) -> bool:
    with tarfile.open(target, "r:") as tar:
        values, about = tar.next(), tar.next()
        if values is None:
            return True  # of a data set without rows
        if about is None or (values.name, about.name) != (f"{0:09d}.npy", f"{0:09d}.json"):
            return False
        content = tar.extractfile(about)
        return content is not None and isinstance(json.loads(content.read())["path"], str)


def _is_provenance(text: Any) -> bool:
    """Whether an attribute is the provenance of a data set."""
    return {"package_version", "weights_sha256"} <= set(json.loads(text))


_KINDS: Final[dict[str, Callable[[Path], bool]]] = {
    ".npy": _is_array, ".csv": _is_table, ".h5": _is_hdf5, ".hdf5": _is_hdf5, ".zarr": _is_zarr, ".tar": _is_webdataset
}  # fmt: skip
