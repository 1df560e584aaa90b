"""The request for a benchmark's features, and the features with their facts. Does not know where features come from."""

# n rows (images), D features

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr.evaluate.data.disclosure import trained_on
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.representations.base import TOKENS, View
from bigr_repr.evaluate.runs.settings import BenchSettings, Layers, OnProgress
from bigr_repr.features.condition import FeatureCondition
from bigr_repr.system.machine import describe_machine

__all__ = [
    "BenchFeatures",
    "Wanted",
    "count_duplicates",
    "count_equal_rows",
    "facts_of",
    "how_read",
    "seen_in_training",
    "with_tokens",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchFeatures:
    """Features of both sides by view, as stored (bits are packed), and the facts common to all their rows."""

    representation: str
    data: BenchData
    train: dict[View, NDArray[Any]]
    test: dict[View, NDArray[Any]]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The arguments of `features_of`."""

    model: str | None
    data: BenchData
    settings: BenchSettings
    layers: Layers | None
    train: bool
    tokens: bool
    on_progress: OnProgress

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.data.train, self.data.test) if self.train else (self.data.test,)


def with_tokens(views: list[View], n_bits: int | None) -> list[View]:
    return views if n_bits is None or views[-1].n_bits is not None else [*views, View(item="codes", n_bits=n_bits)]


def facts_of(wanted: Wanted, record: dict[str, Any], duplicates: int) -> dict[str, Any]:
    from bigr_repr._version import __version__

    told = record.get("condition") or (wanted.settings.condition.record() if wanted.settings.condition else None)
    return {
        "model": record,
        "pool": wanted.settings.pool,
        "mirror": wanted.settings.mirror,
        **({"condition": told} if told else {}),
        "train": wanted.data.train.record,
        "test": wanted.data.test.record,
        "test_images_in_train": duplicates,
        "trained_on": None,
        "machine": describe_machine(),
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def seen_in_training(model: str, training: str, data: BenchData, *, labels: bool) -> dict[str, str | None]:
    """What a model's training record says about this data set, for its facts; also logged. labels: as `trained_on`."""
    found = (trained_on(name, training, labels=labels) for name in (data.name, data.train.name, data.test.name))
    said = next(filter(None, found), None)
    if said:
        _log.warning("%s: %s was %s", data.name, model, said)
    return {"trained_on": said}


def how_read(facts: Mapping[str, Any]) -> str:
    """How these features were extracted, in words, if it differs from the default; else "".

    It includes how the keys of a file of weights were matched.
    """
    pool = facts.get("pool", "avg")
    said = [
        f"tokens pooled by {pool}" if pool not in ("avg", TOKENS) else "",
        "averaged with the mirror image" if facts.get("mirror") else "",
        f"read with {FeatureCondition.from_record(told).words}" if (told := facts.get("condition")) else "",
        f"weights of {file}" if (file := facts.get("model", {}).get("checkpoint")) else "",
    ]
    return ", ".join(filter(None, said))


def count_equal_rows(sides: Sequence[dict[View, NDArray[Any]]], view: View, data: BenchData) -> int:
    how = "going by their features" if view.n_bits is None else "going by their bits"
    rows = [_row_bytes(side[view]) for side in sides]
    return count_duplicates(rows[0], rows[1], data, how)


def _row_bytes(features: NDArray[Any]) -> NDArray[np.uint8]:
    flat = np.ascontiguousarray(features)
    return flat.view(np.uint8).reshape(len(flat), -1)


def count_duplicates(train: NDArray[np.uint8], test: NDArray[np.uint8], data: BenchData, how: str) -> int:
    """The number of test images that are also training images, compared by their row of bytes; logged if not zero."""
    seen = {row.tobytes() for row in train}
    count = sum(row.tobytes() in seen for row in test)
    if count:
        _log.warning(
            "%s: %d of %d test images are also training images, %s; leave them out of one side",
            data.name, count, len(test), how,
        )  # fmt: skip
    return count
