"""Few-shot probes and cluster structure: evaluation with few labels, or none. Knows neither commands nor tables."""

# n rows (images)

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bigr_repr.evaluate.data.labeled import labeled
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.metrics.clustering import Structure, structure_of
from bigr_repr.evaluate.metrics.interval import Interval, over_seeds
from bigr_repr.evaluate.probes.linear_probe import linear_probe
from bigr_repr.evaluate.representations.base import View
from bigr_repr.evaluate.runs.extraction import BenchFeatures, BenchSettings, Layers, OnProgress, features_of

__all__ = ["FewShotRow", "StructureRow", "bench_clusters", "bench_few_shot"]

_PENALTY: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class FewShotRow:
    """A view with a number of labeled images per class: top-1 in percent, the mean over draws with its 95 % interval.

    interval: by Student's t over draws; None for one draw. mean_per_class: accuracy averaged over classes.
    """

    representation: str
    view: View
    shots: int
    top1: float
    interval: Interval | None
    mean_per_class: float
    top1_by_draw: tuple[float, ...]
    protocol: str
    facts: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Ready for JSON, without the facts common to all rows."""
        found = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("view", "facts")}
        return {**found, "layer": self.view.layer, "features": self.view.item}


@dataclass(frozen=True, kw_only=True)
class StructureRow:
    """A view of the test images, and the structure of its features."""

    representation: str
    view: View
    found: Structure
    facts: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Ready for JSON, without the facts common to all rows."""
        where = {"representation": self.representation, "layer": self.view.layer, "features": self.view.item}
        return where | dataclasses.asdict(self.found)


def bench_few_shot(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    shots: Sequence[int] = (1, 5, 10),
    draws: int = 5,
    layers: Layers | None = (),
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[FewShotRow]:
    """The linear probe on a few labeled images per class, drawn several times: a row for each layer and number of
    shots.

    The penalty is fixed (C of the settings, or 1): there are too few images to hold any out. Arguments as in `bench`; a
    draw depends on the settings' first seed and its own number.

    Raises ValueError if a class has too few training images for the shots, and as `bench` does.
    """
    _check_shots(data.train, shots)
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    features = features_of(model, data, settings, layers=layers, on_progress=on_progress)
    rows = []
    for view in features.train:
        for done, count in enumerate(shots):
            on_progress(f"{view.where}, {count} a class", done, len(shots))
            rows.append(_few_shot(features, view, settings, count, draws))
        on_progress(f"{view.where}", len(shots), len(shots))
    return rows


def _check_shots(train: Part, shots: Sequence[int]) -> None:
    classes, counts = np.unique(train.labels, return_counts=True)
    if not shots or min(shots) < 1 or max(shots) > counts.min():
        label, limit = classes[counts.argmin()], counts.min()
        name = repr(train.class_names[label]) if train.class_names else label
        raise ValueError(
            f"shots={tuple(shots)} must lie in 1..{limit}: class {name} has {limit} images in {train.name}; use fewer "
            "shots, add images of it, or leave it out"
        )


def _few_shot(features: BenchFeatures, view: View, settings: BenchSettings, count: int, draws: int) -> FewShotRow:
    labels, truth = features.data.train.labels, features.data.test.labels
    train, test = view.numbers(features.train[view]), view.numbers(features.test[view])
    classes = np.unique(labels)
    probes = []
    for draw in range(draws):
        order = np.random.default_rng((settings.seeds[0], draw)).permutation(len(labels))
        rows = np.concatenate([order[labels[order] == name][:count] for name in classes])
        grid = settings.C or (_PENALTY,)
        probes.append(linear_probe(train[rows], labels[rows], test, truth, grid=grid, device=settings.device))
    top1 = tuple(probe.top1 for probe in probes)
    return FewShotRow(
        representation=features.representation, view=view, shots=count, top1=float(np.mean(top1)),
        interval=over_seeds(top1), mean_per_class=float(np.mean([probe.mean_per_class for probe in probes])),
        top1_by_draw=top1, protocol=probes[0].protocol, facts=features.facts,
    )  # fmt: skip


def bench_clusters(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    layers: Layers | None = (),
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[StructureRow]:
    """Clusters, effective rank, alignment and uniformity of the test images' features: a row per layer."""
    features = features_of(model, data, settings, layers=layers, train=False, on_progress=on_progress)
    rows = []
    for done, (view, values) in enumerate(features.test.items()):
        on_progress("clusters", done, len(features.test))
        test = labeled("test", view.numbers(values), data.test.labels)
        found = structure_of(test, seed=settings.seeds[0])
        rows.append(StructureRow(representation=features.representation, view=view, found=found, facts=features.facts))
    on_progress("clusters", len(rows), len(rows))
    return rows
