"""How close generated images are to real ones, in a representation's features. Knows neither commands nor tables."""

# n images, D features

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr.datasets import ImageSet
from bigr_repr.evaluate.data.feature_files import FeatureSet
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.metrics.generation import GenerationQuality, generation_quality
from bigr_repr.evaluate.representations.base import Representation
from bigr_repr.evaluate.representations.open import judge, open_representation
from bigr_repr.evaluate.runs.cache import FeatureCache
from bigr_repr.evaluate.runs.extraction import BenchSettings, OnProgress, features_of
from bigr_repr.system.machine import describe_machine

__all__ = ["bench_generation"]


def bench_generation(
    model: str | None,
    generated: ImageSet | FeatureSet,
    real: ImageSet | FeatureSet,
    settings: BenchSettings,
    *,
    layer: int | str | None = None,
    k: int = 3,
    on_progress: OnProgress = lambda what, done, total: None,
) -> tuple[GenerationQuality, dict[str, Any]]:
    """How close generated images are to real ones, in the features of a representation.

    model: a name as in `representations`; None: efficientnet-lite0, or the default model if that is not installed.
    The distance is the FID only with inception:FILE. layer: None: its default. k: of precision and recall. generated,
    real: images, or features of both by one network, which model then names (None: their file does).

    Also returns facts about the model and the machine. Raises ValueError for features of one side only, for a
    representation that has only bits, and as `features_of` and `generation_quality` do.
    """
    parts = [_whole("real", real), _whole("generated", generated)]
    stored = {isinstance(part.source, FeatureSet) for part in parts}
    if len(stored) > 1:
        raise ValueError("one side has features and the other images; give images of both, or features by one network")
    if stored == {True}:
        extractor, sides, record = _read(model, parts, settings, layer)
    else:
        representation = open_representation(model or judge(), device=settings.device, seed=settings.seeds[0])
        extractor, sides = _extracted(representation, parts, settings, layer, on_progress)
        record = representation.record
    found = generation_quality(*sides, extractor=extractor, k=k, device=settings.device, fid=bool(record.get("fid")))
    return found, {"model": record, "pool": settings.pool, "machine": describe_machine()}


def _whole(name: str, source: ImageSet | FeatureSet) -> Part:
    rows = np.arange(len(source))
    return Part(name=name, source=source, rows=rows, labels=np.zeros_like(rows), record={"images": len(source)})


def _read(
    model: str | None, parts: Sequence[Part], settings: BenchSettings, layer: int | str | None
) -> tuple[str, list[NDArray[Any]], dict[str, Any]]:
    """The name of what computed the features, both sides (n, D), and a record of their files."""
    found = []
    for part in parts:
        data = BenchData(name=part.name, train=part, test=part)
        found.append(features_of(model, data, settings, layers=() if layer is None else (layer,), train=False))
    files = [file for each in found for file in each.facts["model"]["files"]]
    sides = [side for each in found for side in each.test.values()]
    return found[0].representation, sides, found[0].facts["model"] | {"files": files}


def _extracted(
    representation: Representation,
    parts: Sequence[Part],
    settings: BenchSettings,
    layer: int | str | None,
    on_progress: OnProgress,
) -> tuple[str, list[NDArray[Any]]]:
    """The name of what computed the features, and both sides (n, D)."""
    layers = () if layer is None else (representation.layer_index(layer),)
    (view,) = representation.views(layers, dataclasses.replace(settings.reading, codes=False))
    if view.n_bits is not None:
        raise ValueError(f"{representation.name} has only bits; Gaussians need numbers: choose a model or pixels")
    cache = FeatureCache(settings.cache, batch_size=settings.batch_size, workers=settings.workers)
    sides = []
    for part in parts:
        progress = functools.partial(on_progress, f"{representation.name}, {part.name}")
        sides.append(cache.get(representation, part, [view.item], progress)[view.item])
    return f"{representation.name}, {view.where}", sides
