"""The attentive probe of a representation on a data set. Knows neither commands nor tables."""

from __future__ import annotations

import dataclasses

from bigr_repr.evaluate.data.splits import BenchData
from bigr_repr.evaluate.probes.attentive import AttentiveProbe, attentive_probe
from bigr_repr.evaluate.probes.edges import warn_of_edges
from bigr_repr.evaluate.representations.base import TOKENS
from bigr_repr.evaluate.runs.bench import BenchRow, with_edge_noted
from bigr_repr.evaluate.runs.extraction import BenchSettings, Layers, OnProgress, features_of

__all__ = ["bench_attentive"]


def bench_attentive(
    model: str | None,
    data: BenchData,
    settings: BenchSettings,
    *,
    probe: AttentiveProbe | None = None,
    layers: Layers | None = (),
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[BenchRow]:
    """Learned queries over each layer's tokens, then a linear classifier: a row per layer, all trained together.

    Tokens are cached in half precision, N times as large as pooled features. Arguments as in `bench`;
    settings.rates replace the probe's.

    Raises ValueError as `bench` and `attentive_probe` do.
    """
    options = probe or AttentiveProbe()
    if settings.rates:
        options = dataclasses.replace(options, rates=settings.rates)
    tokens = dataclasses.replace(settings, pool=TOKENS)
    features = features_of(model, data, tokens, layers=layers, on_progress=on_progress)
    views = list(features.train)
    on_progress("attentive probe", 0, 1)
    found = attentive_probe(
        [features.train[view] for view in views], data.train.labels, [features.test[view] for view in views],
        data.test.labels, probe=options, seed=settings.seeds[0], device=settings.device,
    )  # fmt: skip
    on_progress("attentive probe", 1, 1)
    for view, each in zip(views, found, strict=True):
        warn_of_edges(view, each.edges)
    rows = [
        BenchRow(
            representation=features.representation, view=view, dataset=data.name, probe=each, knn=None,
            facts=features.facts,
        )
        for view, each in zip(views, found, strict=True)
    ]  # fmt: skip
    return with_edge_noted(rows)
