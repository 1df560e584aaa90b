"""Opens image sets from a user's files, folders and data set names. Knows nothing of what is in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from bigr_repr._typing import PathLike
from bigr_repr.datasets.files import ArraySet, FolderSet, ParquetSet
from bigr_repr.datasets.image_set import ImageSet, JoinedSet
from bigr_repr.datasets.named import TorchvisionSet
from bigr_repr.datasets.scenes import scene_set
from bigr_repr.datasets.shards import TarSet, expand_braces
from bigr_repr.images.containers import is_container, is_table
from bigr_repr.images.parquet import PARQUET, USUAL_COLUMNS, Columns, parquet_parts


def _open(source: str, train: bool, columns: Columns) -> list[ImageSet]:
    """The parts of one source."""
    if source.partition(":")[0] == "synthetic-captions":
        return [scene_set(source, train)]
    if source.startswith("torchvision:"):
        _, name, root = (*source.split(":", 2), "", "")[:3]
        return [TorchvisionSet(name, root or ".", train=train)]
    if Path(source).suffix.lower() in PARQUET and not Path(source).is_dir():
        return [ParquetSet(source, columns)]
    if Path(source).suffix == ".npz":
        return [ArraySet(source)]
    return _in_folder(source, columns)


def _in_folder(source: str, columns: Columns) -> list[ImageSet]:
    """Parquet files, otherwise pictures, otherwise tar shards; a data set in parts may be named like a Parquet file."""
    found: list[PathLike] = []
    if Path(source).suffix.lower() in PARQUET:
        found.extend(parquet_parts(Path(source)))
    else:
        found.extend(sorted(file for file in Path(source).glob("[!._]*") if file.suffix.lower() in PARQUET))
    if found:
        return [ParquetSet(file, columns) for file in found]
    try:
        return [FolderSet(source)]
    except FileNotFoundError:
        if shards := sorted(Path(source).glob("[!._]*.tar")):
            return [TarSet(shards)]
        raise


def _is_tar(source: str) -> bool:
    return is_container(source) and not is_table(source) and not Path(source).is_dir()


def open_images(
    sources: PathLike | Sequence[PathLike], *, train: bool = True, columns: Columns = USUAL_COLUMNS
) -> ImageSet:
    """Open one source, or several joined.

    A source is a folder of images, a Parquet file (`*.parquet`, `*.pq`) or a tar shard (`*.tar`), a folder of either,
    an `.npz` of images, `torchvision:NAME:ROOT` (`train` selects its split) or `synthetic-captions:COUNT`. Braces
    expand to several: `shards/{000..012}.tar`. columns: of Parquet files. Raises FileNotFoundError or ValueError naming
    the source.
    """
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not listed:
        raise ValueError("sources is empty; give a folder, Parquet files, tar shards or torchvision:NAME:ROOT")
    given = [os.fspath(item) for item in listed]
    names = [name for item in given for name in ([item] if Path(item).exists() else expand_braces(item))]
    parts: list[ImageSet] = []
    for are_tars, group in groupby(names, _is_tar):  # adjacent shards are one set, with common classes
        run = list(group)
        parts += [TarSet(run)] if are_tars else [part for name in run for part in _open(name, train, columns)]
    joined = parts[0] if len(parts) == 1 else JoinedSet(parts)
    if len(joined) == 0:
        raise ValueError(f"{', '.join(given)}: no images found")
    return joined
