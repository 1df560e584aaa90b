"""Lists the pictures in inputs of every kind: files and folders, local or in stores, Parquet files, tar shards.

Independent of decoding and models. Folders and patterns mean the same in a store as locally; see find_images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain, groupby, islice
from pathlib import PurePath
from typing import Final

from bigr_repr._typing import PathLike
from bigr_repr.embed.dataset.containers import stamp_of
from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.images.containers import is_container, is_table, members
from bigr_repr.images.find import MAGIC, Source, escape_path, find_images, nothing_at, require, split_pattern, walk
from bigr_repr.images.formats import ImageError
from bigr_repr.images.parquet import PARQUET, USUAL_COLUMNS, Columns, parquet_parts
from bigr_repr.system.object_store import ObjectPath, as_place, is_url, local_path
from bigr_repr.system.threads import map_ahead

_OPENED: Final = 64  # containers opened at a time
_KNOWN: Final = 16  # tar files whose contents are remembered


def find_sources(
    inputs: PathLike | Iterable[PathLike],
    *,
    root: PathLike | None = None,
    literal: bool = False,
    labels: bool = False,
    columns: Columns = USUAL_COLUMNS,
    known: Callable[[str], Sequence[Source] | None] | None = None,
) -> Iterator[Source]:
    """List the pictures that inputs name, in the given order, as a stream.

    Files, folders and patterns are interpreted by bigr_repr.images.find_images, including root and literal, and URLs
    of object stores (`s3://bucket/folder`, `gs://…`, or anything else fsspec supports) work the same way.

    A Parquet file or tar shard that is named explicitly, or that a pattern ending in its suffix matches
    (`shards/*.tar`), stands for the pictures in it, in order; see bigr_repr.images.containers.members. A row's path is
    the file's plus the row number (`train.parquet#17`); a member's is its name, after the shard's path
    (`shard-3.tar/0017.jpg`) unless that shard is the only input. A name that occurs twice in a shard is listed twice. A
    container that is damaged, or holds no picture, is itself listed as an input after whatever could be listed.

    A folder whose name ends in a Parquet suffix, as Spark writes them, stands for the Parquet files below it.

    labels: also look for labels in containers. columns: of Parquet files. Several containers are opened in parallel,
    ahead of need. known: returns the pictures of a known tar shard, so that it need not be read.

    Raises what find_images does; OSError that names the URL if a store refuses or does not answer, so that nothing is
    permanently left out because of an outage; ValueError for a URL outside root.
    """
    listed = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    if isinstance(listed, Sequence) and not literal:
        require(given for given in map(_local, listed) if not is_url(given))
    opened = partial(_opened, labels=labels, columns=columns, known=known or (lambda file: None))
    return _find(_unfolded(map(_local, listed)), root, literal, opened)


def _local(given: PathLike) -> str:
    return local_path(os.fspath(given))


def _unfolded(inputs: Iterator[str]) -> Iterator[str]:
    """Inputs, with folders named like Parquet files replaced by the Parquet files in them."""
    for given in inputs:
        folder = as_place(given) if given.rstrip("/").lower().endswith(PARQUET) else None
        if isinstance(folder, ObjectPath) and given.startswith("http"):
            folder = None
        yield from (parquet_parts(folder) if folder is not None and folder.is_dir() else []) or [given]


def _find(
    inputs: Iterator[str], root: PathLike | None, literal: bool, opened: Callable[..., Iterator[Source]]
) -> Iterator[Source]:
    first = list(islice(inputs, 2))
    alone = len(first) == 1
    outright = root is None and alone and (literal or not MAGIC.search(os.fsencode(first[0])))
    found: Iterator[Source]
    for remote, run in groupby(chain(first, inputs), is_url):
        if remote:
            found = _find_objects(run, None if root is None else os.fspath(root), alone, literal)
        else:
            found = find_images(run, root=root, literal=literal, alone=alone)
        for container, some in groupby(found, lambda source: is_container(source.file)):
            if container:
                listings = map_ahead(partial(opened, outright=outright), some, workers=_OPENED, ahead=_OPENED)
                yield from chain.from_iterable(listings)
            else:
                yield from some
    if not first:
        yield from find_images(iter(()))  # raises the error for no inputs


def _opened(
    source: Source, outright: bool, labels: bool, columns: Columns, known: Callable[[str], Sequence[Source] | None]
) -> Iterator[Source]:
    """The pictures in a container, opened ahead; a tar shard is listed completely."""
    table, front = is_table(source.file), "" if outright else f"{source.path}/"
    before = None if table else known(source.file)
    if before is not None and all(each.path.startswith(front) for each in before):
        return iter(before)
    stamped = replace(source, stamp=stamp_of(source.file))  # before it is read: it may be rewritten meanwhile
    found = _pictures_in(stamped, outright, labels, columns)
    return chain(list(islice(found, 1)), found) if table else iter(list(found))


def _pictures_in(source: Source, outright: bool, labels: bool, columns: Columns) -> Iterator[Source]:
    front = "" if outright else f"{source.path}/"
    try:
        for member in members(source.file, labels=labels, columns=columns):
            path = f"{source.path}#{member.name}" if member.size is None else front + member.name
            yield Source(path, source.file, member.start, member.size, member.label, member.together, source.stamp)
    except ImageError as error:
        if error.kind in ("unreadable", "unreachable") and is_url(source.file):
            raise ConnectionError(f"{error}; listing needs to read it; try again later") from error
        yield source  # the error is found again, and recorded, when this input is processed


# ---- one picture by its recorded path


def container_entry(path: str) -> Entry | None:
    """The picture that a recorded path such as `train.parquet#17` or `shard-3.tar/0017.jpg` names; None if none does.

    If a tar file holds the name twice, the first one. Raises ImageError for a damaged file.
    """
    file, _, row = path.rpartition("#")
    if row.isdecimal() and file.lower().endswith(PARQUET):
        return member_entry(file, path)
    parents = (str(parent) for parent in PurePath(path).parents)
    tar = next((parent for parent in parents if parent.lower().endswith(".tar") and os.path.isfile(parent)), None)  # noqa: PTH113
    return None if tar is None else member_entry(tar, path)


def member_entry(file: str, path: str) -> Entry | None:
    """The picture of a container whose recorded path ends as `path` does; None if there is none."""
    if not os.path.isfile(file):  # noqa: PTH113
        return None
    if file.lower().endswith(PARQUET):
        row = path.rpartition("#")[2]
        return Entry(escape_path(path), file, int(row)) if row.isdecimal() else None
    if not file.lower().endswith(".tar"):
        return None
    name = path.removeprefix(f"{file}/")
    name = name.partition(f"{PurePath(file).name}/")[2] or name
    status = os.stat(file)  # noqa: PTH116
    places, error = _tar_places(os.path.abspath(file), status.st_mtime_ns, status.st_size)  # noqa: PTH100
    if name in places:
        return Entry(escape_path(path), file, *places[name])
    if error is not None:
        raise ImageError(error.kind, str(error))
    return None


@lru_cache(_KNOWN)
def _tar_places(file: str, time: int, size: int) -> tuple[dict[str, tuple[int, int | None]], ImageError | None]:
    """Start and size of a tar file's pictures, by name, and how it is damaged. time, size: as it is now."""
    places: dict[str, tuple[int, int | None]] = {}
    try:
        for member in members(file):
            places.setdefault(member.name, (member.start, member.size))
    except ImageError as error:
        return places, ImageError(error.kind, str(error))
    return places, None


# ---- object stores


def _find_objects(urls: Iterator[str], root: str | None, alone: bool, literal: bool) -> Iterator[Source]:
    parts: tuple[bytes, ...]
    for url in urls:
        place, pattern = ObjectPath(url), MAGIC.search(url.encode())
        if literal or url.startswith(("http://", "https://")) or place.is_file():
            yield Source(_shown(url, root), url)
            continue
        top, parts = url.rstrip("/"), ()
        if pattern:
            scheme, _, rest = url.partition("://")
            fixed, parts = split_pattern(rest.encode())
            top = f"{scheme}://{fixed.decode()}"
        elif not place.is_dir():
            raise FileNotFoundError(f"{url}: no such object, and none below it; check the bucket and the key")
        shown = f"{top}/" if root is not None or pattern or not alone else ""
        member = None
        for name in walk(parts, partial(_members, top), lambda folder: folder):
            member = name.decode()
            yield Source(_shown(shown + member, root), f"{top}/{member}")
        if member is None:
            raise nothing_at(url.encode(), folder=not parts)


def _shown(url: str, root: str | None) -> str:
    if root is None:
        return url
    if not url.startswith(root.rstrip("/") + "/"):
        raise ValueError(f"{url} is outside root={root}; choose a root that contains every input, or none")
    return url[len(root.rstrip("/")) + 1 :]


def _members(top: str, folder: bytes) -> Iterator[bytes]:
    """Names in a folder of a store, in the form that bigr_repr.images.find.walk takes."""
    below = ObjectPath(f"{top}/{folder.decode()}").sorted_members()
    return (name.encode() for name in below if not name.startswith("."))
