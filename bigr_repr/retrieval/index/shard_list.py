"""The list that makes a folder a sharded index: names of the shards, and ids whose removal has begun.

shards.json     the names of the shards, in the order of their rows, and ids whose removal has begun
shard-00000/    an index folder, and so on; shard-00000b is the same shard, rebuilt but not listed yet
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bigr_repr.retrieval.index.folder import MANIFEST
from bigr_repr.system import files

__all__ = [
    "REMEDY", "SHARD_LIST", "SHARD_NAME", "is_index", "is_sharded", "manifests", "remove_unlisted", "shard_folders",
    "unfinished_removal", "unlist", "write_list",
]  # fmt: skip

SHARD_NAME: Final = re.compile(r"shard-\d{5}b?")
REMEDY: Final = "build it again: bigr-repr index build --shards"
SHARD_LIST: Final = "shards.json"
_FORMAT: Final = 1


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
