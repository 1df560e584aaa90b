"""Finding near-duplicates among many codes: seconds, memory, and whether any are missed.

    python benchmarks/near_duplicates.py
    python benchmarks/near_duplicates.py --rows 20000

Data: codes of 256 bits, random ones and clustered ones like hashes of real features (signs of projections of 24
directions, with noise). A tenth of them are copies with up to 12 bits flipped. Each size and kind is searched at radius
8 in its own process, and its peak memory beyond that before the search is recorded. At the smallest size, comparing all
pairs must find the same images.

Writes benchmarks/results/near_duplicates.json. Expected on 2 cores: seconds for a million random codes and minutes at
most for clustered ones, with less than 500 MB beyond the codes. About three minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import faiss
import numpy as np
import record

from bigr_repr.retrieval import HammingIndex, find_near_duplicates
from bigr_repr.retrieval.index import pairs

BITS, RADIUS, FLIPS = 256, 8, 12


def codes_of(kind: str, rows: int) -> np.ndarray:
    """Codes (rows, 32), a tenth of which are near another code."""
    random = np.random.default_rng(0)
    if kind == "random":
        codes = random.integers(0, 256, (rows, BITS // 8), np.uint8)
    else:
        from retrieval_speed import clustered

        codes = clustered(rows, BITS, 0)
    order = random.permutation(rows)
    copies, originals = order[: rows // 10], order[rows // 10 : 2 * (rows // 10)]
    for start in range(0, len(copies), 1 << 14):
        part = slice(start, start + (1 << 14))
        count = len(copies[part])
        flips = np.zeros((count, BITS), np.bool_)
        places = random.integers(0, BITS, (count, FLIPS))
        wanted = np.arange(FLIPS) < random.integers(0, FLIPS + 1, (count, 1))
        flips[np.nonzero(wanted)[0], places[wanted]] = True
        codes[copies[part]] = codes[originals[part]] ^ np.packbits(flips, axis=1)
    return codes


def measured(kind: str, rows: int, *, check: bool) -> dict[str, Any]:
    """Measure one size and kind, in this process."""
    codes = codes_of(kind, rows)
    index = HammingIndex.build(codes)
    find_near_duplicates(HammingIndex.build(codes[:1000]), RADIUS)  # loads FAISS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.perf_counter(), time.process_time()
    clusters = find_near_duplicates(index, RADIUS)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    found: dict[str, Any] = {
        "codes": kind,
        "rows": rows,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
        "peak_mb_more": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        "clusters": len(clusters),
        "images_in_clusters": sum(len(cluster.rows) for cluster in clusters),
    }
    if check:
        started = time.perf_counter()
        near = np.zeros(rows, np.bool_)
        for first, second in pairs._all_pairs(codes, RADIUS, None):
            near[first] = near[second] = True
        found["all_pairs_seconds"] = round(time.perf_counter() - started, 2)
        found["same_images"] = bool(np.array_equal(np.flatnonzero(near), np.sort(np.concatenate(
            [cluster.rows for cluster in clusters]))))  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="numbers of codes")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # kind and rows, for a child process
    options = parser.parse_args()
    if options.only:
        kind, rows = options.only[0], int(options.only[1])
        print(json.dumps(measured(kind, rows, check=rows == min(options.rows))))
        return
    rows_of = []
    for rows in options.rows:
        for kind in ("random", "clustered"):
            command = [sys.executable, __file__, "--rows", str(min(options.rows)), "--only", kind, str(rows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows_of.append(json.loads(done.stdout))
            print(rows_of[-1], flush=True)
    record.write("near_duplicates", {"faiss": faiss.__version__, "bits": BITS, "radius": RADIUS, "runs": rows_of})


if __name__ == "__main__":
    main()
