"""Linear probe and 20-NN on a user's own labels, before and after adapting a model. Knows nothing of training."""

# n rows (images)

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr.datasets import ImageSet
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.probes.linear_probe import C_GRID
from bigr_repr.evaluate.runs.bench import BenchRow, bench
from bigr_repr.evaluate.runs.settings import BenchSettings, OnProgress

__all__ = ["compare_models"]

_NEIGHBORS: Final = 20
_MIDDLE: Final = C_GRID[len(C_GRID) // 2]  # where no class has a second image by which to choose a C


def compare_models(
    models: tuple[str, str],
    images: ImageSet,
    kept: NDArray[np.int64],
    held_out: NDArray[np.int64],
    settings: BenchSettings | None = None,
    *,
    device: str | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> tuple[BenchRow, BenchRow] | None:
    """Rows for two models, each at its default layer: trained on the images `kept` (n,), tested on those `held_out`.

    device: of the usual settings, where none are given; with one image per class, the probe's C is fixed. None if the
    images have no labels or only one class: there is nothing to tell apart. Raises as `bench` does.
    """
    if images.labels is None:
        return None
    classes, counts = np.unique(images.labels[kept], return_counts=True)
    if len(classes) < 2:
        return None
    data = BenchData(
        name="held-out pictures",
        train=_part("pictures", images, kept),
        test=_part("held-out pictures", images, held_out),
    )
    penalties = (_MIDDLE,) if counts.max() == 1 else ()
    given = settings or BenchSettings(k=(min(_NEIGHBORS, len(kept)),), device=device, C=penalties)
    (before,), (after,) = (bench(model, data, given, on_progress=on_progress) for model in models)
    return before, after


def _part(name: str, images: ImageSet, rows: NDArray[np.int64]) -> Part:
    assert images.labels is not None
    labels = images.labels[rows]
    record: dict[str, Any] = {"source": name, "images": len(rows), "classes": len(np.unique(labels))}
    return Part(name=name, source=images, rows=rows, labels=labels, class_names=images.class_names, record=record)
