"""The quality part of retrieval.py: label retrieval by floats, by every kind of code, and by codes with rescoring."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from samples import Cache, Split

import bigr_repr as br
from bigr_repr._ahead import map_ahead
from bigr_repr.codes import hamming, to_bytes
from bigr_repr.evaluate.retrieval import Retrieval, retrieval
from bigr_repr.images import center_crop
from bigr_repr.retrieval import BINARISERS, fit_binariser

BATCH = 64
Distances = Callable[[slice], np.ndarray]


def run(pre: br.Pretrained, options: argparse.Namespace) -> dict[str, Any]:
    """Rows for every data set and representation, and the table."""
    layer = pre.config.generator.layer_index(options.layer if options.layer == "mid" else int(options.layer))
    cache, rows = Cache(options.cache), []
    for name, train, test in options.dataset:
        splits = [
            Split.open(f"{name} {part}", source, train=part == "train", limit=limit or None, seed=options.seed)
            for part, source, limit in (("train", train, options.limit), ("test", test, options.queries))
        ]
        parts = [encode(cache, split, pre, layer, options.device) for split in splits]
        rows += compare(name, splits, parts, options)
    return {
        "layer": layer,
        "data_base": f"training split, stratified sample of {options.limit}" if options.limit else "training split",
        "queries": f"test split, stratified sample of {options.queries}" if options.queries else "test split",
        "relevant": "images of the query's class; mAP over the relevant in the data base, at most the depth, and over "
        "the relevant retrieved; expectation over random orders of ties, with the worst and best order",
        "rescoring": f"{options.shortlist} nearest by Hamming distance ordered by float cosine, the others behind them",
        "seed": options.seed,
        "rows": rows,
        "table": table(rows),
    }


def encode(cache: Cache, split: Split, pre: br.Pretrained, layer: int, device: str | None) -> dict[str, np.ndarray]:
    """{"codes": tokenizer codes (n, bytes), "vectors": float32 (n, D)} of a split, in one pass."""
    facts = [f"codes and layer {layer} of {split.name}", split.source, pre.fingerprint]
    return dict(cache.get(facts, partial(_encode, split, pre, layer, device)))


def _encode(split: Split, pre: br.Pretrained, layer: int, device: str | None) -> dict[str, np.ndarray]:
    extractor = br.FeatureExtractor(pre, (layer,), device=device)
    codes, vectors = [], []
    stream = map_ahead(
        lambda row: center_crop(split.images.load(int(row)), pre.config.image_size), split.rows, ahead=4 * BATCH
    )
    while batch := list(islice(stream, BATCH)):
        found = extractor(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2))
        codes.append(to_bytes(found.codes.flatten(1).cpu().numpy()))
        vectors.append(found.layers[layer].cpu().numpy())
    return {"codes": np.concatenate(codes), "vectors": np.concatenate(vectors)}


def compare(
    name: str, splits: list[Split], parts: list[dict[str, np.ndarray]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All rows of one data set, float cosine first."""
    base, queries = parts
    labels = (splits[1].labels, splits[0].labels)
    width, count = base["vectors"].shape[1], len(base["vectors"])
    depth = min(1000, count)
    cosine = cosine_distances(queries["vectors"], base["vectors"])
    centre = base["vectors"].mean(axis=0)
    rows: list[dict[str, Any]] = []

    def add(representation: str, bits: int | None, distances: Distances, *, rescored: bool = False) -> None:
        started = time.perf_counter()
        found = retrieval(distances, *labels, depths=(None, depth), k=(min(100, count),))
        row = {"dataset": name, "representation": representation, "bits": bits, "rescored": rescored}
        row |= figures(found, depth)
        if rows:
            row["share_of_float"] = {key: round(100 * row[key] / rows[0][key], 2) for key in KEYS}
        rows.append(row)
        kept = row.get("share_of_float", {}).get("map_at_1000", 100.0)
        print(f"{name} {label(row)}: mAP@1000 {row['map_at_1000']:.2f}, {kept:.1f} % of float, "
              f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip

    def add_codes(representation: str, bits: int, ours: np.ndarray, theirs: np.ndarray) -> None:
        distances = partial(hamming_distances, ours, theirs)
        add(representation, bits, distances)
        shortlist = min(options.shortlist, count)
        add(representation, bits, partial(rescored_distances, distances, cosine, shortlist), rescored=True)

    add("float cosine", None, cosine)
    add("float cosine, centred", None, cosine_distances(queries["vectors"] - centre, base["vectors"] - centre))
    for kind in BINARISERS:
        limits = [width] if kind in ("sign", "median") else options.bits
        for bits in dict.fromkeys(bits if kind == "rotation" else min(bits, width) for bits in limits):
            binariser = fit_binariser(kind, base["vectors"], n_bits=bits, seed=options.seed)
            add_codes(kind, bits, *(binariser.encode(part["vectors"]) for part in (queries, base)))
    add_codes("tokenizer bits", 8 * base["codes"].shape[1], queries["codes"], base["codes"])
    return rows


KEYS = ("map_at_all", "map_at_1000", "precision_at_100")


def figures(found: Retrieval, depth: int) -> dict[str, Any]:
    """The record's numbers, in percent."""
    (precision,) = found.precision.values()
    return {
        "map_at_all": round(found.map_at[None], 3),
        "map_at_1000": round(found.map_at[depth], 3),
        "precision_at_100": round(precision, 3),
        "map_at_all_bounds": [round(value, 3) for value in found.map_bounds[None]],
        "map_at_1000_bounds": [round(value, 3) for value in found.map_bounds[depth]],
        "map_at_1000_over_retrieved": round(found.map_at_retrieved[depth], 3),
        "n_queries": found.queries,
        "n_base": found.rows,
    }


def cosine_distances(queries: np.ndarray, base: np.ndarray) -> Distances:
    """1 - cosine, for a slice of the queries at a time."""
    left, right = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, base))
    return lambda rows: 1 - left[rows] @ right.T


def hamming_distances(queries: np.ndarray, base: np.ndarray, rows: slice) -> np.ndarray:
    """Differing bits, for a slice of the queries."""
    return hamming(queries[rows, None], base)


def rescored_distances(bits: Distances, cosine: Distances, shortlist: int, rows: slice) -> np.ndarray:
    """Distances in whose order the shortlist by bits comes first, by cosine, and all others behind it, by bits."""
    far = bits(rows).astype(np.float64) + 10
    first = np.argsort(far, axis=1, kind="stable")[:, :shortlist]
    np.put_along_axis(far, first, np.take_along_axis(cosine(rows).astype(np.float64), first, axis=1), axis=1)
    return far


def label(row: dict[str, Any]) -> str:
    """A row's name."""
    bits = "" if row["bits"] is None else f" {row['bits']}"
    return f"{row['representation']}{bits}{' + rescoring' if row['rescored'] else ''}"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line a representation, data sets side by side."""
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    head = " | ".join(f"{name} mAP@all | mAP@1000 | P@100 | of float" for name in names)
    lines = [f"| codes | {head} |", "|---" * (1 + 4 * len(names)) + "|"]
    for kind in dict.fromkeys(label(row) for row in rows):
        cells = []
        for name in names:
            (row,) = [row for row in rows if row["dataset"] == name and label(row) == kind] or [None]
            if row is None:
                cells += ["", "", "", ""]
                continue
            share = row.get("share_of_float", {}).get("map_at_1000", 100.0)
            cells += [*(f"{row[key]:.1f}" for key in KEYS), f"{share:.1f} %"]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines
