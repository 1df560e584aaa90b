"""The captions of a packed code data set, encoded once for training a text generator. Knows nothing of training.

Next to the codes are `captions.npy` (concatenated tokens of all distinct texts, float16 (tokens, E), memory-mapped),
`captions-index.npz` (where each text begins, and which texts each image has), `captions.jsonl` (the texts, one JSON
string per line) and `captions.json`. A text shared by many images is stored once.
"""

# n images, C captions in total, X distinct texts, T tokens of a text, E width of the text encoder's vectors

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr.config import from_fields
from bigr_repr.system.damaged import named_if_damaged
from bigr_repr.system.files import naming, remove, replacing, sha256_of
from bigr_repr.system.sums import reading_sealed, sealed
from bigr_repr.train.single_writer import only_writer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bigr_repr.checkpoints.text_encoders import TextEncoder

_FORMAT: Final = "bigr-repr captions 1"
_VECTORS: Final = "captions.npy"
_INDEX: Final = "captions-index.npz"
_TEXTS: Final = "captions.jsonl"
_HEADER: Final = "captions.json"
_BATCH: Final = 64


@dataclass(frozen=True, kw_only=True)
class CaptionHeader:
    """The contents of `captions.json`. `bare`: images without a caption; `cut`: texts longer than `limit` tokens.

    `limit` is the encoder's own if that is lower and cut any.

    `encoder_sha256` is the text encoder's fingerprint, `sha256` those of the other files, by name.
    """

    images: int
    captions: int
    texts: int
    tokens: int
    width: int
    longest: int
    limit: int
    bare: int
    cut: int
    encoder: str
    encoder_sha256: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    format: str = _FORMAT


