"""Benchmarks of representations: features once, then probes and nearest neighbours, as rows that say how they came.

Puts together what the modules beside it do; knows neither commands nor tables.
"""

# n rows (images), D features

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr._durable import replacing
from bigr_repr.codes import from_bytes
from bigr_repr.datasets import ImageSet
from bigr_repr.embed import EmbeddingSet
from bigr_repr.embed.recipe import differences
from bigr_repr.evaluate.cache import DIGESTS, FeatureCache, default_cache
from bigr_repr.evaluate.knn import Knn, knn
from bigr_repr.evaluate.linear_probe import LinearProbe, linear_probes
from bigr_repr.evaluate.machine import machine
from bigr_repr.evaluate.protocols import LOGREG
from bigr_repr.evaluate.representations import Representation, View, open_representation
from bigr_repr.evaluate.splits import BenchData, Part

__all__ = ["BenchRow", "BenchSettings", "Features", "bench", "best_row", "features_of"]

DEFAULT_MODEL: Final = "bigr-tiny"
BEST: Final = "best"

_log = logging.getLogger(__name__)
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How features are measured. protocol and seeds are the probe's, k, temperature and center the neighbours'
    (see `knn`).

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
    cache: str | os.PathLike[str] = field(default_factory=default_cache)
    batch_size: int = 32
    workers: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchRow:
    """One representation, at one layer, on one data set. `record()` is all of it as plain data."""

    representation: str
    view: View
    dataset: str
    probe: LinearProbe | None
    knn: Knn | None
    facts: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Ready for JSON: accuracies with three decimals, protocol, seeds, model hash, both sides, machine, date."""
        found: dict[str, Any] = {
            "dataset": self.dataset,
            "representation": self.representation,
            "layer": self.view.layer,
            "features": self.view.item,
            "linear_probe": None if self.probe is None else _plain(self.probe),
            "knn": None if self.knn is None else _plain(self.knn),
        }
        return found | self.facts


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features of both sides by view, as stored (bits are packed), and the facts that every row of them carries."""

    representation: str
    data: BenchData
    train: dict[View, NDArray[Any]]
    test: dict[View, NDArray[Any]]
    facts: dict[str, Any]


