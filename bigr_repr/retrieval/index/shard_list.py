"""The list that makes a folder a sharded index: names of the shards, and ids whose removal has begun.

shards.json     the names of the shards, in the order of their rows, and ids whose removal has begun
shard-00000/    an index folder, and so on; shard-00000b is the same shard, rebuilt but not listed yet
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from bigr_repr.retrieval.index.folder import MANIFEST
from bigr_repr.system import files

__all__ = [
    "REMEDY", "SHARD_LIST", "SHARD_NAME", "busy", "changing_shards", "file_states", "is_index", "is_sharded",
    "manifests", "of_one_state", "remove_unlisted", "shard_folders", "unfinished_removal", "unlist", "write_list",
]  # fmt: skip

SHARD_NAME: Final = re.compile(r"shard-\d{5}b?")
REMEDY: Final = "build it again: bigr-repr index build --shards"
SHARD_LIST: Final = "shards.json"
_FORMAT: Final = 1
_TRIES: Final = 6  # attempts to open an index that others change
_T = TypeVar("_T")


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds a sharded index."""
    return (folder / SHARD_LIST).is_file()


def is_index(folder: Path) -> bool:
    """Whether a folder holds an index, sharded or not."""
    return is_sharded(folder) or (folder / MANIFEST).is_file()


def shard_folders(folder: Path) -> list[Path]:
    """The shards of a folder.  Raises FileNotFoundError if it holds none, ValueError for a damaged list."""
    names = _record(folder)["shards"]
    if wrong := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{folder / SHARD_LIST}: damaged ({wrong[0]!r:.60} is not a shard); {REMEDY}")
    return [folder / name for name in names]


def unfinished_removal(folder: Path) -> list[Any]:
    """The ids, strings or numbers, of an unfinished removal.  Raises as shard_folders does."""
    return list(_record(folder).get("removing", []))


def _record(folder: Path) -> dict[str, Any]:
    path = folder / SHARD_LIST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no shards here ({SHARD_LIST}); {REMEDY}")
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        names, ids = record["shards"], record.get("removing", [])
        if record["format"] != _FORMAT or not names or not all(isinstance(name, str) for name in names):
            raise ValueError("no list of shards")
        if not isinstance(ids, list) or not all(type(each) in (str, int) for each in ids):
            raise ValueError("no list of ids to remove")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); {REMEDY}") from error
    return record


def manifests(folder: Path) -> list[Path]:
    """The files that change when an index changes, sharded or not."""
    return [each / MANIFEST for each in (shard_folders(folder) if is_sharded(folder) else [folder])]


def file_states(folders: Sequence[Path]) -> Hashable:
    """A value that changes when one of these folders' manifests is replaced, written or removed."""
    return tuple(_file_state(folder / MANIFEST) for folder in folders)


def _file_state(path: Path) -> Hashable:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _index_state(folder: Path) -> Hashable:
    """A value that changes with an index, sharded or not."""
    try:
        folders = shard_folders(folder) if is_sharded(folder) else []
    except (OSError, ValueError):
        folders = []
    return _file_state(folder / SHARD_LIST), file_states([folder, *folders])


class Opened(Protocol):
    """The interface of opened shards, implemented by Shards. apart: whether processes have opened them too."""

    apart: bool

    def close(self) -> None: ...


def of_one_state(folder: Path, load: Callable[[], _T], shards: Callable[[_T], Opened | None]) -> _T:
    """load(), repeated when others change the index meanwhile, so that all shards that it opens are of one state.

    shards: of what was loaded; None: not sharded. Of an index that changes every time, whatever was opened last serves
    a single process.
    Raises what load raises for an index that stays as it is, RuntimeError for one that changes every time.
    """
    for left in reversed(range(_TRIES)):
        before = _index_state(folder)
        try:
            loaded = load()
        except (OSError, ValueError):
            if _index_state(folder) == before:
                raise
            continue
        opened = shards(loaded)
        if opened is None or _index_state(folder) == before or not (left or opened.apart):
            return loaded
        opened.close()
    raise RuntimeError(f"{folder} changed each of the {_TRIES} times that it was opened; wait for what is writing it")


def busy(folder: Path) -> str:
    """The error while an index is locked."""
    return f"{folder}: another process is writing this index; wait for it"


@contextmanager
def changing_shards(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the list of shards, and what is in them.

    Raises RuntimeError while another does, and if it has just made the index an unsharded one.
    """
    with files.locked(folder, busy(folder)):
        if not is_sharded(folder):
            raise RuntimeError(f"{folder}: another process has just replaced this index; repeat the command")
        yield


def write_list(folder: Path, names: Sequence[str], removing: Sequence[Any] = ()) -> None:
    """Make these the folder's shards. removing: ids that are being removed from them."""
    record = {"format": _FORMAT, "shards": list(names), **({"removing": list(removing)} if removing else {})}
    with files.replacing(folder / SHARD_LIST) as file:
        file.write(json.dumps(record).encode())


def unlist(folder: Path) -> None:
    """Make a folder unsharded, and remove its shards."""
    (folder / SHARD_LIST).unlink(missing_ok=True)
    remove_unlisted(folder, ())


def remove_unlisted(folder: Path, names: Sequence[str]) -> None:
    """Remove all shards except these from a folder."""
    for path in list(folder.iterdir()):
        if SHARD_NAME.fullmatch(path.name) and path.name not in names:
            shutil.rmtree(path)