class CaptionStore:
    """Encoded captions on disk, memory-mapped.

    Raises FileNotFoundError for a folder without captions, ValueError for damaged ones or another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        remedy = "make them again with: bigr-repr train captions"
        with reading_sealed(self.folder / _HEADER, remedy=remedy) as record:
            if record.get("format") != _FORMAT:
                raise ValueError(f"format={record.get('format')!r}; this version reads {_FORMAT!r}")
            self.header = from_fields(CaptionHeader, record, "it")
            for name, digest in self.header.sha256.items():
                if sha256_of(self.folder / Path(name).name) != digest:
                    raise ValueError(f"{name} is damaged: its SHA-256 is not the one in {_HEADER}")
            self._open()

    def _open(self) -> None:
        with named_if_damaged(_VECTORS):
            self._vectors = np.load(self.folder / _VECTORS, mmap_mode="r", allow_pickle=False)
        with named_if_damaged(_INDEX), np.load(self.folder / _INDEX, allow_pickle=False) as index:
            self._starts, self._of_image, self._text = index["starts"], index["of_image"], index["text"]
        found = (self._vectors.shape, len(self._starts) - 1, len(self._of_image) - 1, len(self._text))
        header = self.header
        stated = ((header.tokens, header.width), header.texts, header.images, header.captions)
        if found != stated:
            raise ValueError(f"the files hold {found}, {_HEADER} says {stated}")

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "header": self.header}  # data-loading processes map the files themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def draw(self, index: Sequence[int], choices: Sequence[float]) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """A caption of each of the images `index` (B,): vectors (B, T, E), zeros past the end, and lengths (B,).

        choices (B,), in [0, 1), select one if an image has several. An image without any gets the null caption.
        """
        texts = [self._chosen(image, choice) for image, choice in zip(index, choices, strict=True)]
        spans = [(0, 0) if text < 0 else (int(self._starts[text]), int(self._starts[text + 1])) for text in texts]
        lengths = np.array([stop - start for start, stop in spans], np.int64)
        vectors = np.zeros((len(spans), max(1, int(lengths.max())), self.header.width), np.float16)
        for row, (start, stop) in zip(vectors, spans, strict=True):
            row[: stop - start] = self._vectors[start:stop]
        return vectors, lengths

    def _chosen(self, image: int, choice: float) -> int:
        first, last = int(self._of_image[image]), int(self._of_image[image + 1])
        return int(self._text[first + int(choice * (last - first))]) if last > first else -1

    def texts(self, count: int) -> list[str]:
        """The first `count` distinct texts."""
        with (self.folder / _TEXTS).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in islice(lines, count)]

    def _encoded(self, count: int) -> dict[str, NDArray[np.float16]]:
        """The vectors (T, E) of the same texts, by text."""
        spans = zip(self._starts, self._starts[1:], strict=False)
        return {text: self._vectors[start:stop] for text, (start, stop) in zip(self.texts(count), spans, strict=False)}

    @property
    def bytes_per_caption(self) -> float:
        """Mean size of a caption on disk: its share of vectors, texts and index."""
        names = (_VECTORS, _INDEX, _TEXTS)
        return sum((self.folder / name).stat().st_size for name in names) / max(1, self.header.captions)


class StoredTexts:
    """A text encoder that knows the first `count` texts of a store, and needs no network for them."""

    def __init__(self, store: CaptionStore, count: int) -> None:
        self._vectors = store._encoded(count)
        self.name, self.width, self.fingerprint = store.header.encoder, store.header.width, store.header.encoder_sha256

    def encode(self, texts: Sequence[str], limit: int) -> list[NDArray[np.float16]]:
        return [self._vectors[text][:limit] for text in texts]

    def count(self, text: str) -> int:
        return len(self._vectors[text])


def clean_caption(text: object) -> str:
    """A caption as stored, with white space collapsed. Raises TypeError for anything but Unicode text."""
    if not isinstance(text, str):
        raise TypeError(f"a caption is a {type(text).__name__}; captions are texts")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TypeError("a caption is not UTF-8 text; write it in UTF-8") from error
    return " ".join(text.split())


def check_captions(captions: Sequence[Sequence[str]]) -> None:
    """Check the captions of every image before any work. Raises ValueError as `write_captions` does."""
    _numbered(captions)


def write_captions(
    captions: Sequence[Sequence[str]],
    encoder: TextEncoder,
    folder: str | Path,
    *,
    limit: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> CaptionStore:
    """Encode the captions of every image into the folder of its codes.

    captions: of each image, none or several; empty ones are ignored.  limit: maximum number of tokens per text.
    `on_progress(done, total)` counts distinct texts. The header is written last, so that an interrupted run's files are
    never read as complete. Raises FileExistsError if the folder holds captions, ValueError if there are none and,
    naming the image, for one that is not text, RuntimeError while another process writes to the folder.
    """
    if limit < 1:
        raise ValueError(f"caption_tokens={limit} must be at least 1")
    texts, listed = _numbered(captions)
    with only_writer(target := Path(folder)):
        if (target / _HEADER).exists():
            raise FileExistsError(f"{target} already holds captions; choose another folder or remove it")
        _write(texts, listed, encoder, target, limit, on_progress)
    return CaptionStore(target)


def _write(
    texts: Sequence[str],
    listed: Sequence[Sequence[int]],
    encoder: TextEncoder,
    target: Path,
    limit: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    with replacing(target / _TEXTS) as file:
        file.writelines(json.dumps(text, ensure_ascii=False).encode() + b"\n" for text in texts)
    lengths, cut = _encode_all(texts, encoder, target / _VECTORS, limit, on_progress)
    index: dict[str, NDArray[Any]] = {
        "starts": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "of_image": np.concatenate([[0], np.cumsum([len(own) for own in listed])]).astype(np.int64),
        "text": np.array([text for own in listed for text in own], np.int32),
    }
    with replacing(target / _INDEX) as file:
        np.savez(file, allow_pickle=False, **index)
    header = CaptionHeader(
        images=len(listed), captions=len(index["text"]), texts=len(texts), tokens=int(sum(lengths)),
        width=encoder.width, longest=max(lengths), limit=max(lengths) if cut else limit,
        bare=sum(not own for own in listed), cut=cut, encoder=encoder.name, encoder_sha256=encoder.fingerprint,
    )  # fmt: skip
    header = replace(header, sha256={name: sha256_of(target / name) for name in (_VECTORS, _INDEX, _TEXTS)})
    with replacing(target / _HEADER) as file:
        file.write(json.dumps(sealed(asdict(header)), indent=1).encode())


def _numbered(captions: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """The distinct texts, and the numbers of each image's texts."""
    number: dict[str, int] = {}
    listed = [[number.setdefault(text, len(number)) for text in _of_image(i, own)] for i, own in enumerate(captions)]
    if not number:
        raise ValueError("no image has a caption; name the column or file that holds them")
    return list(number), listed


def _of_image(image: int, captions: Sequence[str]) -> list[str]:
    try:
        return [text for text in map(clean_caption, captions) if text]
    except TypeError as error:
        raise ValueError(f"image {image}: {error}") from error


def _encode_all(
    texts: Sequence[str],
    encoder: TextEncoder,
    file: Path,
    limit: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[int], int]:
    """Write the vectors of all texts, batch by batch. Returns the number of tokens of each, and of truncated texts."""
    lengths: list[int] = []
    cut = 0
    raw = file.with_suffix(".part")
    try:
        with naming(file, raw), raw.open("wb") as parts:
            for start in range(0, len(texts), _BATCH):
                batch = texts[start : start + _BATCH]
                encoded = encoder.encode(batch, limit)
                longest = max(map(len, encoded))  # only such texts may be cut, maybe at the encoder's own, lower limit
                for text, vectors in zip(batch, encoded, strict=True):
                    parts.write(np.ascontiguousarray(vectors, np.float16).tobytes())
                    lengths.append(len(vectors))
                    cut += len(vectors) == longest and encoder.count(text) > longest
                if on_progress is not None:
                    on_progress(len(lengths), len(texts))
        shape = (sum(lengths), encoder.width)
        with replacing(file) as target, raw.open("rb") as parts:
            np.lib.format.write_array_header_2_0(target, {"descr": "<f2", "fortran_order": False, "shape": shape})
            while block := parts.read(1 << 22):
                target.write(block)
    finally:
        remove(raw)
    return lengths, cut
