"""The speed part of retrieval.py: exact scans compared with raw FAISS, usearch and NumPy, and recall against time.

All contenders may use every core of the process; raw FAISS runs with one thread and with all, and the better result
counts. They alternate, round after round, and the median of each one's runs is recorded.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import usearch
from usearch.index import Index as UsearchIndex
from usearch.index import MetricKind, ScalarKind, search

from bigr_repr.retrieval import HammingIndex, IndexSettings, recall_with_ties
from bigr_repr.retrieval.index.workers import on_all_cores
from bigr_repr.system.machine import describe_machine
from bigr_repr.system.threads import cores

K = 10
BITS = (256, 1536, 6144)
QUERIES = (1, 32, 1000)
CONTENDERS = {"contenders": {"faiss": faiss.__version__, "usearch": usearch.__version__, "numpy": np.__version__}}


def run(options: argparse.Namespace, plot_path: Path) -> dict[str, Any]:
    """All measurements, with tables."""
    faiss.omp_set_num_threads(cores())
    scans = [found for rows, bits in zip(options.rows, BITS, strict=True) for found in scan(rows, bits, options.rounds)]
    if options.scans_only:
        return {"k": K, **CONTENDERS, "scans": scans, "table": scan_table(scans)}
    curves = recall_curves(options.curve_rows, 256, options.rounds)
    plot(curves, options.curve_rows, plot_path)
    stores = store_latencies(options.rows[0] // 10, options.rounds) if options.stores else []
    scaling = extrapolate(scans[0], curves, options.curve_rows)
    return {
        "k": K,
        **CONTENDERS,
        "scans": scans,
        "curves": curves,
        "stores": stores,
        "scaling": scaling,
        "table": [*scan_table(scans), *table(scaling, stores)],
    }


def medians(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender, alternating in rounds of three runs. The first round warms up.

    Pauses separate contenders, because OpenMP's threads keep spinning for a while after FAISS returns, on cores that
    the next contender needs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            time.sleep(0.05)
            for _ in range(3 if turn else 1):
                started = time.perf_counter()
                work()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(runs) for name, runs in seconds.items()}


# ---- exact scans


def scan(rows: int, bits: int, rounds: int) -> list[dict[str, Any]]:
    """Search random codes with one query and with batches."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (rows, bits // 8), np.uint8)
    queries = random.integers(0, 256, (max(QUERIES), bits // 8), np.uint8)
    index, raw = HammingIndex.build(codes), faiss.IndexBinaryFlat(bits)
    raw.add(codes)
    assert np.array_equal(index.search_rows(queries, K).distances, raw.search(queries, K)[0])
    return [measured(index, raw, codes, queries[:count], rounds) for count in QUERIES]


def measured(
    index: HammingIndex, raw: faiss.IndexBinaryFlat, codes: np.ndarray, queries: np.ndarray, rounds: int
) -> dict[str, Any]:
    """Time one batch of queries by every contender."""
    words, count = codes.view(np.uint64), len(queries)
    pieces = [(piece,) for piece in np.array_split(words.reshape(-1), 8 * cores())]
    work: dict[str, Callable[[], Any]] = {
        "bigr-repr": lambda: index.search_rows(queries, K),
        "faiss, all threads": lambda: raw.search(queries, K),
        "faiss, one thread": lambda: on_one_thread(raw, queries),
    }
    if count == 1:
        work |= {
            "read": lambda: on_all_cores(np.maximum.reduce, pieces),
            "numpy": lambda: numpy_scan(words, queries[0].view(np.uint64)),
        }
    seconds = medians(work, rounds if count < max(QUERIES) else max(1, rounds // 5))
    if count < max(QUERIES):  # separately, because its long runs would heat the machine for the others
        by_usearch = partial(search, codes, queries, K, MetricKind.Hamming, exact=True, threads=cores())
        seconds |= medians({"usearch": partial(by_usearch, dtype=ScalarKind.B1)}, 1)
    seconds["faiss"] = min(seconds["faiss, all threads"], seconds["faiss, one thread"])
    found = {
        "rows": len(codes),
        "bits": 8 * codes.shape[1],
        "queries": count,
        "cpu": describe_machine()["cpu"],
        "faiss": faiss.__version__,
        "ms_a_query": {name: round(1e3 * value / count, 4) for name, value in seconds.items()},
        "speedup_over_faiss": round(seconds["faiss"] / seconds["bigr-repr"], 3),
    }
    if count == 1:
        found["gb_s"] = round(codes.nbytes / 1e9 / seconds["bigr-repr"], 2)
        found["share_of_read_bandwidth"] = round(seconds["read"] / seconds["bigr-repr"], 3)
    print(found, flush=True)
    return found


def numpy_scan(words: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Search one query with NumPy. words: uint64 (n, w)."""
    distances = np.bitwise_count(words ^ query).sum(axis=1, dtype=np.int32)
    return np.asarray(np.argpartition(distances, K)[:K])


def on_one_thread(raw: faiss.IndexBinaryFlat, queries: np.ndarray) -> None:
    """FAISS without its parallel loops, whose threads wait for each other even with a single query."""
    faiss.omp_set_num_threads(1)
    raw.search(queries, K)
    faiss.omp_set_num_threads(cores())


# ---- recall against time


def clustered(rows: int, bits: int, seed: int) -> np.ndarray:
    """Codes like hashes of real features: signs of random projections of 24 directions, with noise."""
    random = np.random.default_rng(seed)
    planes = np.random.default_rng(99).standard_normal((24, bits), np.float32)
    codes = np.empty((rows, bits // 8), np.uint8)
    for start in range(0, rows, 1 << 14):
        size = min(1 << 14, rows - start)
        values = random.standard_normal((size, 24), np.float32) @ planes
        values += random.standard_normal(values.shape, np.float32)
        codes[start : start + size] = np.packbits(values > 0, axis=1)
    return codes


def recall_curves(rows: int, bits: int, rounds: int) -> list[dict[str, Any]]:
    """Recall@10 and milliseconds per query, one query at a time, at increasing effort."""
    codes = clustered(rows, bits, 0)
    queries = np.ascontiguousarray(clustered(rows, bits, 1)[:200])
    flat = HammingIndex.build(codes)
    exact = flat.search_rows(queries, K).distances
    curves = [curve("flat", 0.0, {0: lambda wanted: flat.search_rows(wanted, K).distances}, queries, exact, rounds)]
    for kind in ("ivf", "hnsw", "hash"):
        started = time.perf_counter()
        index = HammingIndex.build(codes, kind=IndexSettings(kind=kind))
        seconds = time.perf_counter() - started
        assert index.approximate is not None
        efforts = list(index.approximate.efforts)[:9]
        searches = {
            effort: lambda wanted, index=index, effort=effort: index.search_rows(wanted, K, effort=effort).distances
            for effort in efforts
        }
        curves.append(curve(kind, seconds, searches, queries, exact, rounds))
    started = time.perf_counter()
    other = UsearchIndex(ndim=bits, metric=MetricKind.Hamming, dtype=ScalarKind.B1, connectivity=16, expansion_add=80)
    other.add(np.arange(rows), codes, threads=cores())
    seconds = time.perf_counter() - started

    def by_usearch(wanted: np.ndarray, effort: int) -> np.ndarray:
        other.expansion_search = effort
        matches = other.search(wanted, K, threads=cores())
        return np.atleast_2d(matches.distances).round().astype(np.int32)

    searches = {
        effort: lambda wanted, effort=effort: by_usearch(wanted, effort) for effort in (16, 32, 64, 128, 256, 512)
    }
    curves.append(curve("usearch hnsw", seconds, searches, queries, exact, rounds))
    return curves


def curve(
    name: str,
    build: float,
    searches: dict[int, Callable[[np.ndarray], np.ndarray]],
    queries: np.ndarray,
    exact: np.ndarray,
    rounds: int,
) -> dict[str, Any]:
    """Effort, recall and time at every effort of one index."""
    points = []
    for effort, find in searches.items():
        recall = recall_with_ties(find(queries), exact)
        some = queries[:50]
        seconds = medians({name: lambda find=find, some=some: [find(query[None]) for query in some]}, min(rounds, 3))
        points.append({"effort": effort, "recall": round(recall, 4), "ms": round(1e3 * seconds[name] / len(some), 4)})
    print(f"{name}: built in {build:.1f} s, {points}", flush=True)
    return {"index": name, "build_s": round(build, 2), "points": points}


def plot(curves: list[dict[str, Any]], rows: int, path: Path) -> None:
    """Plot recall against time, one query at a time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colors = {"flat": "#888888", "ivf": "#b4532a", "hnsw": "#1f4e8c", "hash": "#5a9367", "usearch hnsw": "#8a6fb0"}
    figure, pane = plt.subplots(figsize=(6.4, 3.8))
    for line in curves:
        points = line["points"]
        style = "--" if line["index"].startswith("usearch") else "-"
        x, y = [point["ms"] for point in points], [point["recall"] for point in points]
        exact = {"marker": "D", "markersize": 8, "zorder": 5} if line["index"] == "flat" else {}  # a single point
        look = {"marker": "o", "markersize": 4, "color": colors[line["index"]], **exact}
        pane.plot(x, y, style, label=line["index"], **look)
    pane.set(xscale="log", xlabel="milliseconds per query, one at a time", ylabel="recall@10, ties credited")
    pane.set_title(f"{rows:,} clustered codes of 256 bits", fontsize=10)
    pane.grid(alpha=0.25)
    pane.spines[["top", "right"]].set_visible(False)
    pane.legend(fontsize=8, frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


# ---- stores, and extrapolation


def store_latencies(rows: int, rounds: int) -> list[dict[str, Any]]:
    """Time pushing to and single queries of LanceDB on this disk and milvus-lite."""
    from bigr_repr.retrieval.stores.open import push

    codes = clustered(rows, 256, 0)
    index = HammingIndex.build(codes, ids=[f"{row}.jpg" for row in range(rows)])
    found = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for place, kind in (("lancedb:" + str(folder / "flat"), "flat"), ("lancedb:" + str(folder / "ivf"), "ivf"),
                            ("milvus:" + str(folder / "m.db"), "flat")):  # fmt: skip
            started = time.perf_counter()
            opened = push(index, place, kind=kind)
            seconds = time.perf_counter() - started
            median = medians({"query": lambda opened=opened: opened.search(codes[:1], K)}, rounds)["query"]
            name = f"{place.split(':', 1)[0]} {kind}"
            found.append(
                {"store": name, "rows": rows, "push_s": round(seconds, 2), "single_ms": round(1e3 * median, 3)}
            )
            print(found[-1], flush=True)
    return found


def extrapolate(scan: dict[str, Any], curves: list[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """Sizes, memory and latencies of up to 10^9 codes of 256 bits, extrapolated from the measured rates.

    Scan time grows with the number of rows, ivf at 95 % recall with its square root, hnsw with its logarithm.
    one_machine: whether the index fits into 256 GB.
    """
    memory = 256e9
    flat_ms = scan["ms_a_query"]["bigr-repr"] / scan["rows"]
    found = []
    for count in (10**6, 10**7, 10**8, 10**9):
        row: dict[str, Any] = {"images": count, "codes_gb": round(count * 32 / 1e9, 3)}
        sizes = {"flat": 32, "ivf": 32 + 8, "hnsw": 32 + 4 * 32 + 16}
        growth = {"flat": count, "ivf": (count / rows) ** 0.5, "hnsw": np.log(count) / np.log(rows)}
        for kind, size in sizes.items():
            ms = flat_ms if kind == "flat" else _ms_at(curves, kind, 0.95)
            fits = count * size < memory
            row[kind] = {
                "memory_gb": round(count * size / 1e9, 2),
                "single_ms": None if ms is None else round(float(ms * growth[kind]), 3),
                "one_machine": fits,
            }
        found.append(row)
    return found


def _ms_at(curves: list[dict[str, Any]], kind: str, recall: float) -> float | None:
    """The shortest time of an index at this recall, or None if it was not reached."""
    (line,) = [line for line in curves if line["index"] == kind]
    return min((point["ms"] for point in line["points"] if point["recall"] >= recall), default=None)


def scan_table(scans: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of exact scans."""
    lines = [
        f"FAISS {faiss.__version__} on {cores()} cores of {describe_machine()['cpu']}",
        "",
        "| exact search | bigr-repr | raw FAISS | usearch | NumPy | speedup over FAISS | fraction of read bandwidth |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for scan in scans:
        ms = scan["ms_a_query"]
        times = [f"{ms[name]:.2f} ms" if name in ms else "" for name in ("bigr-repr", "faiss", "usearch", "numpy")]
        share = f"{100 * scan['share_of_read_bandwidth']:.0f} %" if "share_of_read_bandwidth" in scan else ""
        what = "one query" if scan["queries"] == 1 else f"{scan['queries']:,} queries, per query"
        size = f"{scan['rows']:,} x {scan['bits']:,} bits"
        lines.append(f"| {size}, {what} | {' | '.join(times)} | {scan['speedup_over_faiss']:.2f} x | {share} |")
    return lines


def table(scaling: list[dict[str, Any]], stores: list[dict[str, Any]]) -> list[str]:
    """Markdown tables of the extrapolation and of the stores."""
    lines = ["", "| images of 256 bits | flat | ivf | hnsw |", "|---|---|---|---|"]
    for row in scaling:
        cells = []
        for kind in ("flat", "ivf", "hnsw"):
            cell = row[kind]
            ms = "recall not reached" if cell["single_ms"] is None else f"{cell['single_ms']:,.1f} ms"
            cells.append(f"{cell['memory_gb']:,.1f} GB, {ms}{'' if cell['one_machine'] else ', many machines'}")
        lines.append(f"| {row['images']:,} | {' | '.join(cells)} |")
    if stores:
        lines += ["", "| store | images | push | one query |", "|---|---|---|---|"]
        lines += [
            f"| {row['store']} | {row['rows']:,} | {row['push_s']:.1f} s | {row['single_ms']:.1f} ms |"
            for row in stores
        ]
    return lines
