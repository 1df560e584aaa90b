"""Captions where people keep them: beside pictures, in tar shards, Parquet columns, COCO's JSON, names of classes.

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
    """The captions in `name.txt` or `name.json` beside each picture `name.jpg`; None if no picture has either.

    A text file holds one caption per line; a JSON file a text, a list of texts, or either under "caption", "captions",
    "text" or "txt". Raises ValueError for files that are neither UTF-8 nor JSON.
    """
    found = [_beside(Path(picture)) for picture in pictures]
    return found if any(found) else None


def _beside(picture: Path) -> Listed:
    for suffix in ("txt", "json"):
        if (file := picture.with_suffix(f".{suffix}")).is_file():
            return captions_in(file.read_bytes(), suffix, file)
    return ()


def captions_in(content: bytes, suffix: str, where: object) -> Listed:
    """The captions in the content of a "txt" or "json" file beside a picture, as `sidecar_captions` says.

    where: what errors name. Raises ValueError as that does.
    """
    if suffix == "txt":
        return tuple(line.strip() for line in _utf8(content, where).splitlines() if line.strip())
    return _texts(_json(content, where), where)


def _utf8(content: bytes, where: object) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text (byte {error.start}); write it again in UTF-8") from error


def _json(content: bytes, where: object) -> Any:
    try:
        return json.loads(_utf8(content, where))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}, line {error.lineno})") from error


def _texts(value: Any, where: object) -> Listed:
    """Captions from a text, a list of texts, an object that holds either, or nothing."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in _KEYS if key in value), None)
    if value is None:
        return ()
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence | np.ndarray) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"{where}: a caption is a {type(value).__name__}; captions are texts, or lists of texts")
    return tuple(listed)


def parquet_captions(file: PathLike, column: str) -> list[Listed] | None:
    """The captions in a column of a Parquet file, texts or lists of texts, by row; None if there is no such column.

    Rows without a caption (null) have none. Raises ValueError for texts that are not UTF-8, and for other types.
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
                    raise ValueError(f"{where}: not UTF-8 text; write it again in UTF-8") from error
                found.append(_texts(value, where))
    return found


def coco_captions(file: PathLike, pictures: Sequence[PathLike]) -> list[Listed]:
    """The captions of pictures, by file name, in a COCO captions file: {"images": …, "annotations": …}.

    Raises ValueError for another file, and for one that knows none of the pictures.
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
        raise ValueError(f"{os.fspath(file)} has captions of none of these pictures; are the file names the same?")
    return found


def class_captions(labels: NDArray[np.int64] | None, names: Sequence[str], template: str) -> list[Listed]:
    """A caption of each labeled picture from a template such as "a photograph of a {}"; none without a label.

    Raises ValueError for a template without {} and for pictures without classes that have names.
    """
    if "{}" not in template:
        raise ValueError(f"template={template!r} has no {{}} where the name of the class goes")
    if labels is None or not names:
        raise ValueError("the pictures have no classes with names to make captions of; leave the template out")
    plain = [name.split(",")[0].replace("_", " ") for name in names]
    return [(template.replace("{}", plain[label]),) if label >= 0 else () for label in labels.tolist()]
