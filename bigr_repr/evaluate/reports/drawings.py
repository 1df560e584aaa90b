"""Pictures of a representation on a data set: writes `inspection`'s results for `bench`'s features to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.datasets import ImageSet
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.data.stratified import stratified_sample
from bigr_repr.evaluate.reports.inspection import cka_matrix, confusion, neighbor_strips, plane
from bigr_repr.evaluate.reports.plots import plot_map, plot_matrix
from bigr_repr.evaluate.representations.base import View
from bigr_repr.evaluate.runs.bench import bench
from bigr_repr.evaluate.runs.extraction import BenchFeatures, BenchSettings, OnProgress, features_of
from bigr_repr.system.files import replacing

__all__ = ["draw_cka", "draw_confusion", "draw_map", "draw_neighbors"]

Layers = Sequence[int | str]


def _silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


def draw_map(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    path: PathLike,
    *,
    layers: Layers = (),
    method: str = "tsne",
    on_progress: OnProgress = _silent,
) -> None:
    """A 2-D map of the test images' features, colored by class. Arguments as in `bench` and `inspection.plane`."""
    _check_single(layers)
    features = _test_only(model, data, settings, layers, on_progress)
    view = _single(features)
    points = plane(view.numbers(features.test[view]), method, seed=settings.seeds[0])
    title = f"{features.representation}, {view.where}, on {data.test.name} ({method})"
    plot_map(points, data.test.labels, data.test.class_names, title, path)


def draw_neighbors(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    path: PathLike,
    *,
    layers: Layers = (),
    queries: int = 10,
    k: int = 8,
    on_progress: OnProgress = _silent,
) -> None:
    """A strip for each of some test images, drawn from all classes one by one: its nearest training images."""
    _check_single(layers)
    draws = np.random.default_rng(settings.seeds[0])
    classes = len(np.unique(data.test.labels))
    rows = stratified_sample(data.test.labels, max(queries, classes), draws)
    test = data.test.taking(np.sort(draws.permutation(rows)[:queries]), {})
    features = features_of(
        model, BenchData(name=data.name, train=data.train, test=test), settings, layers=layers, on_progress=on_progress
    )
    view = _single(features)
    mean = None
    if settings.center:
        mean = features.train[view].mean(axis=0, dtype=np.float64).astype(np.float32)
    sheet = neighbor_strips(
        features.test[view], features.train[view], test.labels, data.train.labels, _loader(test), _loader(data.train),
        k=k, metric="cosine" if view.n_bits is None else "hamming", n_bits=view.n_bits, mean=mean,
        names=data.train.class_names,
    )  # fmt: skip
    with replacing(Path(path)) as file:
        sheet.save(file, "PNG")


def draw_confusion(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    path: PathLike,
    *,
    layers: Layers = (),
    on_progress: OnProgress = _silent,
) -> list[str]:
    """The linear probe's confusion matrix, in percent of a class; returns the most common mistakes, in words."""
    _check_single(layers)
    rows = bench(model, data, settings, layers=layers, neighbors=False, on_progress=on_progress)
    _check_single(rows)
    probe = rows[0].probe
    assert probe is not None
    classes, counts = confusion(data.test.labels, probe.predicted)
    shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    names = [data.train.class_names[label] if data.train.class_names else str(label) for label in classes]
    title = f"{rows[0].representation}, {rows[0].view.where}, on {data.test.name}: {probe.top1:.1f} %"
    plot_matrix(shares, names, names, path, title=title, labels=("class", "taken for, % of the class"), span=(0, 100))
    mistakes = np.where(np.eye(len(classes), dtype=bool), -1.0, shares)
    worst = np.argsort(-mistakes, axis=None, kind="stable")[:5]
    pairs = [np.unravel_index(place, shares.shape) for place in worst]
    return [f"{shares[i, j]:.0f} % of {names[i]} taken for {names[j]}" for i, j in pairs if mistakes[i, j] > 0]


def draw_cka(
    model: str | None,
    other: str | None,
    data: BenchData,
    settings: BenchSettings,
    path: PathLike,
    *,
    on_progress: OnProgress = _silent,
) -> NDArray[np.float64]:
    """Linear CKA between all blocks of one or two models, on the test images; returns the matrix.

    Raises ValueError for another model where there are stored features instead of images.
    """
    if other is not None and not isinstance(data.test.source, ImageSet):
        raise ValueError(
            f"other={other!r} needs images, but {data.name} holds features; leave it out, or give a data set of images"
        )
    sides = [_test_only(name, data, settings, None, on_progress) for name in (model, other or model)]
    values = cka_matrix(sides[0].test, sides[1].test)
    rows, columns = ([view.where for view in side.test] for side in sides)
    labels = sides[0].representation, sides[1].representation
    plot_matrix(
        values,
        rows,
        columns,
        path,
        title=f"linear CKA on {data.test.name}",
        labels=labels,
        span=(float(np.floor(10 * values.min()) / 10), 1),
    )
    return values


# ---- helpers


def _test_only(
    model: str | None, data: BenchData, settings: BenchSettings, layers: Layers | None, on_progress: OnProgress
) -> BenchFeatures:
    """Features of the test side only."""
    return features_of(model, data, settings, layers=layers, train=False, on_progress=on_progress)


def _check_single(layers: Sequence[object]) -> None:
    if len(layers) > 1:
        raise ValueError(f"{len(layers)} layers would need {len(layers)} pictures; choose one layer")


def _single(features: BenchFeatures) -> View:
    _check_single(list(features.test))
    return next(iter(features.test))


def _loader(part: Part) -> Any:
    """The image of a row of a part."""
    source = part.source if part.images is None else part.images
    if not isinstance(source, ImageSet):
        raise ValueError(
            f"{part.name} holds features without their images, which strips show; name the images too, as dataset"
        )

    def load(place: int) -> Image.Image:
        return source.load(int(part.rows[place]))

    return load
