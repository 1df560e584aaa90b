"""Builds a sharded index from an embedding data set, each shard in a separate process. Knows no pictures."""

# n rows

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.build import write_index
from bigr_repr.retrieval.codes.binarizer import Binarizer
from bigr_repr.retrieval.codes.dataset import DataCodes
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.folder import MANIFEST, FolderReader
from bigr_repr.retrieval.index.folder_writer import check_place, remove_files
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.settings import IndexSettings
from bigr_repr.retrieval.index.shard_list import busy, is_sharded, remove_unlisted, shard_folders, write_list
from bigr_repr.system.cluster import connected, last_line, require_cluster
from bigr_repr.system.files import locked
from bigr_repr.system.processes import end_with_parent

__all__ = ["build_shards"]

ENGINES: Final = ("local", "ray")
_RETRIES: Final = 2
_UNSEEN: Final = 60  # seconds for which a network file system may still report a file as missing
_Job = tuple[Any, ...]  # arguments of _build and _is_built


def build_shards(
    dataset: PathLike,
    out: PathLike,
    shards: int,
    *,
    processes: int = 1,
    engine: str = "local",
    ray_address: str | None = None,
    binarizer: str | Binarizer = "sign",
    n_bits: int | None = None,
    layer: int | str | None = None,
    kind: str | IndexSettings = "flat",
    vectors: str | None = "float16",
    keep: Sequence[str] = (),
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> HammingIndex:
    """Build a sharded index from a data set written by embed_images; returns it opened, for searching in this process.

    shards: maximum number, each of whole files of the data set and about equal in rows. engine: "local", `processes`
    processes at a time on this machine; "ray", the cores of the Ray cluster at ray_address (None: RAY_ADDRESS, or a
    temporary cluster on this machine), whose machines must be able to access the data set and out. Other arguments as
    in build_index; one binarizer is fitted for all. Existing shards are not rebuilt; other machines take over the
    shards of a lost one. An index in out stays as it is until all new shards are built. on_progress(shards done, all).

    Raises as build_index does, as embed_images for a missing cluster, and RuntimeError if files written by its machines
    do not appear here within a minute, or while another process is writing out.
    """
    _check(shards, processes, engine, ray_address)
    settings = IndexSettings(kind=kind) if isinstance(kind, str) else kind
    codes = DataCodes(dataset, binarizer, n_bits=n_bits, layer=layer, seed=seed, keep=keep)
    folder = Path(out).absolute()
    check_place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, busy(folder)):
        jobs, waiting = _placed(folder, _jobs(codes, folder, shards, (settings, vectors, tuple(keep))))
        built = _built_on_ray(waiting, ray_address) if engine == "ray" else _built_here(waiting, processes)
        _commit(folder, jobs, chain([None], built), on_progress, len(jobs) - len(waiting))
    return HammingIndex.load(folder)


def _placed(folder: Path, jobs: list[_Job]) -> tuple[list[_Job], list[_Job]]:
    """The jobs with their folders, and those still to do.

    Each shard has two possible names. Listed shards are never overwritten, so the old index lasts until the new list is
    written: a build uses the free name.
    """
    listed = set(shard_folders(folder)) if is_sharded(folder) else set()
    placed, waiting = [], []
    for dataset, first, *rest in jobs:
        names = (first, first.with_name(f"{first.name}b"))
        done = next((name for name in names if _is_built(dataset, name, *rest)), None)
        free = next(name for name in names if name not in listed)
        placed.append((dataset, done or free, *rest))
        if done is None:
            waiting.append(placed[-1])
    return placed, waiting


def _commit(
    folder: Path, jobs: list[_Job], built: Iterable[None], on_progress: Callable[[int, int], None], done: int
) -> None:
    """Once all are built, make these the folder's shards, and remove other shards and any unsharded index."""
    for number, _ in enumerate(built, done):
        on_progress(number, len(jobs))
    names = [job[1].name for job in jobs]
    write_list(folder, names)
    remove_unlisted(folder, names)
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_files(folder)


def _jobs(codes: DataCodes, folder: Path, shards: int, how: tuple[Any, ...]) -> list[_Job]:
    """One job per shard. how: the last arguments of _build."""
    data = codes.data
    return [
        (str(data.folder.resolve()), folder / f"shard-{number:05d}", {data.files[place].name for place in run},
         codes.binarizer or "bits", codes.layer, *how)
        for number, run in enumerate(_runs(data.rows_of_files, shards))
    ]  # fmt: skip


