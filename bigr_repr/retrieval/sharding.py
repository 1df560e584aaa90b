"""An embedding data set to an index in shards, built by several processes, each shard by itself. Knows no pictures."""

# n rows

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.build import write_index
from bigr_repr.retrieval.codes.binarizer import Binarizer
from bigr_repr.retrieval.codes.dataset import DataCodes
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.settings import IndexSettings
from bigr_repr.retrieval.index.shards import write_list

__all__ = ["build_shards"]

_NAME: Final = re.compile(r"shard-\d{5}")


def build_shards(
    dataset: PathLike,
    out: PathLike,
    shards: int,
    *,
    processes: int = 1,
    binarizer: str | Binarizer = "sign",
    n_bits: int | None = None,
    layer: int | str | None = None,
    kind: str | IndexSettings = "flat",
    vectors: str | None = "float16",
    keep: Sequence[str] = (),
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> HammingIndex:
    """Build an index in shards of a data set that embed_images wrote; returns it opened, to search in this process.

    shards: at most, of whole files of the data set, about as many rows each. processes: that build at the same time.
    The others as build_index; one binarizer is fitted for all. Shards that are there already, as a run that was cut
    short leaves them, are not built again. on_progress(shards done, all).  Raises ValueError as build_index does.
    """
    if shards < 1 or processes < 1:
        raise ValueError(f"shards={shards} and processes={processes} must be at least 1")
    settings = IndexSettings(kind=kind) if isinstance(kind, str) else kind
    codes = DataCodes(dataset, binarizer, n_bits=n_bits, layer=layer, seed=seed, keep=keep)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    runs = _runs(codes.data.rows_of_files, shards)
    names = [f"shard-{number:05d}" for number in range(len(runs))]
    jobs: list[tuple[Any, ...]] = [
        (dataset, folder / name, {codes.data.files[i].name for i in run}, codes.binarizer or "bits", codes.layer,
         settings, vectors, tuple(keep))
        for name, run in zip(names, runs, strict=True)
    ]  # fmt: skip
    _build_all(jobs, processes, on_progress)
    write_list(folder, names)
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name) and path.name not in names:
            shutil.rmtree(path)
    return HammingIndex.load(folder)


def _build_all(jobs: list[tuple[Any, ...]], processes: int, on_progress: Callable[[int, int], None]) -> None:
    waiting = [job for job in jobs if not _is_built(*job)]
    on_progress(len(jobs) - len(waiting), len(jobs))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for done, future in enumerate(as_completed([pool.submit(_build, *job) for job in waiting]), 1):
            future.result()
            on_progress(len(jobs) - len(waiting) + done, len(jobs))


def _runs(rows: Sequence[int], shards: int) -> list[list[int]]:
    """Neighboring files of about equal numbers of rows: their places, for at most so many shards."""
    ends = np.cumsum(rows)
    number = np.minimum((ends - 1).clip(min=0) * shards // max(1, int(ends[-1])), shards - 1)
    return [np.flatnonzero(number == each).tolist() for each in np.unique(number)]


def _codes(dataset: PathLike, only: set[str], binarizer: str | Binarizer, layer: Any, keep: Sequence[str]) -> DataCodes:
    return DataCodes(dataset, binarizer, layer=layer, keep=keep, only=only)


def _is_built(
    dataset: PathLike, folder: Path, only: set[str], binarizer: str | Binarizer, layer: Any,
    settings: IndexSettings, vectors: str | None, keep: Sequence[str],
) -> bool:  # fmt: skip
    """Whether a shard is there, of these files as they are now, and made in this way."""
    try:
        held = HammingIndex.load(folder)
    except (OSError, ValueError):
        return False
    codes = _codes(dataset, only, binarizer, layer, keep)
    fitted = None if isinstance(binarizer, str) else binarizer.to_safetensors()
    stored = None if codes.layer is None else vectors
    return (
        held.source == DataSource.of(codes.data, codes.data.rows_of_files)
        and held.provenance == codes.provenance
        and (held.binarizer and held.binarizer.to_safetensors()) == fitted
        and held.settings.kind == settings.kind
        and (None if held.rows.vectors is None else held.rows.vectors.dtype.name) == stored
        and list(held.rows.column_names) == codes.kept.names
    )


def _build(
    dataset: PathLike, folder: Path, only: set[str], binarizer: str | Binarizer, layer: Any,
    settings: IndexSettings, vectors: str | None, keep: Sequence[str],
) -> None:  # fmt: skip
    write_index(_codes(dataset, only, binarizer, layer, keep), folder, settings, vectors)
