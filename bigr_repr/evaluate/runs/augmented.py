"""Linear probes as published: on random crops, with features recomputed in every epoch. No cache.

Knows neither commands nor tables.
"""

# L layers, n rows (images), D features

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from itertools import islice
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigr_repr.datasets import ImageSet
from bigr_repr.evaluate.data.labeled import Labeled, class_indices, labeled, shared_classes
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.probes.edges import edge_of, warn_of_edges
from bigr_repr.evaluate.probes.heads import Heads, diverged, train_renewed
from bigr_repr.evaluate.probes.linear_probe import sgd_words, summarized
from bigr_repr.evaluate.probes.logreg import Trained, hold_out
from bigr_repr.evaluate.probes.protocols import SgdProtocol
from bigr_repr.evaluate.representations.base import Representation, View
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.runs.bench import BenchRow, with_edge_noted
from bigr_repr.evaluate.runs.extraction import BenchFeatures, BenchSettings, Layers, OnProgress, features_of
from bigr_repr.images.augment import random_resized_crop
from bigr_repr.system.devices import choose_device
from bigr_repr.system.threads import map_ahead

__all__ = ["bench_augmented"]

_WORDS: Final = (
    "on random resized crops (0.08..1) and mirror images of them, anew in every epoch; tested on whole images"
)


