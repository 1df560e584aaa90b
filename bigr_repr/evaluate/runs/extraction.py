"""Features of both sides of a benchmark: from the cache, extracted, or read from embeddings and files of features.

Knows nothing of probes or neighbors.
"""

# n rows (images), D features

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.datasets import ImageSet
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.evaluate.data.feature_files import FeatureSet
from bigr_repr.evaluate.data.splits import BenchData
from bigr_repr.evaluate.probes.protocols import DINOV2
from bigr_repr.evaluate.representations.base import BlockChoice, Representation, View
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.runs import best_layer
from bigr_repr.evaluate.runs.cache import DIGESTS, FeatureCache
from bigr_repr.evaluate.runs.features import (
    BenchFeatures,
    Wanted,
    count_duplicates,
    facts_of,
    seen_in_training,
    with_tokens,
)
from bigr_repr.evaluate.runs.settings import BenchSettings, Layers, OnProgress, every_block
from bigr_repr.evaluate.runs.stored import check_embeddings, check_features, read_embeddings, read_features
from bigr_repr.system.devices import choose_device

__all__ = [
    "BenchFeatures",
    "BenchSettings",
    "Layers",
    "OnProgress",
    "check_wanted",
    "extract_together",
    "features_of",
]

_log = logging.getLogger(__name__)


def features_of(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    layers: Layers | None = (),
    train: bool = True,
    tokens: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> BenchFeatures:
    """Both sides' features: from the cache, extracted, or read from embeddings and files. Arguments as in `bench`.

    train: False leaves the training side out, if only test images are needed. tokens: also return the tokenizer's bits,
    if there are any, as the last view.
    """
    choose_device(settings.device)  # fail now, not after hours
    wanted = Wanted(
        model=model, data=data, settings=settings, layers=layers, train=train, tokens=tokens, on_progress=on_progress
    )
    read: dict[type, Callable[[Wanted], BenchFeatures]] = {
        ImageSet: _extracted, EmbeddingSet: read_embeddings, FeatureSet: read_features,
    }  # fmt: skip
    return read[_kind(wanted)](wanted)


def check_wanted(
    data: BenchData, settings: BenchSettings, layers: Layers | None, *, model: str | None, opened: Representation | None
) -> None:
    """Raise the ValueError of `features_of` for a model, layers or settings that do not fit, without computing.

    opened: the model, for images. "best" passes: an earlier sweep of the same run may find it.
    """
    layers = None if layers is None else tuple(layer for layer in layers if layer != best_layer.BEST)
    wanted = Wanted(
        model=model, data=data, settings=settings, layers=layers, train=True, tokens=False,
        on_progress=lambda what, done, total: None,
    )  # fmt: skip
    kind = _kind(wanted)
    if kind is not ImageSet:
        (check_embeddings if kind is EmbeddingSet else check_features)(wanted)
    elif opened is not None:
        _views(opened, wanted)


def _kind(wanted: Wanted) -> type:
    """What both sides are. Raises ValueError if they differ, and for codes of blocks."""
    if wanted.settings.codes and wanted.layers:
        raise ValueError("codes belong to no block: leave layer out, or codes")
    sources = wanted.data.train.source, wanted.data.test.source
    for kind in (ImageSet, EmbeddingSet, FeatureSet):
        if all(isinstance(source, kind) for source in sources):
            return kind
    raise ValueError(f"{wanted.data.name}: one side has features and the other images; use two of a kind")


# ---- images


def _extracted(wanted: Wanted) -> BenchFeatures:
    data, settings = wanted.data, wanted.settings
    device = str(choose_device(settings.device))
    representation = open_representation(
        wanted.model or DEFAULT_MODEL, device=device, seed=settings.seeds[0], condition=settings.condition
    )
    views, chosen_by = _views(representation, wanted)
    views = with_tokens(views, representation.n_bits if wanted.tokens else None)
    cache = FeatureCache(settings.cache, batch_size=settings.batch_size, workers=settings.workers)
    items = [*dict.fromkeys(item for view in views for item in view.items), DIGESTS]
    found = []
    for part in wanted.parts:
        what = f"{representation.name}, {part.name}"
        found.append(cache.get(representation, part, items, functools.partial(wanted.on_progress, what)))
    duplicates = count_duplicates(found[0][DIGESTS], found[1][DIGESTS], data, "pixel for pixel") if wanted.train else 0
    sides = [{view: view.read(arrays) for view in views} for arrays in found]
    seen = seen_in_training(representation.name, representation.training, data, labels=representation.labels_seen)
    return BenchFeatures(
        representation=representation.name,
        data=data,
        train=sides[0] if wanted.train else {},
        test=sides[-1],
        facts=facts_of(wanted, representation.record, duplicates) | chosen_by | seen,
    )


def extract_together(
    model: str, data: BenchData, readings: Sequence[tuple[BenchSettings, Layers | None]], on_progress: OnProgress
) -> None:
    """Compute the features for several readings of one model into the cache, in one pass over the images.

    readings: settings that differ only in pool, mirror and codes, and layers without "best".
    """
    settings = readings[0][0]
    representation = open_representation(
        model, device=str(choose_device(settings.device)), seed=settings.seeds[0], condition=settings.condition
    )
    items: list[str] = []
    for each, layers in readings:
        wanted = Wanted(
            model=model, data=data, settings=each, layers=layers, train=True, tokens=False, on_progress=on_progress
        )
        items += [item for view in _views(representation, wanted)[0] for item in view.items]
    cache = FeatureCache(settings.cache, batch_size=settings.batch_size, workers=settings.workers)
    for part in (data.train, data.test):
        what = f"{representation.name}, {part.name}"
        cache.get(representation, part, [*dict.fromkeys(items), DIGESTS], functools.partial(on_progress, what))


def _views(representation: Representation, wanted: Wanted) -> tuple[list[View], dict[str, Any]]:
    """The views to measure, and the origin of a block called "best". Raises ValueError for bits without a mean."""
    views, chosen_by = _named_views(representation, wanted)
    if wanted.settings.center and any(view.n_bits is not None for view in views):
        raise ValueError(f"{representation.name} has bits, which have no mean to subtract (center=True); leave it out")
    return views, chosen_by


def _named_views(representation: Representation, wanted: Wanted) -> tuple[list[View], dict[str, Any]]:
    settings, layers, reading = wanted.settings, wanted.layers, wanted.settings.reading
    if layers is None or every_block(layers):
        if layers is not None:
            representation.layer_index(0)  # raises where there are no blocks
        return representation.views(range(representation.layers), reading), {}
    if not layers and settings.protocol == DINOV2:
        return representation.official_views(reading), {}
    chosen_by: dict[str, Any] = {}
    if representation.layers and best_layer.BEST in layers:
        noted = best_layer.noted(
            settings.cache, representation.fingerprint, settings.pool_key,
            model=representation.name, train=wanted.data.train, dataset=wanted.data.name,
        )  # fmt: skip
        chosen_by = {"layer_chosen_by": noted}
        layers = [noted["layer"] if each == best_layer.BEST else each for each in layers]
    blocks = [_block(representation, layer) for layer in layers]
    return representation.views(
        sorted(set(blocks), key=str if any(map(_several, blocks)) else None), reading
    ), chosen_by


def _several(block: BlockChoice) -> bool:
    return isinstance(block, tuple)


def _block(representation: Representation, layer: int | str | tuple[int | str, ...]) -> BlockChoice:
    if isinstance(layer, tuple):
        return tuple(representation.layer_index(each) for each in layer)
    return representation.layer_index(layer)
