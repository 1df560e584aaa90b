"""The quality part of retrieval.py: class retrieval by float features, by every kind of code, and by rescored codes."""

from __future__ import annotations

import argparse
import time
from typing import Any

from bigr_repr.evaluate.data.splits import open_data
from bigr_repr.evaluate.runs.bench import bench_retrieval
from bigr_repr.evaluate.runs.extraction import BenchSettings

KEYS = ("map_at_all", "map_at_depth", "precision", "recall_of_float")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Rows for every data set and representation, and the table."""
    settings = BenchSettings(seeds=(options.seed,), device=options.device, cache=options.cache)
    layer = options.layer if options.layer == "mid" else int(options.layer)
    rows: list[dict[str, Any]] = []
    sides: dict[str, Any] = {}
    for name in options.dataset:
        data = open_data(
            name,
            root=options.root,
            limit=options.limit or None,
            test_limit=options.queries or None,
            seed=options.seed,
        )
        started = time.perf_counter()
        found, features = bench_retrieval(
            options.model, data, settings, layer=layer, bits=options.bits, shortlist=options.shortlist
        )
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        rows += [{"dataset": name, "name": row.name, **row.record()} for row in found]
        sides[name] = {"data_base": features.facts["train"], "queries": features.facts["test"]}
    return {
        "layer": options.layer,
        "sides": sides,
        "relevant": "images of the query's class; mAP over the relevant in the database, at most the depth, and over "
        "the relevant retrieved; expectation over random orders of ties, with the worst and best order",
        "rescoring": f"{options.shortlist} nearest by Hamming distance ordered by float cosine, the others behind them",
        "seed": options.seed,
        "rows": rows,
        "table": table(rows),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table: one row per representation, data sets side by side."""
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    head = " | ".join(f"{name} mAP@all | mAP@1000 | P@100 | recall@10 of float | of float" for name in names)
    lines = [f"| codes | {head} |", "|---" + "|---:" * (5 * len(names)) + "|"]
    for kind in dict.fromkeys(row["name"] for row in rows):
        cells = []
        for name in names:
            (row,) = [row for row in rows if row["dataset"] == name and row["name"] == kind]
            cells += [*(f"{row[key]:.1f}" for key in KEYS), f"{row['share_of_float']:.1f} %"]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines
