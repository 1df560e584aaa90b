"""Writes rows of a data set to other tools' formats: HDF5, Zarr and WebDataset. Independent of how rows are made."""

# n rows, D width, N tokens

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr.embed.dataset.read import Embeddings
from bigr_repr.system.files import naming, partial_name, sync_file, sync_folder, sync_tree

__all__ = ["Rows", "write_hdf5", "write_webdataset", "write_zarr"]

Rows = Iterator[tuple[Embeddings, NDArray[Any]]]  # batches: their strings, and the values to write
_CHUNK = 1 << 20  # approximate bytes per chunk
_TEXTS = 1 << 14  # strings per chunk


def write_hdf5(target: Path, batches: Rows, shape: tuple[int, ...], dtype: np.dtype[Any], about: str) -> None:
    """Write one file with the data sets "values", of shape and dtype, "path" and, if stored, "label" and "sha256".

    about: JSON for the attribute `provenance`.
    """
    import h5py

    with _whole(target) as beside, _sparing(beside) as opened, h5py.File(opened, "w") as file:
        file.attrs["provenance"] = about
        values = file.create_dataset("values", shape, dtype)
        done = 0
        for batch, rows in batches:
            values[done : done + len(rows)] = rows
            for name, texts in _texts(batch).items():
                if name not in file:
                    file.create_dataset(name, shape[:1], h5py.string_dtype())
                file[name][done : done + len(rows)] = texts
            done += len(rows)
            opened.check()


class _SparingFile(io.RawIOBase):
    """A file whose first error in writing is kept, and what follows is not written: HDF5 crashes on such errors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the first error."""
        if self.error is not None:
            raise self.error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        if self.error is None:
            return count
        rest = memoryview(buffer).cast("B")[count:]  # what was not written is not there: HDF5 would take what it finds
        rest[:] = bytes(len(rest))
        return count + len(rest)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while len(rest) and self.error is None:
            with self._kept():
                rest = rest[self._file.write(rest) :]
        return size

    def truncate(self, size: int | None = None) -> int:
        if self.error is None:
            with self._kept():
                self._file.truncate(size)
        return self._file.tell() if size is None else size

    def close(self) -> None:
        self._file.close()
        super().close()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error


@contextmanager
def _sparing(path: Path) -> Iterator[_SparingFile]:
    """A new file, whose first error in writing is raised once the block has ended, instead of what followed from it."""
    file = _SparingFile(path)
    try:
        yield file
    except Exception as error:
        if file.error in (None, error):
            raise
        raise file.error from error
    finally:
        file.close()
    file.check()


def write_zarr(target: Path, batches: Rows, shape: tuple[int, ...], dtype: np.dtype[Any], about: str) -> None:
    """Write one folder: a Zarr group with the arrays described in write_hdf5."""
    import zarr

    with _whole(target) as beside:
        group = zarr.create_group(beside, attributes={"provenance": about})
        rows_each = max(1, min(shape[0], _CHUNK // max(1, int(np.prod(shape[1:])) * dtype.itemsize)))
        values = group.create_array("values", shape=shape, dtype=dtype, chunks=(rows_each, *shape[1:]))
        done, columns = 0, dict[str, Any]()
        for batch, rows in batches:
            values[done : done + len(rows)] = rows
            for name, texts in _texts(batch).items():
                if name not in columns:
                    columns[name] = group.create_array(
                        name, shape=shape[:1], dtype="string", chunks=(min(shape[0], _TEXTS),)
                    )
                columns[name][done : done + len(rows)] = np.array(texts, object)
            done += len(rows)


def write_webdataset(target: Path, batches: Rows) -> None:
    """Write one tar: for row n, NNNNNNNNN.npy has its values, and NNNNNNNNN.json its path, label and sha256."""
    done = 0
    with _whole(target) as beside, tarfile.open(beside, "w") as tar:
        for batch, rows in batches:
            texts = _texts(batch)
            for place, values in enumerate(rows):
                array = io.BytesIO()
                np.save(array, values)
                about = {name: column[place] for name, column in texts.items()}
                said = json.dumps(about, ensure_ascii=False).encode("utf-8", "surrogateescape")
                for suffix, content in (("npy", array.getvalue()), ("json", said)):
                    member = tarfile.TarInfo(f"{done:09d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                done += 1


def _texts(batch: Embeddings) -> dict[str, list[str]]:
    columns = {"path": batch.paths, "label": batch.labels, "sha256": batch.sha256}
    return {name: column for name, column in columns.items() if column is not None}


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A temporary path next to target, which replaces it if the block succeeds and is removed otherwise."""
    beside = partial_name(target)
    _remove(beside)
    try:
        with naming(target, beside):
            yield beside
            (sync_tree if beside.is_dir() else sync_file)(beside)
        if beside.is_dir():
            _remove(target)
        os.replace(beside, target)  # noqa: PTH105 - folders too
        sync_folder(target.parent)
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