def bench_augmented(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    epochs: int | None = None,
    layers: Layers | None = (),
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[BenchRow]:
    """A linear probe by gradient descent on augmented images: a row per layer; those of one width train in one run.

    Every epoch of a run passes all training images through the network, in memory. epochs: instead of the protocol's,
    with the same fraction of warm-up. Rates are chosen on a held-out fifth, which a single rate does not need.
    Otherwise as `bench`; settings.protocol must not be logreg.

    Raises ValueError for features instead of images or heads that diverged, and as `bench`.
    """
    protocol = settings.probe_protocol
    if not isinstance(protocol, SgdProtocol):
        raise ValueError("protocol='logreg' trains on fixed features; use mae, mage or dinov2")
    protocol = protocol if epochs is None else _of_length(protocol, epochs)
    if not isinstance(data.train.source, ImageSet) or settings.codes:
        raise ValueError(f"{data.name}: cropping needs images; choose a data set of images, and leave codes out")
    plain = features_of(model, data, settings, layers=layers, on_progress=on_progress)
    representation = open_representation(
        plain.facts["model"]["model"], device=str(choose_device(settings.device)), seed=settings.seeds[0],
        condition=settings.condition,
    )  # fmt: skip
    total = protocol.steps(len(data.train))[0] // -(-len(data.train) // protocol.batch) or 1
    groups = _by_width(plain)

    def features(group: int, epoch: int) -> Tensor:
        on_progress("epochs", group * total + epoch, len(groups) * total)
        return _cropped(representation, data.train, groups[group], settings, epoch)

    rows: dict[View, BenchRow] = {}
    for group, views in enumerate(groups):
        rows |= _rows(plain, views, functools.partial(features, group), protocol, settings)
    on_progress("epochs", len(groups) * total, len(groups) * total)
    return with_edge_noted([rows[view] for view in plain.train])


def _of_length(protocol: SgdProtocol, epochs: int) -> SgdProtocol:
    share = protocol.warmup / protocol.epochs if protocol.epochs else 0.0
    return dataclasses.replace(protocol, epochs=epochs, iterations=0, warmup=round(share * epochs))


def _by_width(plain: BenchFeatures) -> list[list[View]]:
    """The views, those of as many features together."""
    alike: dict[int, list[View]] = {}
    for view, values in plain.train.items():
        alike.setdefault(values.shape[1], []).append(view)
    return list(alike.values())


def _cropped(
    representation: Representation, part: Part, views: list[View], settings: BenchSettings, epoch: int
) -> Tensor:
    """Features (L, n, D) of one epoch's crops, which depend only on seed, epoch and row."""
    source, side = part.source, representation.record["image_size"]
    assert isinstance(source, ImageSet)

    def load(row: np.int64) -> np.ndarray:
        random = np.random.default_rng((settings.seeds[0], epoch, int(row)))
        return representation.prepare(random_resized_crop(source.load(int(row)), side, random))

    items = list(dict.fromkeys(item for view in views for item in view.items))
    stream = map_ahead(load, part.rows, workers=settings.workers, ahead=4 * settings.batch_size)
    found: list[list[np.ndarray]] = [[] for _ in views]
    while batch := list(islice(stream, settings.batch_size)):
        arrays = representation.arrays(batch, items)
        for kept, view in zip(found, views, strict=True):
            kept.append(view.read(arrays))
    layers = np.stack([np.concatenate(each) for each in found]).astype(np.float32)
    return torch.from_numpy(layers).to(choose_device(settings.device))


def _rows(
    plain: BenchFeatures,
    views: list[View],
    features: Callable[[int], Tensor],
    protocol: SgdProtocol,
    settings: BenchSettings,
) -> dict[View, BenchRow]:
    data, place = plain.data, choose_device(settings.device)
    pairs = [
        (labeled("train", plain.train[view], data.train.labels), labeled("test", plain.test[view], data.test.labels))
        for view in views
    ]
    classes = shared_classes(*pairs[0])
    kept, held = _split(pairs[0][0], classes, protocol, settings.seeds[0])
    parts = [torch.from_numpy(part).to(place) for part in (kept, np.arange(len(data.train))) if len(part)]
    y = class_indices(data.train.labels, classes, place)
    *chooser, final = train_renewed(features, y, len(classes), protocol, settings.seeds, parts)
    words = sgd_words(protocol, len(data.train), _WORDS)
    rows = {}
    for layer, (view, (train, test)) in enumerate(zip(views, pairs, strict=True)):
        heads = []
        for seed in range(len(settings.seeds)):
            scores = _scores(chooser[0], train.features[held], y[held], layer, seed, protocol) if chooser else {}
            heads.append(_trained(final, _tensor(test.features, place), layer, seed, scores, protocol))
        probe = summarized(train, test, classes, heads, tuple(settings.seeds), words + view.words)
        warn_of_edges(view, probe.edges)
        rows[view] = BenchRow(
            representation=plain.representation, view=view, dataset=data.name, probe=probe, knn=None, facts=plain.facts
        )
    return rows


def _trained(
    final: Heads, test: Tensor, layer: int, seed: int, scores: dict[float, float], protocol: SgdProtocol
) -> Trained:
    """The chosen head of a layer and seed. Raises ValueError if it diverged."""
    rate = max(scores, key=lambda each: scores[each], default=protocol.rates[0])
    number = protocol.rates.index(rate)
    if scores.get(rate, 0) < 0 or not final.finite[layer, seed, number]:
        raise diverged(protocol.rates)
    ranked = final.ranked(test, layer, seed, min(5, final.bias.shape[-1]))
    shown = {each: max(score, 0.0) for each, score in scores.items()}
    return Trained(
        ranked=ranked[number].cpu().numpy(), settings={"rate": rate}, held_out_top1=shown.get(rate),
        edge=edge_of("rate", rate, shown, protocol.rates) if shown else None,
    )  # fmt: skip


def _split(
    train: Labeled, classes: NDArray[np.int64], protocol: SgdProtocol, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows kept and held out; neither if there are too few and a single rate needs no choice."""
    every = np.arange(len(train))
    try:
        return hold_out(train, classes, every, np.random.default_rng(seed))
    except ValueError:
        if len(protocol.rates) > 1:
            raise
        return every[:0], every[:0]


def _scores(
    heads: Heads, features: np.ndarray, labels: Tensor, layer: int, seed: int, protocol: SgdProtocol
) -> dict[float, float]:
    """Accuracy of every rate on held-out rows, in percent; negative for one whose head diverged."""
    ranked = heads.ranked(_tensor(features, labels.device), layer, seed, 1)[:, :, 0]
    right = torch.where(heads.finite[layer, seed], (ranked == labels).double().mean(dim=1), -1.0)
    return dict(zip(protocol.rates, (100 * right).tolist(), strict=True))


def _tensor(features: np.ndarray, place: torch.device) -> Tensor:
    return torch.from_numpy(features.astype(np.float32)).to(place)
