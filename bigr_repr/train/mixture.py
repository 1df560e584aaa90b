"""Mixes several weighted code data sets; classes are merged by name, and captions stay with their images.

Knows nothing of training.
"""

# n images drawn, B images of a batch, T tokens of the longest caption, E width of the text encoder's vectors

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr.train.caption_set import CaptionStore
from bigr_repr.train.code_set import CodeSet


class CodeMixture(CodeSet):
    """The code sets `sets` as one: each image of a set with weight w is drawn w times as often as one of weight 1.

    In an epoch, a set of m images has round(w * m) draws; with a fractional weight, they continue through the set from
    epoch to epoch. Labels are kept if every set has them; captions must come from one text encoder.
    Raises ValueError for sets of different tokenizers, views or text encoders, for captions that not all sets have, and
    for weights that are not positive.
    """

    def __init__(self, sets: Sequence[CodeSet], weights: Sequence[float]) -> None:
        if len(sets) != len(weights) or not sets or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights={tuple(weights)} must be above 0, one for each of {len(sets)} code sets")
        first = sets[0].header
        for other in sets:
            _check_alike(sets[0], other)
        self.sets, self._counts = (
            list(sets),
            [max(1, round(w * len(each))) for each, w in zip(sets, weights, strict=True)],
        )
        self._starts = np.cumsum([0, *(len(each) for each in sets)])
        self.folder = Path(" + ".join(str(each.folder) for each in sets))
        stores = [each.captions for each in sets if each.captions is not None]
        self.captions = CaptionMixture(stores) if stores else None
        names, self.labels = _joined(sets)
        sums = _named_apart([each.header.sha256 for each in sets])
        self.header = replace(first, images=sum(self._counts), class_names=names, sha256=sums)

    @property
    def draws(self) -> list[int]:
        """The number of draws from each set per epoch."""
        return list(self._counts)

    def numbers(self, draws: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images for draws (n,) of given epochs (n,): their numbers in the concatenated sets."""
        begins = np.cumsum([0, *self._counts])
        part = np.searchsorted(begins, draws, side="right") - 1
        sizes, counts = np.diff(self._starts), np.array(self._counts)
        within = (draws - begins[part] + epochs * counts[part]) % sizes[part]
        return np.asarray(self._starts[part] + within, np.int64)

    def bits(self, index: NDArray[Any], view: NDArray[Any]) -> NDArray[np.bool_]:
        """Bits of images by these numbers (n,), and views (n,): bool (n, N, K)."""
        part = np.searchsorted(self._starts, index, side="right") - 1
        found = np.empty((len(index), self.header.tokens, self.header.code_bits), np.bool_)
        for number in np.unique(part):
            rows = part == number
            found[rows] = self.sets[number].bits(index[rows] - self._starts[number], view[rows])
        return found


class CaptionMixture(CaptionStore):
    """The captions of several code sets, with their images numbered consecutively.

    Raises ValueError unless one text encoder made them all.
    """

    def __init__(self, stores: Sequence[CaptionStore]) -> None:
        first = stores[0]
        for other in stores:
            _check_encoder(first, other)
        self._stores = list(stores)
        self.folder, headers = Path(" + ".join(str(each.folder) for each in stores)), [each.header for each in stores]
        self._begins = np.cumsum([0, *(each.images for each in headers)])
        summed = ("images", "captions", "texts", "tokens", "bare", "cut")
        self.header = replace(
            first.header,
            **{name: sum(getattr(each, name) for each in headers) for name in summed},
            **{name: max(getattr(each, name) for each in headers) for name in ("longest", "limit")},
            sha256=_named_apart([each.sha256 for each in headers]),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"stores": self._stores}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["stores"])  # type: ignore[misc]  # the stores map their files in the new process

    def draw(self, index: Sequence[int], choices: Sequence[float]) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """As `CaptionStore.draw`: vectors (B, T, E), zeros past the end, and lengths (B,)."""
        part = np.searchsorted(self._begins, index, side="right") - 1
        lengths, drawn = np.zeros(len(part), np.int64), []
        for number in np.unique(part).tolist():
            rows = np.flatnonzero(part == number).tolist()
            own = [int(index[row] - self._begins[number]) for row in rows]
            vectors, lengths[rows] = self._stores[number].draw(own, [choices[row] for row in rows])
            drawn.append((rows, vectors))
        found = np.zeros((len(part), max(each.shape[1] for _, each in drawn), self.header.width), np.float16)
        for rows, vectors in drawn:
            found[rows, : vectors.shape[1]] = vectors
        return found, lengths

    def texts(self, count: int) -> list[str]:
        """`count` texts, alternating between sets."""
        listed = zip_longest(*(each.texts(count) for each in self._stores))
        return [text for turn in listed for text in turn if text is not None][:count]

    def _encoded(self, count: int) -> dict[str, NDArray[np.float16]]:
        """The vectors (T, E) of the same texts, by text."""
        every = {text: vectors for each in self._stores for text, vectors in each._encoded(count).items()}
        return {text: every[text] for text in self.texts(count)}

    @property
    def bytes_per_caption(self) -> float:
        """Mean size of a caption on disk."""
        sizes = sum(each.bytes_per_caption * each.header.captions for each in self._stores)
        return sizes / max(1, self.header.captions)


def _named_apart(sums: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The checksums of several folders' files, with keys such as "0/codes.npy"."""
    return {f"{number}/{name}": digest for number, each in enumerate(sums) for name, digest in each.items()}


def _check_encoder(one: CaptionStore, other: CaptionStore) -> None:
    """Raise ValueError unless two sets of captions were encoded alike."""
    ours, theirs = ((each.header.encoder, each.header.encoder_sha256) for each in (one, other))
    if ours != theirs:
        said = "; ".join(
            f"{each.folder} has captions of {name} ({sha256[:12]}…)"
            for each, (name, sha256) in ((one, ours), (other, theirs))
        )
        raise ValueError(f"{said}; encode them alike: bigr-repr train captions --text-encoder {ours[0]}")


def _check_alike(one: CodeSet, other: CodeSet) -> None:
    """Raise ValueError unless two sets can be mixed."""
    for name in ("tokens", "code_bits", "tokenizer_sha256", "views"):
        ours, theirs = getattr(one.header, name), getattr(other.header, name)
        if ours != theirs:
            raise ValueError(f"{other.folder} has {name} {theirs}, {one.folder} {ours}; mix code sets of one tokenizer")
    if (one.captions is None) != (other.captions is None):
        with_some, without = (one, other) if other.captions is None else (other, one)
        remedy = "give all sets captions, or none: bigr-repr train captions"
        raise ValueError(f"{with_some.folder} has captions, {without.folder} has none; {remedy}")


def _joined(sets: Sequence[CodeSet]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Class names of all sets, without repetition, and all images' labels; neither if a set has no labels."""
    labels = [each.labels for each in sets if each.labels is not None]
    if len(labels) < len(sets):
        return (), None
    known: dict[str, int] = {}
    found = []
    for each, own in zip(sets, labels, strict=True):
        names = each.header.class_names or tuple(str(number) for number in range(int(own.max()) + 1))
        numbers = np.array([known.setdefault(name, len(known)) for name in names])
        found.append(np.where(own < 0, -1, numbers[own]) if names else np.full(len(own), -1))
    return tuple(known), np.concatenate(found)


def split_weight(source: str) -> tuple[str, float]:
    """ "FOLDER:WEIGHT" -> (folder, weight); 1 for a name without one."""
    folder, colon, weight = source.rpartition(":")
    try:
        return (folder, float(weight)) if colon and not Path(source).exists() else (source, 1.0)
    except ValueError:
        return source, 1.0
