"""Existing features: in embedding data sets, and in files from any tool. Knows no networks."""

# n rows (images), N tokens, D features

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from bigr_repr.checkpoints.catalog import bundled_folders, read_config
from bigr_repr.checkpoints.classes import has_classes
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.embed.dataset.schema import incomparable_fields
from bigr_repr.evaluate.data.feature_files import FeatureSet
from bigr_repr.evaluate.data.labeled import check_finite
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.representations.base import TOKENS, View
from bigr_repr.evaluate.representations.hidden import pooled
from bigr_repr.evaluate.runs import best_layer
from bigr_repr.evaluate.runs.features import (
    BenchFeatures,
    Wanted,
    count_equal_rows,
    facts_of,
    seen_in_training,
    with_tokens,
)
from bigr_repr.evaluate.runs.settings import every_block
from bigr_repr.features.condition import FeatureCondition
from bigr_repr.features.pools import NONE

__all__ = ["check_embeddings", "check_features", "read_embeddings", "read_features"]

_AS_THEY_ARE: Final = "avg"  # the default pool: already pooled vectors stay unchanged
_ITEM: Final = "layer-"


def read_features(wanted: Wanted) -> BenchFeatures:
    """Features from files of any tool."""
    data, settings = wanted.data, wanted.settings
    first = check_features(wanted)
    view = View(item="features")
    sides = []
    for part in wanted.parts:
        assert isinstance(part.source, FeatureSet)
        numbers = _native(part.source.features[part.rows])
        check_finite(part.source.files[0], numbers.reshape(len(numbers), -1), part.rows)  # whose rows users know
        values = torch.from_numpy(np.ascontiguousarray(numbers))
        kept = values.ndim == 2 or settings.pool == TOKENS
        sides.append({view: values.numpy() if kept else pooled(values.float(), settings.pool)})
    name = wanted.model or first.name
    record = {"model": name, "model_sha256": first.fingerprint(), "files": [Path(file).name for file in first.files]}
    duplicates = count_equal_rows(sides, view, data) if wanted.train else 0
    facts = facts_of(wanted, record, duplicates)
    return BenchFeatures(
        representation=name, data=data, train=sides[0] if wanted.train else {}, test=sides[-1], facts=facts
    )


def _native(features: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in a dtype that torch has: in this machine's order of bytes, at most float64."""
    if features.dtype.kind == "f" and features.dtype.itemsize > 8:
        return features.astype(np.float64)
    return features.astype(features.dtype.newbyteorder("="), copy=False)


def check_features(wanted: Wanted) -> FeatureSet:
    """The training side's features. Raises ValueError for settings that are not for features."""
    data, settings = wanted.data, wanted.settings
    if wanted.layers or settings.codes or settings.mirror or settings.condition:
        has_no = "no layer, codes, mirror image or condition"
        raise ValueError(f"{data.name} holds features, which have {has_no}; leave these out")
    first = data.train.source
    assert isinstance(first, FeatureSet)
    if first.features.ndim == 2 and settings.pool != "avg":
        raise ValueError(f"pool={settings.pool!r} is for tokens (n, N, D); {first.files[0]} holds one vector per image")
    return first


def check_embeddings(wanted: Wanted) -> None:
    """Raises ValueError for a model, layers or settings that differ from those of the embeddings."""
    first, second = wanted.data.train.source, wanted.data.test.source
    assert isinstance(first, EmbeddingSet)
    assert isinstance(second, EmbeddingSet)
    _check_stored(wanted, first, second)
    _stored_views(wanted, first)


def read_embeddings(wanted: Wanted) -> BenchFeatures:
    """Features from embedding data sets."""
    data, settings = wanted.data, wanted.settings
    first, second = data.train.source, data.test.source
    assert isinstance(first, EmbeddingSet)
    assert isinstance(second, EmbeddingSet)
    _check_stored(wanted, first, second)
    name, pooling = first.provenance["model"], first.provenance["pooling"]
    if pooling != NONE:
        settings = dataclasses.replace(settings, pool=pooling, mirror=bool(first.provenance.get("mirror")))
    if not settings.codes:
        settings = dataclasses.replace(settings, condition=_condition_of(first))
    wanted = dataclasses.replace(wanted, settings=settings)
    views = with_tokens(_stored_views(wanted, first), first.n_bits if wanted.tokens else None)
    sides = [{view: _read(part, view, settings.pool) for view in views} for part in wanted.parts]
    record = {"model": name, "model_sha256": first.provenance["weights_sha256"], "pooling": pooling}
    duplicates = count_equal_rows(sides, views[0], data) if wanted.train else 0
    facts = facts_of(wanted, record, duplicates) | _seen(first, data)
    return BenchFeatures(
        representation=name, data=data, train=sides[0] if wanted.train else {}, test=sides[-1], facts=facts
    )


def _seen(embeddings: EmbeddingSet, data: BenchData) -> dict[str, str | None]:
    """What the training record of these embeddings' model says about the data set; nothing if no model of this name,
    bundled or in a folder, has the same weights.
    """
    name, wanted = embeddings.provenance["model"], embeddings.provenance["weights_sha256"]
    for folder in (*bundled_folders().values(), Path(name)):
        try:
            config, fingerprint = read_config(folder)
        except (OSError, ValueError):  # not a model: this one is not needed
            continue
        if fingerprint == wanted:
            return seen_in_training(name, json.dumps(config.training), data, labels=has_classes(config))
    return {"trained_on": None}


def _check_stored(wanted: Wanted, first: EmbeddingSet, second: EmbeddingSet) -> None:
    data, settings = wanted.data, wanted.settings
    if found := incomparable_fields(first.provenance, second.provenance):
        raise ValueError(f"{data.train.name} and {data.test.name} are not comparable: {'; '.join(found)}")
    name, held = first.provenance["model"], first.provenance["pooling"]
    if wanted.model not in (None, name):
        raise ValueError(f"model={wanted.model!r}, but {first.folder} holds features of {name!r}; leave model out")
    if held != NONE and settings.pool not in (_AS_THEY_ARE, held):
        raise ValueError(f"pool={settings.pool!r}, but {first.folder} holds vectors pooled by {held!r}; leave pool out")
    told = settings.condition
    if told and told.record() != _condition_of(first).record():
        held = _condition_of(first).words
        raise ValueError(f"{first.folder} holds features with {held}, not with {told.words}; leave the condition out")
    if settings.mirror and not first.provenance.get("mirror"):
        raise ValueError(f"{first.folder} holds features without mirror images; leave mirror out, or give the images")


def _condition_of(embeddings: EmbeddingSet) -> FeatureCondition:
    return FeatureCondition.from_record(embeddings.provenance.get("condition"))


def _stored_views(wanted: Wanted, embeddings: EmbeddingSet) -> list[View]:
    if wanted.settings.codes:
        if embeddings.n_bits is None:
            raise ValueError(f"{embeddings.folder} holds no codes; embed with codes (bigr-repr embed --codes)")
        return [View(item="codes", n_bits=embeddings.n_bits)]
    held = embeddings.layers
    named = held if every_block(wanted.layers) else wanted.layers or held
    layers = ["+".join(map(str, layer)) if isinstance(layer, tuple) else layer for layer in named]
    found = best_layer.recall(
        layers, wanted.settings.cache, embeddings.provenance["weights_sha256"], wanted.settings.pool_key,
        model=embeddings.provenance["model"], train=wanted.data.train, dataset=wanted.data.name,
    )  # fmt: skip
    parts = {layer: [layer] if layer in held else _blocks(layer) for layer in found}
    if bad := [layer for layer in found if not all(part in held for part in parts[layer])]:
        known = ", ".join(map(str, held))
        raise ValueError(
            f"layer={bad[0]!r} is not in {embeddings.folder}, which holds layers {known}; name one of them"
        )
    return [_view(parts[layer]) for layer in found]


def _blocks(layer: int | str) -> list[int | str]:
    """The concatenated blocks of a layer."""
    return [int(part) if part.removeprefix("-").isdecimal() else part for part in str(layer).split("+")]


def _view(parts: list[int | str]) -> View:
    items = tuple(f"{_ITEM}{part}" for part in parts)
    if len(items) > 1:
        return View(item="+".join(items), parts=items)
    return View(item=items[0], layer=parts[0] if isinstance(parts[0], int) else None)


def _read(part: Part, view: View, pool: str) -> NDArray[Any]:
    assert isinstance(part.source, EmbeddingSet)
    if view.n_bits is not None:
        return np.concatenate([codes for _, codes in part.source.code_batches()])[part.rows]
    found = []
    for item in view.items:
        layer = item.removeprefix(_ITEM)
        vectors = part.source.read(int(layer) if layer.isdecimal() else layer).vectors[part.rows]
        found.append(pooled(torch.from_numpy(vectors.astype(np.float32, copy=False)), pool))
    return np.concatenate(found, axis=-1) if len(found) > 1 else found[0]
