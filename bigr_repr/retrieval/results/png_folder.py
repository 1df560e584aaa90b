"""Stored tokenizer codes to a folder of PNG files. Knows nothing of search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained, load
from bigr_repr.images.formats import one_line
from bigr_repr.retrieval.codes.decoding import decode_codes
from bigr_repr.retrieval.codes.files import read_codes
from bigr_repr.retrieval.codes.provenance import BITS
from bigr_repr.retrieval.index.hamming import HammingIndex

__all__ = ["decode_to_folder"]

_BATCH: Final = 256
_LONGEST_NAME: Final = 200  # bytes, of the 255 that file systems take


def decode_to_folder(
    source: PathLike,
    out: PathLike,
    *,
    only: Sequence[str] | None = None,
    limit: int | None = None,
    model: PathLike | Pretrained | None = None,
) -> int:
    """Decode tokenizer codes of an index folder or of a file of codes; returns how many.

    only: ids; None: all, or the first `limit`. model: that made the codes; None: by the name recorded with them.
    Files are named by number and id, as 00003-cat.png, in a folder that is new or empty. All appear, or none.

    Raises FileExistsError for a folder that holds things, ValueError for codes that are no tokenizer's, for an id that
    is not there, or for another model than the one recorded.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; name a new folder")
    ids, codes, provenance = _stored(Path(source))
    rows = (np.arange(len(codes)) if only is None else _rows(ids, only))[:limit]
    pre = _model(source, provenance, model)
    decode_codes(pre, codes[rows[:1]])  # a wrong model fails here, before a folder is made
    with _all_or_none(folder) as written:
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            pictures = decode_codes(pre, np.ascontiguousarray(codes[part]))
            for row, pixels in zip(part.tolist(), pictures, strict=True):
                written.append(folder / _file_name(row, str(row) if ids is None else ids[row]))
                Image.fromarray(pixels).save(written[-1])
    return len(rows)


@contextmanager
def _all_or_none(folder: Path) -> Iterator[list[Path]]:
    """A list to note written files in. If the block fails, they vanish, and the folder too if it was made."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        yield written
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        if made:
            folder.rmdir()
        raise


def _file_name(row: int, id: str) -> str:
    """A file name that every system takes: no control characters, and short."""
    name = one_line(PurePosixPath(id).stem).encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f"{row:05d}-{name}.png"


def _stored(source: Path) -> tuple[Sequence[str] | None, NDArray[np.uint8], Mapping[str, Any] | None]:
    if source.is_dir():
        index = HammingIndex.load(source)
        return [str(id) for id in index.ids.to_pylist()], index.tokens, index.provenance
    found = read_codes(source)
    if found.provenance is not None and found.provenance.get("of") != BITS:
        raise ValueError(f"{source} holds {found.provenance.get('of')}, which are no pictures; decode tokenizer bits")
    return found.ids, found.codes, found.provenance


def _rows(ids: Sequence[str] | None, only: Sequence[str]) -> NDArray[np.int64]:
    places = {} if ids is None else {id: row for row, id in reversed(list(enumerate(ids)))}
    missing = [id for id in only if id not in places]
    if missing:
        remedy = f"ids are paths as embedded, for example {ids[0]!r}" if ids else "there are no ids with them"
        raise ValueError(f"id {missing[0]!r} is not among the codes; {remedy}")
    return np.array([places[id] for id in only], np.int64)


def _model(source: PathLike, provenance: Mapping[str, Any] | None, model: PathLike | Pretrained | None) -> Pretrained:
    """The model to decode with: the one given, else the recorded one; checked to be the one recorded."""
    if model is None and provenance is None:
        raise ValueError("these codes do not say which model they come from; name it (--model)")
    if not isinstance(model, Pretrained):
        model = load(model or (provenance or {})["model"])
    recorded = None if provenance is None else provenance["weights_sha256"]
    if recorded not in (None, model.fingerprint):
        raise ValueError(
            f"{source}: codes of a model with SHA-256 {recorded[:12]}…, but {model.config.name} has "
            f"{model.fingerprint[:12]}…; give the model that made them"
        )
    return model
