"""Captions from the usual sources: sidecar files, tar shards, Parquet columns, COCO's JSON, class names.

Every function returns the captions of each picture, none or several. Errors name the file, in one line.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike

Listed = tuple[str, ...]
_KEYS: Final = ("caption", "captions", "text", "txt")


def sidecar_captions(pictures: Sequence[PathLike]) -> list[Listed] | None:
    """The captions in `name.txt` or `name.json` next to each picture `name.jpg`; None if no picture has either.

    A text file has one caption per line; a JSON file has a string, a list of strings, or either under "caption",
    "captions", "text" or "txt". Raises ValueError for files that are neither UTF-8 nor JSON.
    """
    found = [_beside(Path(picture)) for picture in pictures]
    return found if any(found) else None


def _beside(picture: Path) -> Listed:
    for suffix in ("txt", "json"):
        if (file := picture.with_suffix(f".{suffix}")).is_file():
            return captions_in(file.read_bytes(), suffix, file)
    return ()


def captions_in(content: bytes, suffix: str, where: object) -> Listed:
    """The captions in the content of a "txt" or "json" file next to a picture, as in `sidecar_captions`.

    where: the name for errors. Raises ValueError likewise.
    """
    if suffix == "txt":
        return tuple(line.strip() for line in _utf8(content, where).splitlines() if line.strip())
    return _texts(_json(content, where), where)


def _utf8(content: bytes, where: object) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text (byte {error.start}); save it in UTF-8") from error


def _json(content: bytes, where: object) -> Any:
    try:
        return json.loads(_utf8(content, where))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}, line {error.lineno})") from error


def _texts(value: Any, where: object) -> Listed:
    """Captions from a string, a list of strings, an object with either, or nothing."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in _KEYS if key in value), None)
    if value is None:
        return ()
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence | np.ndarray) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"{where}: a caption is a {type(value).__name__}; captions are strings, or lists of strings")
    return tuple(listed)


def parquet_captions(file: PathLike, column: str) -> list[Listed] | None:
    """The captions in a column of a Parquet file, strings or lists of strings, by row; None if there is no such column.

    Rows without a caption (null) have none. Raises ValueError for strings that are not UTF-8, and for other types.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(os.fspath(file)) as parquet:
        if column not in parquet.schema_arrow.names:
            return None
        found: list[Listed] = []
        for batch in parquet.iter_batches(4096, columns=[column]):
            for number in range(len(batch)):
                where = f"{os.fspath(file)}#{len(found)}, column {column}"
                try:
                    value = batch.column(0)[number].as_py()
                    value = value.decode() if isinstance(value, bytes) else value
                except UnicodeDecodeError as error:
                    raise ValueError(f"{where}: not UTF-8 text; save it in UTF-8") from error
                found.append(_texts(value, where))
    return found


def coco_captions(file: PathLike, pictures: Sequence[PathLike]) -> list[Listed]:
    """The captions of pictures, by file name, in a COCO captions file: {"images": …, "annotations": …}.

    Raises ValueError for other files, and for one without captions of any of the pictures.
    """
    record = _json(Path(file).read_bytes(), file)
    try:
        names = {image["id"]: Path(image["file_name"]).name for image in record["images"]}
        by_name: dict[str, list[str]] = defaultdict(list)
        for each in record["annotations"]:
            by_name[names[each["image_id"]]] += _texts(each["caption"], file)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{os.fspath(file)} is not a COCO captions file ({error!r}); one holds images with id and file_name, "
            "and annotations with image_id and caption"
        ) from error
    found = [tuple(by_name.get(Path(picture).name, ())) for picture in pictures]
    if not any(found):
        raise ValueError(f"{os.fspath(file)} has no captions for these pictures; are the file names the same?")
    return found


def class_captions(labels: NDArray[np.int64] | None, names: Sequence[str], template: str) -> list[Listed]:
    """A caption for each labeled picture, from a template such as "a photograph of a {}"; none without a label.

    Raises ValueError for a template without {} and for pictures without named classes.
    """
    if "{}" not in template:
        raise ValueError(f"template={template!r} has no {{}} for the class name")
    if labels is None or not names:
        raise ValueError("the pictures have no named classes for captions; leave the template out")
    plain = [name.split(",")[0].replace("_", " ") for name in names]
    return [(template.replace("{}", plain[label]),) if label >= 0 else () for label in labels.tolist()]
