"""Filtered exact search compared with searching all rows and with NumPy; updating an index compared with rebuilding it.

    python benchmarks/filtered_search.py

Data: random codes with boolean columns. Three columns pass 50 %, 1 % and 0.01 % of the rows at random; a fourth
excludes exactly the half of the rows nearest to the first query.

Each filtered search is checked against NumPy and then timed, alternating with a search of all rows: once with the
passing rows cached, as an index does for its last few filters, and once with the expression evaluated every time. Each
update adds a file with 1 % of the rows to a data set of codes and removes a file with 0.1 %. Another index is rebuilt
after each update. The two are compared by processor time and by bytes written.

Writes benchmarks/results/filtered_search.json. Expected: every answer equals NumPy's, no cached random filter takes
more than 1.3 times as long as searching all rows, and an update costs at most 5 % of a rebuild. Two minutes on 2 cores;
--rows 100000 --update-rows 100000 is a smoke test.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import record

from bigr_repr.codes import hamming
from bigr_repr.embed.dataset.schema import METADATA_KEY
from bigr_repr.retrieval import HammingIndex, build_index, update_index
from bigr_repr.retrieval.index.scan import scan_among

K = 10
SHARES = {"half": 0.5, "hundredth": 0.01, "tenthousandth": 0.0001}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--bits", type=int, nargs="+", default=[256])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=20, help="runs of each contender; the median counts")
    parser.add_argument("--update-rows", type=int, default=2_000_000, help="rows of the updated index; 0: none")
    options = parser.parse_args()
    searches = [
        found
        for bits in options.bits
        for count in options.queries
        for found in measured(options.rows, bits, count, options.rounds)
    ]
    update = updated(options.update_rows, options.bits[0]) if options.update_rows else None
    record.write("filtered_search", {"k": K, "faiss": faiss.__version__, "searches": searches, "update": update})


def measured(rows: int, bits: int, queries: int, rounds: int) -> list[dict[str, Any]]:
    """Time every filter and the search of all rows."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (rows, bits // 8), np.uint8)
    wanted = random.integers(0, 256, (queries, bits // 8), np.uint8)
    columns = {name: random.random(rows) < share for name, share in SHARES.items()}
    columns["far"] = (apart := hamming(codes, wanted[0])) > np.median(apart)
    index = HammingIndex.build(codes, columns=columns)
    work: dict[str, Callable[[], Any]] = {"all": lambda: index.find(wanted, K)}
    for name, passing in columns.items():
        check(index, wanted, name, passing)
        work[name] = lambda name=name: index.find(wanted, K, where=name)
        work[f"{name}, evaluated"] = lambda name=name: scan_among(codes, wanted, K, index.rows._select(chosen(name)))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    ms = {name: 1e3 * statistics.median(each[1:]) for name, each in seconds.items()}
    return [row(name, int(passing.sum()), ms) | {"rows": rows, "bits": bits, "queries": queries}
            for name, passing in columns.items()]  # fmt: skip


def row(name: str, passing: int, ms: dict[str, float]) -> dict[str, Any]:
    """The time of one filter, in milliseconds and relative to searching all rows."""
    kept, anew, whole = ms[name], ms[f"{name}, evaluated"], ms["all"]
    found = {"ms": kept, "ms_evaluated": anew, "ms_all": whole}
    times = {"times_all": kept / whole, "times_all_evaluated": anew / whole}
    return {"filter": name, "passing": passing, **{key: round(value, 3) for key, value in (found | times).items()}}


def chosen(name: str) -> Any:
    """The filter that a boolean column defines."""
    from bigr_repr.retrieval import Filter

    return Filter(where=name)


def check(index: HammingIndex, wanted: np.ndarray, name: str, passing: np.ndarray) -> None:
    """Raises AssertionError unless the first queries' hits are NumPy's."""
    rows = np.flatnonzero(passing)
    found = index.find(wanted[:3], K, where=name)
    for query, code in enumerate(wanted[:3]):
        distances = hamming(index.rows.codes[rows], code)
        order = np.argsort(distances, kind="stable")[:K]
        assert np.array_equal(found.rows[query], rows[order])
        assert np.array_equal(found.distances[query], distances[order])


def updated(rows: int, bits: int, rounds: int = 5) -> dict[str, Any]:
    """Update a flat index after adding 1 % of the rows and removing 0.1 %, and rebuild another for comparison."""
    seconds: dict[str, list[float]] = {"build": [], "update": []}
    written: dict[str, list[int]] = {"build": [], "update": []}
    with tempfile.TemporaryDirectory() as work:
        data, index, anew = (Path(work) / name for name in ("data", "index", "anew"))
        data.mkdir()
        sizes = [rows // 8] * 8 + [rows // 1000] * rounds
        for part, count in enumerate(sizes):
            write_part(data / f"part-{part:05}.parquet", part * rows, count, bits)
        build_index(data, index, binarizer="bits")
        for turn in range(rounds):
            write_part(data / f"part-{len(sizes) + turn:05}.parquet", (len(sizes) + turn) * rows, rows // 100, bits)
            (data / f"part-{8 + turn:05}.parquet").unlink()
            for name, folder, run in (
                ("update", index, lambda: update_index(index)),
                ("build", anew, lambda: build_index(data, anew, binarizer="bits")),
            ):
                before = {file: file.stat().st_size for file in folder.glob("*-*")}
                started = time.process_time()
                run()
                seconds[name].append(time.process_time() - started)
                after = {file: file.stat().st_size for file in folder.iterdir()}
                written[name].append(sum(size - before.get(file, 0) for file, size in after.items()))
            assert HammingIndex.load(index).ids.sort().equals(HammingIndex.load(anew).ids.sort())
    s, b = ({name: statistics.median(each) for name, each in all_of.items()} for all_of in (seconds, written))
    return {
        "rows": rows, "bits": bits, "added": rows // 100, "dropped": rows // 1000, "rounds": rounds,
        "processor_s": {name: round(value, 4) for name, value in s.items()}, "bytes_written": b,
        "share_of_processor_time": round(s["update"] / s["build"], 4),
        "share_of_bytes": round(b["update"] / b["build"], 4),
    }  # fmt: skip


def write_part(file: Path, first: int, count: int, bits: int) -> None:
    """Write a file of an embedding data set that holds only random codes."""
    import json

    per_token = bits // 16
    provenance = {
        "format": 1, "package_version": "0", "model": "random", "weights_sha256": "0" * 64, "layers": [],
        "pooling": "avg", "shape": [1], "dtype": "float32", "precision": "float32", "condition": "",
        "preprocessing": {}, "n_bits": bits, "bits_per_token": per_token, "bit_order": "", "labels": None,
        "sha256": None, "dedup": None, "batch_size": 1,
    }  # fmt: skip
    codes = np.random.default_rng(first).integers(0, 256, (count, bits // 8), np.uint8)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(bits // 8), count, [None, pa.py_buffer(codes)])
    paths = pa.array([f"folder/{number:09}.jpg" for number in range(first, first + count)])
    schema = pa.schema(
        [pa.field("path", pa.string(), nullable=False), pa.field("code", column.type, nullable=False)],
        metadata={METADATA_KEY: json.dumps(provenance)},
    )
    pq.write_table(pa.table([paths, column], schema=schema), file)


if __name__ == "__main__":
    main()