def _check(shards: int, processes: int, engine: str, ray_address: str | None) -> None:
    if shards < 1 or processes < 1:
        raise ValueError(f"shards={shards} and processes={processes} must be at least 1")
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    if engine == "ray":
        require_cluster(ray_address)


def _built_here(jobs: list[_Job], processes: int) -> Iterator[None]:
    """Build shards in processes; yields once per finished shard."""
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=end_with_parent) as pool:
        for future in as_completed([pool.submit(_build, *job) for job in jobs]):
            yield future.result()


def _built_on_ray(jobs: list[_Job], address: str | None) -> Iterator[None]:
    """The same on a Ray cluster, one core each."""
    if not jobs:
        return
    with connected(address):
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = ray.remote(_build_alone).options(num_cpus=1, max_retries=_RETRIES)
        waiting = {task.remote(job): job for job in jobs}
        try:
            while waiting:
                (done,), _ = ray.wait(list(waiting))
                ray.get(done)
                folder = waiting.pop(done)[1]
                if not _is_seen(folder / MANIFEST):
                    raise RuntimeError(
                        f"{folder}: files written by a machine of the Ray cluster are not visible from here; use a "
                        "folder that all machines share"
                    )
                yield
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise RuntimeError(
                f"a shard was lost {_RETRIES + 1} times with its machine ({last_line(error)}); finished shards are "
                "kept: repeat the command"
            ) from error
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def _is_seen(path: Path) -> bool:
    """Whether a file from another machine exists; waits up to a minute, because NFS caches missing files."""
    for _ in range(_UNSEEN):
        if path.is_file():
            return True
        time.sleep(1)
    return path.is_file()


def _runs(rows: Sequence[int], shards: int) -> list[list[int]]:
    """Indices of consecutive files with about equal numbers of rows, for at most `shards` shards."""
    ends = np.cumsum(rows)
    number = np.minimum((ends - 1).clip(min=0) * shards // max(1, int(ends[-1])), shards - 1)
    return [np.flatnonzero(number == each).tolist() for each in np.unique(number)]


def _codes(dataset: PathLike, only: set[str], binarizer: str | Binarizer, layer: Any, keep: Sequence[str]) -> DataCodes:
    return DataCodes(dataset, binarizer, layer=layer, keep=keep, only=only)


def _is_built(
    dataset: PathLike, folder: Path, only: set[str], binarizer: str | Binarizer, layer: Any,
    settings: IndexSettings, vectors: str | None, keep: Sequence[str],
) -> bool:  # fmt: skip
    """Whether a shard exists that was built from the current files with these settings."""
    try:
        held = HammingIndex.load(folder)
    except (OSError, ValueError):
        return False
    codes = _codes(dataset, only, binarizer, layer, keep)
    now = DataSource.of(codes.data, codes.data.rows_of_files)
    fitted = None if isinstance(binarizer, str) else binarizer.to_safetensors()
    stored = None if codes.layer is None else vectors
    return (
        held.source is not None
        and held.source.still(now)
        and held.provenance == codes.provenance
        and (held.binarizer and held.binarizer.to_safetensors()) == fitted
        and _as_asked(folder, held.settings, settings)
        and (None if held.rows.vectors is None else held.rows.vectors.dtype.name) == stored
        and list(held.rows.column_names) == codes.kept.names
    )


def _as_asked(folder: Path, held: IndexSettings, asked: IndexSettings) -> bool:
    """Whether a shard was built with these settings; earlier versions did not record which of them were asked for."""
    if held.exact or asked.exact:
        return held.exact and asked.exact
    return bool(FolderReader(folder).manifest.get("asked") == asked.to_dict())


def _build_alone(job: _Job) -> None:
    """_build() with one thread, for one core of a cluster.  Takes over from a lost process."""
    import faiss

    faiss.omp_set_num_threads(1)
    _build(*job)


def _build(
    dataset: PathLike, folder: Path, only: set[str], binarizer: str | Binarizer, layer: Any,
    settings: IndexSettings, vectors: str | None, keep: Sequence[str],
) -> None:  # fmt: skip
    write_index(_codes(dataset, only, binarizer, layer, keep), folder, settings, vectors)
