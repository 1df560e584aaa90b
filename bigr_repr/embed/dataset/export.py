"""Exports embedding data sets to formats that other programs read. Independent of how rows are made.

Rows are streamed, so they need not fit into memory, and a file appears only once it is complete.
"""

# n rows, D width, N tokens

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.embed.dataset.own_exports import check_export_target, paths_file
from bigr_repr.embed.dataset.read import Embeddings, EmbeddingSet
from bigr_repr.embed.dataset.row_formats import Rows, write_hdf5, write_webdataset, write_zarr
from bigr_repr.system.files import naming, replacing, sync_folder
from bigr_repr.system.object_store import ObjectPath, as_place

FORMATS = (".npy", ".csv", ".h5", ".hdf5", ".zarr", ".tar")
_PACKAGES = {".h5": "h5py", ".hdf5": "h5py", ".zarr": "zarr"}


class Exported(NamedTuple):
    """What was written. files: the target and, for an array, the file of paths; shape: of all rows."""

    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: str


def export_embeddings(
    folder: PathLike, to: PathLike, *, layer: int | str | None = None, codes: bool = False
) -> Exported:
    """Write a data set's vectors, or its packed codes, to one file in another format, by its suffix.

    .npy: one array, (n, D) or (n, N, D) of the stored dtype, or uint8 (n, bytes) for codes, and the paths in
    NAME.paths.txt, one line per row (line breaks in a path are escaped like bytes that are not UTF-8:
    bigr_repr.images.unescape_path reverses this). .csv: a header, the columns path and, if stored, label and sha256,
    and one column per dimension, named 0, 1, …, or the code in hexadecimal. .h5 or .hdf5, .zarr (a folder) and .tar
    (WebDataset): see bigr_repr.embed.dataset.row_formats. layer: whose vectors; None: the only one's.

    An earlier export of the same format is replaced, and nothing else: FileExistsError for any other file or folder.

    Raises FileNotFoundError if the folder holds no data set, ValueError for a URL, an unknown suffix, a missing layer,
    missing codes or a file in the data set's folder, OSError if the file cannot be written.
    """
    target = _target(to)
    opened = EmbeddingSet(folder)
    if codes and opened.n_bits is None:
        raise ValueError(f"{opened.folder} holds no codes; embed with codes (bigr-repr embed --codes)")
    if codes:
        shape: tuple[int, ...] = (opened.rows, -(-(opened.n_bits or 0) // 8))
        dtype = np.dtype(np.uint8)
    else:
        shape = (opened.rows, *opened.shape(layer))
        dtype = opened.dtype
    check_export_target(target, opened.folder)
    batches = _batches(opened, layer, codes)
    if target.suffix == ".npy":
        names = paths_file(target)
        _write_npy(target, names, batches, shape, dtype)
        return Exported((target, names), shape, dtype.name)
    if target.suffix == ".csv":
        with replacing(target) as file:
            _write_csv(file, batches, opened, shape, codes)
    else:
        _write_container(target, batches, shape, dtype, json.dumps(opened.provenance))
    return Exported((target,), shape, dtype.name)


def _write_npy(target: Path, names: Path, batches: Rows, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write both; never leave vectors beside the paths of others."""
    with replacing(target) as file, replacing(names) as lines, naming(target):
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for batch, values in batches:
            file.write(np.ascontiguousarray(values).data)
            lines.writelines(f"{_one_line(path)}\n".encode() for path in batch.paths)
        for each in (file, lines):  # so that the disk has room for both before the earlier ones go
            each.flush()
            os.fsync(each.fileno())
        target.unlink(missing_ok=True)
        sync_folder(target.parent)


def _target(to: PathLike) -> Path:
    """The file to write, if it may be written in its format here."""
    target = as_place(to)
    if isinstance(target, ObjectPath):
        raise ValueError(f"to={target}: exports are local files; export to a local path, and copy the file there")
    if target.suffix not in FORMATS:
        raise ValueError(f"{target} does not end in one of {', '.join(FORMATS)}; choose another name")
    package = _PACKAGES.get(target.suffix)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(f"writing {target.suffix} needs {package}; install it with: pip install {package}")
    return target


def _write_container(target: Path, batches: Rows, shape: tuple[int, ...], dtype: np.dtype[Any], about: str) -> None:
    if target.suffix == ".tar":
        write_webdataset(target, batches)
    else:
        (write_zarr if target.suffix == ".zarr" else write_hdf5)(target, batches, shape, dtype, about)


def _batches(opened: EmbeddingSet, layer: int | str | None, codes: bool) -> Rows:
    if not codes:
        yield from ((batch, batch.vectors) for batch in opened.batches(layer))
        return
    for paths, packed in opened.code_batches():
        yield Embeddings(paths, packed, packed, None), packed


def _write_csv(
    file: BinaryIO, batches: Iterator[tuple[Embeddings, NDArray[Any]]], opened: EmbeddingSet, shape: tuple[int, ...],
    codes: bool,
) -> None:  # fmt: skip
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    to = csv.writer(text)
    extra = [name for name in ("label", "sha256") if name in opened.schema.names and not codes]
    numbers = range(int(np.prod(shape[1:])))
    to.writerow(["path", *extra, *(["code"] if codes else numbers)])
    for batch, values in batches:
        texts = [batch.paths, *(column for column in (batch.labels, batch.sha256) if column is not None)]
        flat = values.reshape(len(values), -1)
        for *words, row in zip(*texts, flat, strict=True):
            # The fewest digits that round-trip.
            to.writerow([*words, row.tobytes().hex()] if codes else [*words, *map(str, row)])
    text.detach()


def _one_line(path: str) -> str:
    return path.replace("\n", "\\x0a").replace("\r", "\\x0d")
