"""Several code data sets as one, each with a weight; classes are joined by name. Knows nothing of training."""

# n images drawn

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr.train.code_set import CodeSet


class CodeMixture(CodeSet):
    """Code sets read as one: of a set with weight w, each image is drawn w times as often as one of weight 1.

    In an epoch a set of m images has round(w * m) draws; those of a weight that is no whole number go on through the
    set from epoch to epoch. Labels are kept where every set has them.
    Raises ValueError for sets of different tokenizers or views, sets with captions, or weights that are not above 0.
    """

    def __init__(self, sets: Sequence[CodeSet], weights: Sequence[float]) -> None:
        if len(sets) != len(weights) or not sets or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights={tuple(weights)} must be above 0, one for each of {len(sets)} code sets")
        first = sets[0].header
        for other in sets:
            _check_alike(sets[0], other)
        self._sets, self._counts = (
            list(sets),
            [max(1, round(w * len(each))) for each, w in zip(sets, weights, strict=True)],
        )
        self._starts = np.cumsum([0, *(len(each) for each in sets)])
        self.folder, self.captions = Path(" + ".join(str(each.folder) for each in sets)), None
        names, self.labels = _joined(sets)
        self.header = replace(first, images=sum(self._counts), class_names=names, sha256={})

    def numbers(self, draws: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which images the draws (n,) of some epochs (n,) are: their numbers in the sets one after the other."""
        begins = np.cumsum([0, *self._counts])
        part = np.searchsorted(begins, draws, side="right") - 1
        sizes, counts = np.diff(self._starts), np.array(self._counts)
        within = (draws - begins[part] + epochs * counts[part]) % sizes[part]
        return np.asarray(self._starts[part] + within, np.int64)

    def bits(self, index: NDArray[Any], view: NDArray[Any]) -> NDArray[np.bool_]:
        """Bits of images by those numbers (n,), and views (n,): bool (n, N, K)."""
        part = np.searchsorted(self._starts, index, side="right") - 1
        found = np.empty((len(index), self.header.tokens, self.header.code_bits), np.bool_)
        for number in np.unique(part):
            rows = part == number
            found[rows] = self._sets[number].bits(index[rows] - self._starts[number], view[rows])
        return found


def _check_alike(one: CodeSet, other: CodeSet) -> None:
    """Raises ValueError unless two sets can be mixed."""
    for name in ("tokens", "code_bits", "tokenizer_sha256", "views"):
        ours, theirs = getattr(one.header, name), getattr(other.header, name)
        if ours != theirs:
            raise ValueError(f"{other.folder} has {name} {theirs}, {one.folder} {ours}; mix code sets of one tokenizer")
    if other.captions is not None:
        raise ValueError(f"{other.folder} has captions, which are not mixed yet; train on it alone")


def _joined(sets: Sequence[CodeSet]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Class names of all sets, each once, and the labels of all images by them; neither where a set has no labels."""
    labels = [each.labels for each in sets if each.labels is not None]
    if len(labels) < len(sets):
        return (), None
    known: dict[str, int] = {}
    found = []
    for each, own in zip(sets, labels, strict=True):
        names = each.header.class_names or tuple(str(number) for number in range(int(own.max()) + 1))
        numbers = np.array([known.setdefault(name, len(known)) for name in names])
        found.append(np.where(own < 0, -1, numbers[own]))
    return tuple(known), np.concatenate(found)


def split_weight(source: str) -> tuple[str, float]:
    """ "FOLDER:WEIGHT" -> (folder, weight); 1 for a name without one."""
    folder, colon, weight = source.rpartition(":")
    try:
        return (folder, float(weight)) if colon and not Path(source).exists() else (source, 1.0)
    except ValueError:
        return source, 1.0
