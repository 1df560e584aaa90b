"""Captions from the usual sources: sidecar files, tar shards, Parquet columns, COCO's JSON, class names.

Every function returns the captions of each picture, none or several. Errors name the file, in one line.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike

log = logging.getLogger(__name__)
Listed = tuple[str, ...]
_Parts = tuple[str, ...]  # of a path
_KEYS: Final = ("caption", "captions", "text", "txt")


def sidecar_captions(pictures: Sequence[PathLike]) -> list[Listed] | None:
    """The captions in `name.txt` or `name.json` next to each picture `name.jpg`; None if no picture has either.

    A text file has one caption per line; a JSON file has a string, a list of strings, or either under "caption",
    "captions", "text" or "txt". Raises ValueError for files that are neither UTF-8 nor JSON, and for folders of these
    names.
    """
    found = [_beside(Path(picture)) for picture in pictures]
    return found if any(found) else None


def _beside(picture: Path) -> Listed:
    for suffix in ("txt", "json"):
        if (file := picture.with_suffix(f".{suffix}")).is_file():
            return captions_in(file.read_bytes(), suffix, file)
        if os.path.lexists(file):
            raise ValueError(
                f"{file} is a folder or a broken link, not a file of captions of {picture.name}; rename or remove it"
            )
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
    text = _utf8(content, where)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}, line {error.lineno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or a thousand nested lists
        raise ValueError(
            f"{where} is JSON that cannot be read: a number is too long, or lists are nested too deep; write it anew"
        ) from error


def _texts(value: Any, where: object) -> Listed:
    """Captions from a string, a list of strings, an object with either, or nothing."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in _KEYS if key in value), None)
    if value is None:
        return ()
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence | np.ndarray) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"{where}: a caption is a {type(value).__name__}; captions are strings, or lists of strings")
    for text in listed:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a pair of JSON's \u escapes
            raise ValueError(f"{where}: a caption is not UTF-8 text; write it in UTF-8") from error
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
    """The captions of pictures in a COCO captions file: {"images": …, "annotations": …}.

    A picture has the captions of the `file_name` whose end its path shares the longest part of: of val/1.jpg, rather
    than of train/1.jpg. Pictures that fit several alike are left out, with a warning; another warns of captions that
    name other folders.

    Raises ValueError for other files, and for one without captions of any of the pictures.
    """
    record = _json(Path(file).read_bytes(), file)
    try:
        names = {image["id"]: Path(image["file_name"]).parts for image in record["images"]}
        captions: dict[_Parts, list[str]] = {parts: [] for parts in names.values()}
        for each in record["annotations"]:
            captions[names[each["image_id"]]] += _texts(each["caption"], file)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{os.fspath(file)} is not a COCO captions file ({error!r}); one holds images with id and file_name, "
            "and annotations with image_id and caption"
        ) from error
    named = dict(_same_ends([Path(picture).absolute().parts for picture in pictures], captions))
    found = [tuple(captions[named[number]]) if number in named else () for number in range(len(pictures))]
    if not any(found):
        raise ValueError(f"{os.fspath(file)} has no captions for these pictures; are the file names the same?")
    return found


def _same_ends(pictures: Sequence[_Parts], names: Iterable[_Parts]) -> Iterator[tuple[int, _Parts]]:
    """Numbers of pictures, each with the name of the longest common end. Warns of what is unclear or left out."""
    left: list[dict[int, _Parts]] = [dict(enumerate(pictures)), dict(enumerate(names))]
    unclear: list[int] = []
    moved: list[tuple[Path, Path]] = []
    for length in range(max(map(len, left[1].values()), default=0), 0, -1):
        ours, theirs = (_by_end(paths, length) for paths in left)
        for end in ours.keys() & theirs.keys():
            if len(ours[end]) == len(theirs[end]) == 1:
                number, name = ours[end][0], left[1][theirs[end][0]]
                moved += [(Path(*pictures[number]), Path(*name))] if length == 1 < len(name) else []
                yield number, name
            else:
                unclear += ours[end]
            for paths, numbers in zip(left, (ours[end], theirs[end]), strict=True):
                for number in numbers:
                    del paths[number]
    if unclear:
        said = "%d pictures have no captions: it is unclear which of several file names or pictures is meant, as for %s"
        log.warning(f"{said}; keep the folders that the file names state", len(unclear), Path(*pictures[min(unclear)]))
    if moved:
        said = (
            "%d pictures have the captions of files in other folders, because the names are the same, such as %s and %s"
        )
        log.warning(f"{said}; check that they are the same pictures", len(moved), *min(moved))


def _by_end(paths: Mapping[int, _Parts], length: int) -> dict[_Parts, list[int]]:
    """The paths, by number, that have so many parts at the end in common."""
    found: dict[_Parts, list[int]] = defaultdict(list)
    for number, parts in paths.items():
        if len(parts) >= length:
            found[parts[-length:]].append(number)
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
