"""Brings an index up to date with its data sets: adds new rows, replaces changed ones, removes dropped ones.

The binarizer is kept, so the codes of remaining rows do not change. Knows nothing of images.
"""

# n rows (images)

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.codes.dataset import DataCodes
from bigr_repr.retrieval.codes.provenance import differing_fields
from bigr_repr.retrieval.codes.rows import IndexRows
from bigr_repr.retrieval.codes.source import DataFile, DataSource, full_path, listing
from bigr_repr.retrieval.index.folder import FolderReader
from bigr_repr.retrieval.index.folder_writer import FolderWriter, writing
from bigr_repr.retrieval.index.growth import FolderState, grow
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.settings import IndexSettings
from bigr_repr.retrieval.index.shard_list import (
    changing_shards,
    is_sharded,
    shard_folders,
    unfinished_removal,
    write_list,
)
from bigr_repr.retrieval.index.storage import RowWriter
from bigr_repr.system.object_store import as_place

__all__ = ["Updated", "remove_images", "update_index"]

_KEPT: Final = 1 << 16  # rows copied at a time
Own: TypeAlias = Callable[[str, str], bool]  # (data set, file name): whether that file belongs in an index


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What an update did. kept, read: numbers of unchanged and of newly read rows; dropped: the rest.

    files: number of files read from the data sets.
    """

    kept: int
    read: int
    dropped: int
    files: int


class _UpdatePlan(NamedTuple):
    """source: of the updated index. gone: rows to drop. new: parts to read, with their codes."""

    source: DataSource
    gone: NDArray[np.int64]
    new: list[DataFile]
    codes: list[DataCodes]

    def read(self, vectors: str | None) -> Iterator[IndexRows]:
        """The rows of the parts to read."""
        for codes in self.codes:
            yield from codes.batches(vectors)


def update_index(index: PathLike, dataset: PathLike | None = None, *, add: Sequence[PathLike] = ()) -> Updated:
    """Bring an index folder up to date with its data sets; only new and changed files are read.

    dataset: the folder or URL of one of them, or the new location of the only one; None: all. add: data sets to add.

    Remaining rows keep their order, and new ones come after them. New rows are appended to the index's files, and
    dropped rows are marked, so the time depends on the size of the change; when an eighth of the rows has been dropped,
    or an approximate index has grown by a tenth since it was built, everything is rewritten. Rows that were removed
    from the index stay out until their file in the data set changes. Updates are atomic; for a sharded index, each
    shard's update is: each is updated from its own files, and new files go to the shard with the fewest rows. An
    interrupted removal is finished first.

    Raises ValueError for an index that does not record its data set, and for an incompatible data set.
    """
    folder = Path(index)
    if is_sharded(folder):
        with changing_shards(folder):
            return _update_shards(folder, dataset, add)
    return _update(folder, dataset, add, lambda folder, name: True)


def _update(folder: Path, dataset: PathLike | None, add: Sequence[PathLike], own: Own) -> Updated:
    """update_index() of one folder, for those files of its data sets that are its own."""
    FolderReader(folder)  # raises if there is no index
    with writing(folder) as writer:
        reader = FolderReader(folder)
        state = FolderState.read(reader)
        if state.source is None or state.provenance is None:
            raise ValueError(f"{folder} does not say which data set it is of; build it again")
        plan = _plan(state, *_looked_at(state.source, dataset, add, folder), own)
        new = sum(part.rows for part in plan.new)
        if len(plan.gone) or plan.source != state.source:  # new rows change the source too
            if state.has_room(len(plan.gone), new) and reader.can_grow():
                grow(writer, reader, state.gaps.places(plan.gone), plan.read(state.vectors), plan.source)
            else:
                _write_anew(writer, HammingIndex.load(folder), plan, state.asked)
    kept = state.source.rows - len(plan.gone)
    return Updated(kept=kept, read=new, dropped=len(plan.gone), files=sum(part.rows > 0 for part in plan.new))


def remove_images(index: PathLike, ids: Sequence[str] | Sequence[int]) -> tuple[int, int]:
    """Remove the rows with these ids from an index folder; returns the numbers of removed and remaining rows.

    They are marked as dropped; once an eighth of the rows is, the index (or shard) is rewritten without them. In a
    sharded index, an interrupted removal is finished by the next one, and counted there.
    Raises ValueError, and changes nothing, for an unknown id.
    """
    folder = Path(index)
    if is_sharded(folder):
        with changing_shards(folder):
            return _remove_from_shards(folder, ids)
    FolderReader(folder)
    with writing(folder) as writer:
        reader, opened = FolderReader(folder), HammingIndex.load(folder)
        state, rows = FolderState.read(reader), opened.rows.require(ids)
        if state.has_room(len(rows), 0) and reader.can_grow():
            kept = np.delete(np.arange(len(opened)), rows)
            source = None if opened.source is None else opened.source.keeping(kept)
            grow(writer, reader, state.gaps.places(rows), iter(()), source)
            return len(rows), len(opened) - len(rows)
        removed = opened.remove(ids)
        written = RowWriter(writer)
        written.append(opened.rows)
        written.commit(opened.parts, state.asked if len(opened) else None)
        return removed, len(opened)


# ---- shards


def _update_shards(index: Path, dataset: PathLike | None, add: Sequence[PathLike]) -> Updated:
    """update_index() of shards, in sequence; new files go to the smallest shard of their data set."""
    if unfinished_removal(index):
        _finish_removal(index)
    folders = shard_folders(index)
    sources = [_source_of(folder) for folder in folders]
    known = list(dict.fromkeys(folder for source in sources for folder in source.folders))
    named = None if dataset is None else full_path(as_place(dataset))
    _check_named(index, known, named, [full_path(as_place(folder)) for folder in add])
    moved = {known[0]: named} if len(known) == 1 and named is not None else {}
    held = {moved.get(folder, folder): [_names(source, folder) for source in sources] for folder in known}
    rows = [source.rows for source in sources]
    smallest, done = rows.index(min(rows)), []
    for number, folder in enumerate(folders):
        more = add if number == smallest else ()
        its = named is not None and held[named][number] is not None
        if its or more or (named is None and not add):
            own = _own_files(held, rows, number)
            done.append(_update(folder, named if its else None, more, own))
    return Updated(**{field.name: sum(getattr(each, field.name) for each in done) for field in fields(Updated)})


def _source_of(folder: Path) -> DataSource:
    source = FolderState.read(FolderReader(folder)).source
    if source is None:
        raise ValueError(f"{folder} does not say which data set it is of; build it again")
    return source


def _names(source: DataSource, folder: str) -> set[str] | None:
    """The files of a data set in a shard; None if the shard does not have that data set."""
    return set(source.files_of(source.folders.index(folder))) if folder in source.folders else None


def _own_files(held: Mapping[str, Sequence[set[str] | None]], rows: Sequence[int], number: int) -> Own:
    """Which files of a data set belong to a shard: those it has and, if it is the smallest, new ones."""

    def own(dataset: str, name: str) -> bool:
        names = held.get(dataset)
        if names is None:  # added now
            return True
        mine = [shard for shard, held_there in enumerate(names) if name in (held_there or ())]
        its = [shard for shard, held_there in enumerate(names) if held_there is not None]
        return number == mine[0] if mine else number == min(its, key=rows.__getitem__)

    return own


def _remove_from_shards(index: Path, ids: Sequence[str] | Sequence[int]) -> tuple[int, int]:
    begun = unfinished_removal(index)
    known, rows = set(begun), HammingIndex.load(index).rows
    new = rows.require([id for id in ids if id not in known])  # type: ignore[arg-type]
    names = [folder.name for folder in shard_folders(index)]
    write_list(
        index, names, [*begun, *rows.ids.take(new).to_pylist()]
    )  # so that an interrupted removal can be finished
    return _finish_removal(index)


def _finish_removal(index: Path) -> tuple[int, int]:
    """Remove the ids noted in the list of shards, shard by shard; returns as remove_images."""
    folders, removed, left = shard_folders(index), 0, 0
    listed = unfinished_removal(index)
    for folder in folders:
        rows = HammingIndex.load(folder).rows
        here = [id for id, place in zip(listed, rows.places(listed).tolist(), strict=True) if place >= 0]
        gone, kept = remove_images(folder, here) if here else (0, len(rows))
        removed, left = removed + gone, left + kept
    if listed:
        write_list(index, [folder.name for folder in folders])
    return removed, left


# ---- what to do


def _looked_at(
    source: DataSource, dataset: PathLike | None, add: Sequence[PathLike], index: PathLike
) -> tuple[DataSource, Collection[int]]:
    """The current locations of the data sets, including those to add, and the numbers of those to check."""
    known = list(source.folders)
    chosen: Collection[int] = range(len(known)) if dataset is None and not add else ()
    named = None if dataset is None else full_path(as_place(dataset))
    new = list(dict.fromkeys(full_path(as_place(folder)) for folder in add))
    _check_named(index, known, named, new)
    if named is not None:
        known = [named] if len(known) == 1 else known
        chosen = [known.index(named)]
    numbers = range(len(known), len(known) + len(new))
    return replace(source, folders=(*known, *new)), [*chosen, *numbers]


def _check_named(index: PathLike, known: Sequence[str], named: str | None, new: Sequence[str]) -> None:
    """Raise ValueError for an unknown data set, or for one to add that the index already has."""
    if named is not None and len(known) > 1 and named not in known:
        raise ValueError(f"{index} was built from {', '.join(known)}, not {named}; add it with: index update --add")
    now = [named] if len(known) == 1 and named is not None else known
    if held := [folder for folder in new if folder in now]:
        raise ValueError(f"{index} already includes {held[0]}; update it without --add")


def _plan(state: FolderState, source: DataSource, looked_at: Collection[int], own: Own) -> _UpdatePlan:
    """What happens to every part, and which files are read.

    Raises FileNotFoundError for a missing data set, ValueError for an incompatible one.
    """
    stays, held = [part.dataset not in looked_at for part in source.parts], list(source.parts)
    new: list[DataFile] = []
    codes: list[DataCodes] = []
    for dataset in looked_at:
        folder = source.folders[dataset]
        known, there = source.files_of(dataset), listing(folder)
        now = {name: found for name, found in there.items() if own(folder, name)}
        fresh = set(now)
        for name, (size_and_time, _) in now.items():
            number = known.get(name)
            if number is not None and held[number].still(size_and_time):
                stays[number] = True
                held[number] = held[number]._replace(time=held[number].time or size_and_time[1])
                fresh.remove(name)
        if fresh or not there:
            codes.append(_opened(state, folder, fresh))
            data = codes[-1].data
            for file, rows in zip(data.files, data.rows_of_files, strict=True):
                new.append(DataFile(file.name, rows, rows, *now[file.name][0], dataset))
    gone = [np.arange(*source.starts[number : number + 2]) for number, stay in enumerate(stays) if not stay]
    parts = (*(part for part, stay in zip(held, stays, strict=True) if stay), *new)
    return _UpdatePlan(replace(source, parts=parts), np.concatenate([np.empty(0, np.int64), *gone]), new, codes)


def _opened(state: FolderState, folder: str, only: Collection[str]) -> DataCodes:
    assert state.provenance is not None
    layer = state.provenance["layer"]
    codes = DataCodes(folder, state.binarizer or "bits", layer=layer, keep=state.columns, only=only)
    if found := differing_fields(state.provenance, codes.provenance):
        raise ValueError(
            f"the index and {folder} do not match: {found}; embed that with the model and settings of the index"
        )
    return codes


# ---- doing it


def _write_anew(writer: FolderWriter, old: HammingIndex, plan: _UpdatePlan, asked: IndexSettings | None) -> None:
    """Write all rows of the plan. asked: the settings to record; an emptied index forgets them with its own."""
    old.rows.verify()
    rows, kept = RowWriter(writer), np.delete(np.arange(len(old)), plan.gone)
    if not len(kept) and not any(part.rows for part in plan.new):
        parts = old.parts.keeping(kept)._replace(source=plan.source)
        rows.append(parts.rows)
        rows.commit(parts)
        return
    for start in range(0, len(kept), _KEPT):
        rows.append(old.rows.picked(kept[start : start + _KEPT]))
    for batch in plan.read(None if old.rows.vectors is None else old.rows.vectors.dtype.name):
        rows.append(batch)
    mapped = rows.mapped()
    rows_of = np.concatenate([kept, np.full(len(mapped) - len(kept), -1)])
    rows.commit(old.moved(mapped, rows_of, plan.source).parts, asked)
