"""Multi-label probes of representations. Knows neither commands nor tables."""

# n rows (images)

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigr_repr._typing import PathLike
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.evaluate.data.multi_labels import MultiLabels, read_multi_labels
from bigr_repr.evaluate.data.sources import find_sides, short_name
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.probes.edges import warn_of_edges
from bigr_repr.evaluate.probes.multi_label import C_MULTI, MultiLabelProbe, multi_label_probe
from bigr_repr.evaluate.representations.base import View
from bigr_repr.evaluate.runs.extraction import BenchSettings, Layers, OnProgress, features_of

__all__ = ["MultiLabelRow", "bench_multi_label"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLabelRow:
    """One representation, at one layer. class_names: K, or none."""

    representation: str
    view: View
    probe: MultiLabelProbe
    class_names: tuple[str, ...]
    facts: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Ready for JSON, without the facts common to all rows."""
        where = {"representation": self.representation, "layer": self.view.layer, "features": self.view.item}
        return where | dataclasses.asdict(self.probe)


def bench_multi_label(
    model: str | None,
    images: tuple[str, str],
    labels: tuple[PathLike, PathLike],
    settings: BenchSettings,
    *,
    root: PathLike = "data",
    layers: Layers | None = (),
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[MultiLabelRow]:
    """Measure a representation on images with several labels: a row per layer.

    images: sources as in `sources`, of training and test images; labels: of each in their order (`multi_labels`).
    model, settings, layers: as in `bench`; of the settings, only C, the first seed and the reading are used.
    Raises ValueError if the numbers of labels and images differ, and as `bench` does.
    """
    truth = read_multi_labels(labels)
    train, test = (
        _part(side, source, root, each, file)
        for side, source, each, file in zip(("train", "test"), images, truth, labels, strict=True)
    )
    name = short_name(images[0])
    features = features_of(
        model, BenchData(name=name, train=train, test=test), settings, layers=layers, on_progress=on_progress
    )
    rows = []
    for done, view in enumerate(features.train):
        on_progress("probe", done, len(features.train))
        probe = multi_label_probe(
            view.numbers(features.train[view]), truth[0].values, view.numbers(features.test[view]), truth[1].values,
            grid=settings.C or C_MULTI, seed=settings.seeds[0], device=settings.device,
        )  # fmt: skip
        warn_of_edges(view, [probe.edge])
        named: dict[str, Any] = {"class_names": truth[0].class_names, "facts": features.facts}
        rows.append(MultiLabelRow(representation=features.representation, view=view, probe=probe, **named))
    on_progress("probe", len(rows), len(rows))
    return rows


def _part(side: str, source: str, root: PathLike, labels: MultiLabels, file: PathLike) -> Part:
    found, other = find_sides(source, Path(root))
    chosen = other if side == "test" and other is not None else found
    count = chosen.rows if isinstance(chosen, EmbeddingSet) else len(chosen)
    if count != len(labels.values):
        raise ValueError(f"{source} has {count} images and {file} {len(labels.values)} rows of labels; give one each")
    rows = np.arange(count)
    record = {"source": source, "images": count, "classes": labels.values.shape[1]}
    return Part(
        name=f"{short_name(source)} {side}", source=chosen, rows=rows, labels=np.zeros_like(rows), record=record
    )
