"""Benchmarks: features extracted once, then probes and nearest neighbors, as rows that record how they were measured.

Combines the neighboring modules; knows neither commands nor tables.
"""

# n rows (images), D features

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.metrics.label_retrieval import Collection, RetrievalRow, label_retrieval
from bigr_repr.evaluate.probes.knn import Knn, knn
from bigr_repr.evaluate.probes.linear_probe import C_GRID, LinearProbe, linear_probes
from bigr_repr.evaluate.probes.protocols import LOGREG
from bigr_repr.evaluate.representations.base import View
from bigr_repr.evaluate.runs import best_layer
from bigr_repr.evaluate.runs.extraction import BenchFeatures, BenchSettings, Layers, OnProgress, features_of
from bigr_repr.evaluate.runs.settings import every_block

__all__ = [
    "BenchRow",
    "bench",
    "bench_retrieval",
    "best_row",
    "check_k",
    "chosen_row",
    "unmeasured_neighbor",
    "with_edge_noted",
]

_log = logging.getLogger(__name__)


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


def bench(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    layers: Layers | None = (),
    probe: bool = True,
    neighbors: bool = True,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[BenchRow]:
    """Measure a representation (a name as in `representations`) on a data set: one row per layer.

    layers: block numbers, negative from the end, "mid", or "best", the block that an earlier sweep of this model found
    on the same training images; a tuple concatenates their features. Empty: the representation's default, or with the
    protocol "dinov2" the grid of its published run (the last block, and the last four). None: every block, in one pass
    over the images, after which the best one is remembered; ("all",): the same, but refused where there are no
    blocks. model: None for the default model, or if `data` already contains features.

    Raises ValueError or FileNotFoundError in one line, before anything is extracted, for what cannot be measured.
    """
    fitting = _fitting(settings.k, data.train) if neighbors else []
    features = features_of(model, data, settings, layers=layers, on_progress=on_progress)
    probes = _probes(features, settings, on_progress) if probe else {}
    found = _neighbors(features, settings, fitting, on_progress) if neighbors else {}
    rows = [
        BenchRow(
            representation=features.representation, view=view, dataset=data.name, probe=probes.get(view),
            knn=found.get(view), facts=features.facts,
        )
        for view in features.train
    ]  # fmt: skip
    best = chosen_row(rows)
    if every_block(layers) and best is not None:
        _remember(best, data.train, settings)
    return with_edge_noted(rows)


def bench_retrieval(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    layer: int | str | None = None,
    bits: Sequence[int] = (64, 128, 256),
    shortlist: int = 1000,
    on_progress: OnProgress = lambda what, done, total: None,
) -> tuple[list[RetrievalRow], BenchFeatures]:
    """How well a representation retrieves test images' classes among the training images, by floats and by codes.

    Returns rows as in `label_retrieval`, and their features. layer: None: the representation's default. bits,
    shortlist: as there; otherwise as `bench`.
    """
    layers = () if layer is None else (layer,)
    features = features_of(model, data, settings, layers=layers, tokens=True, on_progress=on_progress)
    view, *rest = features.train
    if view.n_bits is not None:
        raise ValueError(f"{features.representation} has only bits; pass the model, for floats to compare with")
    base, queries = (
        Collection(side[view], side[rest[0]] if rest else None, part.labels)
        for side, part in ((features.train, data.train), (features.test, data.test))
    )
    rows = label_retrieval(
        base, queries, bits=bits, shortlist=shortlist, seed=settings.seeds[0],
        on_progress=functools.partial(on_progress, "retrieval"),
    )  # fmt: skip
    return rows, features


def best_row(rows: Sequence[BenchRow]) -> BenchRow:
    """The row whose probe was best on the held-out part of the training set; the first of equals.

    Raises ValueError if `chosen_row` returns None.
    """
    found = chosen_row(rows)
    if found is None:
        raise ValueError("no row has a held-out accuracy to choose by; run the linear probe too")
    return found


def chosen_row(rows: Sequence[BenchRow]) -> BenchRow | None:
    """As `best_row`, but None without a probe or with too few images to hold any out."""
    scored = [row for row in rows if row.probe is not None and row.probe.held_out_top1 is not None]
    if len(scored) < len(rows):
        return None
    return max(scored, key=lambda row: row.probe.held_out_top1 if row.probe and row.probe.held_out_top1 else 0.0)


def unmeasured_neighbor(rows: Sequence[BenchRow]) -> str | None:
    """A warning if a neighbor of the best block was not measured and may be better; else None."""
    chosen, blocks = chosen_row(rows), rows[0].facts["model"].get("blocks", 0)
    best = None if chosen is None else chosen.view.layer
    if best is None:
        return None
    measured = {row.view.layer for row in rows}
    missing = [str(block) for block in (best - 1, best + 1) if 0 <= block < blocks and block not in measured]
    verb = "is" if len(missing) == 1 else "are"
    said = f"block {best} is the best of those measured; {' and '.join(missing)} beside it {verb} not"
    return said if missing else None


def with_edge_noted(rows: list[BenchRow]) -> list[BenchRow]:
    """The rows, with the warning of `unmeasured_neighbor`, if any, among the best one's `edges`; also logged."""
    best, said = chosen_row(rows), unmeasured_neighbor(rows) if len(rows) > 1 else None
    if said is None or best is None or best.probe is None:
        return rows
    _log.warning("%s on %s: %s; measure it too, or every block (--layer all)", best.representation, best.dataset, said)
    probe = dataclasses.replace(best.probe, edges=(*best.probe.edges, said))
    return [dataclasses.replace(row, probe=probe) if row is best else row for row in rows]


def _remember(row: BenchRow, train: Part, settings: BenchSettings) -> None:
    sha256 = row.facts["model"]["model_sha256"]
    if row.view.layer is None or sha256 is None or row.probe is None:
        return
    found = {
        "layer": row.view.layer, "held_out_top1": row.probe.held_out_top1, "protocol": row.probe.protocol,
    }  # fmt: skip
    best_layer.remember(settings.cache, sha256, settings.pool_key, train=train, found=found)


# ---- measuring


def _probes(features: BenchFeatures, settings: BenchSettings, on_progress: OnProgress) -> dict[View, LinearProbe]:
    """Layers one at a time if they train separately, so that only one is unpacked in memory; else all together."""
    labels = features.data.train.labels, features.data.test.labels
    views = list(features.train)
    groups = [[view] for view in views] if settings.protocol == LOGREG else [views]
    found: dict[View, LinearProbe] = {}
    for done, group in enumerate(groups):
        on_progress("linear probe", done, len(groups))
        train, test = ({view: view.numbers(side[view]) for view in group} for side in (features.train, features.test))
        probes = linear_probes(
            train, labels[0], test, labels[1],
            protocol=settings.probe_protocol, grid=settings.C or C_GRID, seeds=settings.seeds, device=settings.device,
        )  # fmt: skip
        found |= {view: dataclasses.replace(each, protocol=each.protocol + view.words) for view, each in probes.items()}
    on_progress("linear probe", len(groups), len(groups))
    return found


def check_k(k: Sequence[int], train: Part) -> None:
    """Raises ValueError if there are too few training images for every number of neighbors."""
    if min(k) > len(train):
        raise ValueError(f"k={tuple(k)} are all above the {len(train)} training images; choose smaller ones")


def _fitting(k: Sequence[int], train: Part) -> list[int]:
    """The numbers of neighbors for which there are enough training images; others are logged."""
    check_k(k, train)
    fitting = [value for value in k if value <= len(train)]
    if left_out := [str(value) for value in k if value > len(train)]:
        _log.warning("%s has %d images: k=%s is left out", train.name, len(train), ", ".join(left_out))
    return fitting


def _neighbors(
    features: BenchFeatures, settings: BenchSettings, k: Sequence[int], on_progress: OnProgress
) -> dict[View, Knn]:
    found: dict[View, Knn] = {}
    for done, view in enumerate(features.train):
        on_progress("neighbors", done, len(features.train))
        found[view] = knn(
            features.train[view], features.data.train.labels, features.test[view], features.data.test.labels,
            k=k, temperature=settings.temperature, metric="cosine" if view.n_bits is None else "hamming",
            n_bits=view.n_bits, center=settings.center, device=settings.device,
        )  # fmt: skip
    on_progress("neighbors", len(found), len(found))
    return found


def _plain(found: LinearProbe | Knn) -> dict[str, Any]:
    """Accuracies and their intervals with three decimals, other numbers with nine."""
    kept = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "predicted"}
    return {
        name: _rounded(value, 3 if "top1" in name or "top5" in name or "interval" in name else 9)
        for name, value in kept.items()
    }


def _rounded(value: Any, decimals: int) -> Any:
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), decimals))