def bench(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    layers: Sequence[int | str] | None = (),
    probe: bool = True,
    neighbours: bool = True,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[BenchRow]:
    """Measure a representation (a name as in `representations`) on a data set: a row a layer.

    layers: block numbers, negative from the end, "mid", or "best", the block that an earlier sweep of this model found
    on this data set; none: the representation's default; None: every block, in one pass over the images, after which
    the best one is remembered. model: None for bigr-tiny, or where `data` is an embedding data set, whose model it is.

    Raises ValueError or FileNotFoundError in one line for what cannot be measured, before anything is extracted.
    """
    features = features_of(model, data, settings, layers=layers, on_progress=on_progress)
    probes = _probes(features, settings, on_progress) if probe else {}
    rows = []
    for done, view in enumerate(features.train):
        on_progress("neighbours", done, len(features.train))
        found = _knn(features, view, settings) if neighbours else None
        rows.append(
            BenchRow(
                representation=features.representation,
                view=view,
                dataset=data.name,
                probe=probes.get(view),
                knn=found,
                facts=features.facts,
            )
        )
    if layers is None and probe:
        _remember(best_row(rows), data, settings)
    return rows


def best_row(rows: Sequence[BenchRow]) -> BenchRow:
    """The row whose probe was best on the held-out part of the training set; the first of equals."""
    scored = [row for row in rows if row.probe is not None and row.probe.held_out_top1 is not None]
    if not scored:
        raise ValueError("no row has a held-out accuracy to choose by; run the linear probe too")
    return max(scored, key=lambda row: row.probe.held_out_top1 if row.probe and row.probe.held_out_top1 else 0.0)


def features_of(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    layers: Sequence[int | str] | None = (),
    train: bool = True,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Features:
    """Both sides' features: from the cache, extracted, or read from embedding data sets. Arguments as for `bench`.

    train: False leaves the training side out, for what looks at test images alone.
    """
    sources = data.train.source, data.test.source
    if isinstance(sources[0], EmbeddingSet) and isinstance(sources[1], EmbeddingSet):
        return _stored(model, data, settings, layers, train)
    if not (isinstance(sources[0], ImageSet) and isinstance(sources[1], ImageSet)):
        raise ValueError(f"{data.name}: one side holds embeddings and the other images; give two of a kind")
    representation = open_representation(model or DEFAULT_MODEL, device=settings.device, seed=settings.seeds[0])
    views = representation.views(_resolve(representation, data, settings, layers), settings.pool, codes=settings.codes)
    cache = FeatureCache(settings.cache, batch_size=settings.batch_size, workers=settings.workers)
    items = [*(view.item for view in views), DIGESTS]
    found = []
    for part in (data.train, data.test) if train else (data.test,):
        what = f"{representation.name}, {part.name}"
        found.append(cache.get(representation, part, items, functools.partial(on_progress, what)))
    duplicates = _duplicates(found[0][DIGESTS], found[1][DIGESTS], data) if train else 0
    sides = [{view: arrays[view.item] for view in views} for arrays in found]
    return Features(
        representation=representation.name,
        data=data,
        train=sides[0] if train else {},
        test=sides[-1],
        facts=_facts(data, settings, representation.record, duplicates),
    )


# ---- features


def _resolve(
    representation: Representation, data: BenchData, settings: BenchSettings, layers: Sequence[int | str] | None
) -> list[int]:
    if layers is None:
        return list(range(representation.layers))
    found = []
    for layer in layers:
        if layer == BEST:
            layer = _remembered(representation, data, settings)  # noqa: PLW2901
        found.append(representation.layer_index(layer))
    return sorted(set(found))


def _stored(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    layers: Sequence[int | str] | None,
    train: bool,
) -> Features:
    first, second = data.train.source, data.test.source
    assert isinstance(first, EmbeddingSet)
    assert isinstance(second, EmbeddingSet)
    if found := differences(first.provenance, second.provenance):
        raise ValueError(f"{data.train.name} and {data.test.name} are not comparable: {'; '.join(found)}")
    name = first.provenance["model"]
    if model not in (None, name):
        raise ValueError(f"model={model!r}, but {first.folder} holds features of {name!r}; leave --model out")
    views = _stored_views(first, settings, layers)
    sides = [{view: _read(part, view) for view in views} for part in (data.train, data.test)]
    record = {"model": name, "model_sha256": first.provenance["weights_sha256"], "pooling": first.provenance["pooling"]}
    hashes = [_row_bytes(side[views[0]]) for side in sides]
    facts = _facts(data, settings, record, _duplicates(hashes[0], hashes[1], data) if train else 0)
    return Features(representation=name, data=data, train=sides[0] if train else {}, test=sides[1], facts=facts)


def _stored_views(embeddings: EmbeddingSet, settings: BenchSettings, layers: Sequence[int | str] | None) -> list[View]:
    if settings.codes:
        if embeddings.n_bits is None:
            raise ValueError(f"{embeddings.folder} holds no codes; embed with codes (bigr-repr embed --codes)")
        return [View(item="codes", n_bits=embeddings.n_bits)]
    held = embeddings.layers
    wanted = layers or held
    if bad := [layer for layer in wanted if layer not in held]:
        known = ", ".join(map(str, held))
        raise ValueError(
            f"layer={bad[0]!r} is not in {embeddings.folder}, which holds layers {known}; name one of them"
        )
    return [View(item=f"layer-{layer}", layer=int(layer)) for layer in wanted]


def _read(part: Part, view: View) -> NDArray[Any]:
    assert isinstance(part.source, EmbeddingSet)
    if view.n_bits is not None:
        return np.concatenate([codes for _, codes in part.source.code_batches()])[part.rows]
    vectors = part.source.read(view.layer).vectors[part.rows]
    return vectors.mean(axis=1, dtype=np.float32) if vectors.ndim == 3 else vectors.astype(np.float32, copy=False)


def _row_bytes(features: NDArray[Any]) -> NDArray[np.uint8]:
    flat = np.ascontiguousarray(features)
    return flat.view(np.uint8).reshape(len(flat), -1)


def _duplicates(train: NDArray[np.uint8], test: NDArray[np.uint8], data: BenchData) -> int:
    """How many test images are also in the training set, pixel for pixel; logged if there are any."""
    seen = {row.tobytes() for row in train}
    count = sum(row.tobytes() in seen for row in test)
    if count:
        _log.warning(
            "%s: %d of %d test images are also training images, pixel for pixel; leave them out of one side",
            data.name, count, len(test),
        )  # fmt: skip
    return count


def _facts(data: BenchData, settings: BenchSettings, record: dict[str, Any], duplicates: int) -> dict[str, Any]:
    from bigr_repr import __version__

    return {
        "model": record,
        "pool": settings.pool,
        "train": data.train.record,
        "test": data.test.record,
        "test_images_in_train": duplicates,
        "machine": machine(),
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


# ---- measuring


def _probes(features: Features, settings: BenchSettings, on_progress: OnProgress) -> dict[View, LinearProbe]:
    """Layers one at a time where they train alone, so that memory holds one unpacked layer; else all together."""
    labels = features.data.train.labels, features.data.test.labels
    views = list(features.train)
    groups = [[view] for view in views] if settings.protocol == LOGREG else [views]
    found: dict[View, LinearProbe] = {}
    for done, group in enumerate(groups):
        on_progress("linear probe", done, len(groups))
        train, test = ({view: _numbers(side[view], view) for view in group} for side in (features.train, features.test))
        found |= linear_probes(
            train, labels[0], test, labels[1],
            protocol=settings.protocol, seeds=settings.seeds, device=settings.device,
        )  # fmt: skip
    return found


def _numbers(array: NDArray[Any], view: View) -> NDArray[Any]:
    return array if view.n_bits is None else from_bytes(array, view.n_bits)


def _knn(features: Features, view: View, settings: BenchSettings) -> Knn:
    train, test = features.data.train.labels, features.data.test.labels
    fitting = [k for k in settings.k if k <= len(train)]
    if not fitting:
        raise ValueError(f"k={settings.k} are all above the {len(train)} training images; give smaller ones")
    return knn(
        features.train[view], train, features.test[view], test,
        k=fitting, temperature=settings.temperature, metric="cosine" if view.n_bits is None else "hamming",
        n_bits=view.n_bits, center=settings.center and view.n_bits is None, device=settings.device,
    )  # fmt: skip


def _plain(found: LinearProbe | Knn) -> dict[str, Any]:
    kept = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "predicted"}
    plain: dict[str, Any] = json.loads(json.dumps(kept), parse_float=lambda text: round(float(text), 9))
    return {key: _rounded(value) if "top1" in key or "top5" in key or "interval" in key else value
            for key, value in plain.items()}  # fmt: skip


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


# ---- the best layer, remembered


def _best_file(cache: str | os.PathLike[str], model_sha256: str, pool: str) -> Path:
    return Path(cache) / "best" / f"{model_sha256[:32]}-{pool}.json"


def _remember(row: BenchRow, data: BenchData, settings: BenchSettings) -> None:
    sha256 = row.facts["model"]["model_sha256"]
    if row.view.layer is None or sha256 is None or row.probe is None:
        return
    path = _best_file(settings.cache, sha256, settings.pool)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    known[data.train.name] = {
        "layer": row.view.layer, "held_out_top1": row.probe.held_out_top1, "train": data.train.record,
        "protocol": row.probe.protocol,
    }  # fmt: skip
    with replacing(path) as file:
        file.write((json.dumps(known, indent=1) + "\n").encode())


def _remembered(representation: Representation, data: BenchData, settings: BenchSettings) -> int:
    path = _best_file(settings.cache, representation.fingerprint, settings.pool)
    known = json.loads(path.read_text()) if path.exists() else {}
    if data.train.name not in known:
        swept = f"; swept so far: {', '.join(known)}" if known else ""
        raise ValueError(
            f"layer='best' of {representation.name} on {data.train.name} is not known yet{swept}; "
            f"find it with: bigr-repr bench layers --model {representation.name} --dataset {data.name}"
        )
    layer: int = known[data.train.name]["layer"]
    return layer
