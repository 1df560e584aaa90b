"""Decodes stored tokenizer codes to a folder of PNG files. Knows nothing of search."""

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
from bigr_repr.codes import code_bytes
from bigr_repr.embed.dataset.parts import find_parts
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.images.find import one_line
from bigr_repr.retrieval.codes.decoding import decode_codes
from bigr_repr.retrieval.codes.files import CodeFile, read_codes
from bigr_repr.retrieval.codes.provenance import BITS, provenance_of
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.index.shard_list import is_index

__all__ = ["decode_to_folder"]

_BATCH: Final = 256
_LONGEST_NAME: Final = 200  # bytes, of the 255 that file systems allow


def decode_to_folder(
    source: PathLike | CodeFile,
    out: PathLike,
    *,
    only: Sequence[str] | None = None,
    limit: int | None = None,
    model: PathLike | Pretrained | None = None,
) -> int:
    """Decode tokenizer codes of a data set, an index folder or a file of codes; returns their number.

    source: a folder written by embed_images with codes, an index folder, a file for read_codes, or its result. only:
    ids; None: all, or the first `limit`. model: the one that made the codes; None: by the recorded name. Files are
    named by number and id, such as 00003-cat.png, in a new or empty folder. Either all are written, or none.

    Raises FileExistsError for a folder that is not empty, ValueError for codes that are not tokenizer codes, for an
    unknown id, or for a model other than the recorded one.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; choose a new folder: out=DIR")
    found = source if isinstance(source, CodeFile) else _stored(Path(source), limit if only is None else None)
    ids, codes = found.ids, found.codes
    rows = (np.arange(len(codes)) if only is None else _rows(ids, only))[:limit]
    pre = _model("codes" if isinstance(source, CodeFile) else source, found.provenance, model)
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
    """A list for recording written files. If the block fails, they are removed, and the folder too if it was new."""
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
    """A file name that every system accepts: short, without control characters."""
    name = one_line(PurePosixPath(id).stem).encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f"{row:05d}-{name}.png"


def _stored(source: Path, most: int | None) -> CodeFile:
    """The stored tokenizer codes; of a data set, the first `most` rows or a few more."""
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if source.is_dir() and find_parts(source):
        return _of_data_set(source, most)
    if source.is_dir() and not is_index(source):
        raise FileNotFoundError(
            f"{source}: neither embeddings with codes (bigr-repr embed --codes), nor an index, nor a code set"
        )
    if source.is_dir():
        index = HammingIndex.load(source)
        ids = [str(id) for id in index.ids.to_pylist()]
        return CodeFile(ids=ids, codes=index.tokens, n_bits=index.token_layout().n_bits, provenance=index.provenance)
    found = read_codes(source)
    if found.provenance is not None and found.provenance.get("of") != BITS:
        raise ValueError(f"{source} holds binarized features, which are not pictures; decode tokenizer bits")
    return found


def _of_data_set(folder: Path, most: int | None) -> CodeFile:
    data = EmbeddingSet(folder)
    ids, parts = list[str](), list[NDArray[np.uint8]]()
    for names, codes in data.code_batches():
        ids += names
        parts.append(codes)
        if most is not None and len(ids) >= most:
            break
    held = np.concatenate(parts) if parts else np.empty((0, code_bytes(data.n_bits or 0)), np.uint8)
    return CodeFile(ids=ids, codes=held, n_bits=data.n_bits or 0, provenance=provenance_of(data.provenance, BITS, None))


def _rows(ids: Sequence[str] | None, only: Sequence[str]) -> NDArray[np.int64]:
    places = {} if ids is None else {id: row for row, id in reversed(list(enumerate(ids)))}
    missing = [id for id in only if id not in places]
    if missing:
        remedy = f"ids are paths as embedded, for example {ids[0]!r}" if ids else "there are no ids with them"
        raise ValueError(f"id {missing[0]!r} is not among the codes; {remedy}")
    return np.array([places[id] for id in only], np.int64)


def _model(source: PathLike, provenance: Mapping[str, Any] | None, model: PathLike | Pretrained | None) -> Pretrained:
    """The model to decode with: the given or the recorded one; must be the recorded one."""
    if model is None and provenance is None:
        raise ValueError("these codes do not record which model made them; name it (--model)")
    if not isinstance(model, Pretrained):
        model = load(model or (provenance or {})["model"])
    recorded = None if provenance is None else provenance["weights_sha256"]
    if recorded not in (None, model.fingerprint):
        raise ValueError(
            f"{source}: codes of a model with SHA-256 {recorded[:12]}…, but {model.config.name} has "
            f"{model.fingerprint[:12]}…; use the model that made them"
        )
    return model
