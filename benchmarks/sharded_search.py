"""A sharded index searched by several processes, compared with a single index of the same rows: equal hits, and speed.

    python benchmarks/sharded_search.py --rows 20000000 --processes 2

Data: random codes of 256 bits in a data set of 16 files; at this code length many distances tie. A single index and a
sharded one are built from it, and --processes processes search the shards. Every hit is compared: rows, ids, distances.

Writes benchmarks/results/sharded_search.json. Expected: equal hits, in about the same time, because both use all cores.
Ten minutes and 4 GB of disk for 20 million rows on 2 cores; --rows 200000 is a smoke test.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import record
from filtered_search import write_part

from bigr_repr.retrieval import HammingIndex, build_index, build_shards

K = 10
FILES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--bits", type=int, default=256)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9, help="searches of each; the median counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        data, one, cut = (Path(work) / name for name in ("data", "one", "shards"))
        data.mkdir()
        for part in range(FILES):
            write_part(data / f"part-{part:05}.parquet", part * options.rows, options.rows // FILES, options.bits)
        built = {}
        for name, build in (
            ("one index", lambda: build_index(data, one, binarizer="bits")),
            ("shards", lambda: build_shards(data, cut, options.shards, processes=options.processes, binarizer="bits")),
        ):
            started = time.perf_counter()
            index = build()
            built[name] = round(time.perf_counter() - started, 2)
            assert len(index) == options.rows // FILES * FILES
        whole = HammingIndex.load(one)
        shards = HammingIndex.load(cut, processes=options.processes)
        random = np.random.default_rng(1)
        wanted = np.concatenate([
            whole.rows.codes[random.integers(0, len(whole), options.queries // 2)],
            random.integers(0, 256, (options.queries - options.queries // 2, options.bits // 8), np.uint8),
        ])  # fmt: skip
        seconds: dict[str, list[float]] = {"one index": [], "shards": []}
        truth = whole.find(wanted, K)
        for _ in range(options.rounds + 1):
            for name, index in (("one index", whole), ("shards", shards)):
                started = time.perf_counter()
                found = index.find(wanted, K)
                seconds[name].append(time.perf_counter() - started)
                assert np.array_equal(found.rows, truth.rows)
                assert np.array_equal(found.distances, truth.distances)
                assert np.array_equal(found.ids, truth.ids)
        ms = {name: round(1e3 * statistics.median(each[1:]), 2) for name, each in seconds.items()}
    record.write("sharded_search", {
        "faiss": faiss.__version__, "rows": options.rows, "bits": options.bits, "shards": options.shards,
        "processes": options.processes, "queries": options.queries, "k": K, "build_s": built, "search_ms": ms,
        "equal": True,
    })  # fmt: skip


if __name__ == "__main__":
    main()
