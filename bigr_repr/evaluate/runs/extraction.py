"""Features of both sides of a benchmark: from the cache, extracted, or read from embedding data sets.

Knows nothing of probes or neighbors.
"""

# n rows (images), D features

from __future__ import annotations

import datetime
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.datasets import ImageSet
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.embed.dataset.schema import differences
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.probes.protocols import LOGREG, protocol_names
from bigr_repr.evaluate.representations.base import Representation, View
from bigr_repr.evaluate.representations.hidden import POOLS, pooled
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.runs import best_layer
from bigr_repr.evaluate.runs.cache import DIGESTS, FeatureCache, default_cache
from bigr_repr.system.devices import choose_device
from bigr_repr.system.machine import describe_machine

__all__ = ["BenchFeatures", "BenchSettings", "OnProgress", "features_of"]

_log = logging.getLogger(__name__)
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How features are measured. protocol and seeds are the probe's, k, temperature and center the neighbors'
    (see `knn`). Raises ValueError for an unknown protocol or pool, no seeds, or numbers out of range.

    pool: how the tokens of a block become one vector, "avg", "max" or "avg+max". codes: the tokenizer's bits instead of
    hidden states. device: "cpu", "cuda" …; None: a GPU if there is one. cache: folder for features, the user's cache
    folder by default. batch_size, workers: of the extraction.
    """

    protocol: str = LOGREG
    seeds: tuple[int, ...] = (0,)
    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    center: bool = False
    pool: str = "avg"
    codes: bool = False
    device: str | None = None
    cache: PathLike = field(default_factory=default_cache)
    batch_size: int = 32
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in protocol_names():
            raise ValueError(f"protocol={self.protocol!r} is unknown; choose one of {', '.join(protocol_names())}")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r} is unknown; choose one of {', '.join(POOLS)}")
        if not self.seeds:
            raise ValueError("seeds=() holds none; give at least one, as (0,)")
        if not self.k or min(self.k) < 1 or not self.temperature > 0 or self.batch_size < 1:
            raise ValueError(
                f"k={self.k}, temperature={self.temperature}, batch_size={self.batch_size}: each must be above 0"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchFeatures:
    """Features of both sides by view, as stored (bits are packed), and the facts that every row of them carries."""

    representation: str
    data: BenchData
    train: dict[View, NDArray[Any]]
    test: dict[View, NDArray[Any]]
    facts: dict[str, Any]


def features_of(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    layers: Sequence[int | str] | None = (),
    train: bool = True,
    tokens: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> BenchFeatures:
    """Both sides' features: from the cache, extracted, or read from embedding data sets. Arguments as for `bench`.

    train: False leaves the training side out, for what looks only at test images. tokens: also the tokenizer's bits,
    where there are any: the last view.
    """
    if settings.codes and layers:
        raise ValueError("codes belong to no block: leave layer out, or codes")
    device = choose_device(settings.device)
    sources = data.train.source, data.test.source
    if isinstance(sources[0], EmbeddingSet) and isinstance(sources[1], EmbeddingSet):
        return _stored(model, data, settings, layers, train, tokens)
    if not (isinstance(sources[0], ImageSet) and isinstance(sources[1], ImageSet)):
        raise ValueError(f"{data.name}: one side holds embeddings and the other images; give two of a kind")
    representation = open_representation(model or DEFAULT_MODEL, device=str(device), seed=settings.seeds[0])
    views = representation.views(_resolve(representation, data, settings, layers), settings.pool, codes=settings.codes)
    views = _with_tokens(views, representation.n_bits if tokens else None)
    cache = FeatureCache(settings.cache, batch_size=settings.batch_size, workers=settings.workers)
    items = [*(view.item for view in views), DIGESTS]
    found = []
    for part in (data.train, data.test) if train else (data.test,):
        what = f"{representation.name}, {part.name}"
        found.append(cache.get(representation, part, items, functools.partial(on_progress, what)))
    duplicates = _duplicates(found[0][DIGESTS], found[1][DIGESTS], data, "pixel for pixel") if train else 0
    sides = [{view: arrays[view.item] for view in views} for arrays in found]
    return BenchFeatures(
        representation=representation.name,
        data=data,
        train=sides[0] if train else {},
        test=sides[-1],
        facts=_facts(data, settings, representation.record, duplicates),
    )


def _resolve(
    representation: Representation, data: BenchData, settings: BenchSettings, layers: Sequence[int | str] | None
) -> list[int]:
    if layers is None:
        return list(range(representation.layers))

    if representation.layers:
        layers = best_layer.recall(
            layers, settings.cache, representation.fingerprint, settings.pool,
            model=representation.name, train=data.train, dataset=data.name,
        )  # fmt: skip
    return sorted({representation.layer_index(layer) for layer in layers})


def _stored(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    layers: Sequence[int | str] | None,
    train: bool,
    tokens: bool,
) -> BenchFeatures:
    first, second = data.train.source, data.test.source
    assert isinstance(first, EmbeddingSet)
    assert isinstance(second, EmbeddingSet)
    if found := differences(first.provenance, second.provenance):
        raise ValueError(f"{data.train.name} and {data.test.name} are not comparable: {'; '.join(found)}")
    name = first.provenance["model"]
    if model not in (None, name):
        raise ValueError(f"model={model!r}, but {first.folder} holds features of {name!r}; leave model out")
    if first.provenance["pooling"] != "none" and settings.pool != first.provenance["pooling"]:
        held = first.provenance["pooling"]
        raise ValueError(f"pool={settings.pool!r}, but {first.folder} holds vectors pooled by {held!r}; leave pool out")
    views = _with_tokens(_stored_views(data, first, settings, layers), first.n_bits if tokens else None)
    parts = (data.train, data.test) if train else (data.test,)
    sides = [{view: _read(part, view, settings.pool) for view in views} for part in parts]
    record = {"model": name, "model_sha256": first.provenance["weights_sha256"], "pooling": first.provenance["pooling"]}
    duplicates = 0
    if train:
        how = "going by their features" if views[0].n_bits is None else "going by their bits"
        rows = [_row_bytes(side[views[0]]) for side in sides]
        duplicates = _duplicates(rows[0], rows[1], data, how)
    facts = _facts(data, settings, record, duplicates)
    return BenchFeatures(representation=name, data=data, train=sides[0] if train else {}, test=sides[-1], facts=facts)


def _stored_views(
    data: BenchData, embeddings: EmbeddingSet, settings: BenchSettings, layers: Sequence[int | str] | None
) -> list[View]:
    if settings.codes:
        if embeddings.n_bits is None:
            raise ValueError(f"{embeddings.folder} holds no codes; embed with codes (bigr-repr embed --codes)")
        return [View(item="codes", n_bits=embeddings.n_bits)]
    held = embeddings.layers
    wanted = best_layer.recall(
        layers or held, settings.cache, embeddings.provenance["weights_sha256"], settings.pool,
        model=embeddings.provenance["model"], train=data.train, dataset=data.name,
    )  # fmt: skip
    if bad := [layer for layer in wanted if layer not in held]:
        known = ", ".join(map(str, held))
        raise ValueError(
            f"layer={bad[0]!r} is not in {embeddings.folder}, which holds layers {known}; name one of them"
        )
    return [View(item=f"layer-{layer}", layer=int(layer)) for layer in wanted]


def _with_tokens(views: list[View], n_bits: int | None) -> list[View]:
    return views if n_bits is None or views[-1].n_bits is not None else [*views, View(item="codes", n_bits=n_bits)]


def _read(part: Part, view: View, pool: str) -> NDArray[Any]:
    assert isinstance(part.source, EmbeddingSet)
    if view.n_bits is not None:
        return np.concatenate([codes for _, codes in part.source.code_batches()])[part.rows]
    vectors = part.source.read(view.layer).vectors[part.rows]
    return pooled(torch.from_numpy(vectors.astype(np.float32, copy=False)), pool).numpy()


def _row_bytes(features: NDArray[Any]) -> NDArray[np.uint8]:
    flat = np.ascontiguousarray(features)
    return flat.view(np.uint8).reshape(len(flat), -1)


def _duplicates(train: NDArray[np.uint8], test: NDArray[np.uint8], data: BenchData, how: str) -> int:
    """How many test images are also in the training set, going by a row of bytes each; logged if there are any."""
    seen = {row.tobytes() for row in train}
    count = sum(row.tobytes() in seen for row in test)
    if count:
        _log.warning(
            "%s: %d of %d test images are also training images, %s; leave them out of one side",
            data.name, count, len(test), how,
        )  # fmt: skip
    return count


def _facts(data: BenchData, settings: BenchSettings, record: dict[str, Any], duplicates: int) -> dict[str, Any]:
    from bigr_repr._version import __version__

    return {
        "model": record,
        "pool": settings.pool,
        "train": data.train.record,
        "test": data.test.record,
        "test_images_in_train": duplicates,
        "machine": describe_machine(),
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
