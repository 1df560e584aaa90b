"""Retrieval by bits: how much of the float features' quality codes keep, and how fast they are searched. Two parts:

    python benchmarks/retrieval.py quality --root data
    python benchmarks/retrieval.py speed

quality
    Data: the training images as database and the test images as queries, stratified samples of both (--limit 8000 and
    --queries 1000; the whole of CIFAR-10 takes an hour).
    Measures mAP over all ranks and over 1000, precision@100, and recall of the 10 nearest by float features. Ties are
    averaged, with bounds. Compares float cosine; every binarizer at 64, 128, 192 and 256 bits with binary and with
    float queries; RaBitQ (FAISS 1.13 or newer; two 32-bit factors per row in addition to its bits); tokenizer bits; and
    a shortlist of 1000 rescored by float cosine.
    Writes benchmarks/results/retrieval_quality.json, with a table. Expected: at least 97 % of the float mAP@1000 at 256
    bits with rescoring. About eight minutes on 2 cores, one with cached features.

speed
    Data: random codes, 10^6 of 256 bits, 2 x 10^5 of 1536 and of 6144.
    Measures median times of 1, 32 and 1000 queries, alternating with raw FAISS, usearch and NumPy in one run; recall
    against time of ivf, hnsw and usearch on clustered codes, as a plot; and an extrapolation to 10^9 images.
    Writes benchmarks/results/retrieval_speed.json and .png. Expected: nowhere below 0.95 x raw FAISS, and one query at
    0.85 of the bandwidth at which all cores read. About eight minutes on 2 cores; the scans alone (--scans-only,
    written to retrieval_scans.json) take three.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import record
import retrieval_quality
import retrieval_speed

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.evaluate.runs.cache import default_cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    quality = parts.add_parser("quality", help="retrieval quality on real images")
    quality.add_argument("--dataset", nargs="+", default=["cifar10", "tiny-imagenet"], help="as for bigr-repr bench")
    quality.add_argument("--root", default="data", help="folder of the data sets")
    quality.add_argument("--model", default=DEFAULT_MODEL)
    quality.add_argument("--record", default="retrieval_quality", help="name of the record, without .json")
    quality.add_argument("--layer", default="12", help='a block, or "mid"')
    quality.add_argument("--limit", type=int, default=8000, help="images of the database, a stratified sample; 0: all")
    quality.add_argument("--queries", type=int, default=1000, help="queries, a stratified sample; 0: all")
    quality.add_argument("--bits", type=int, nargs="+", default=[64, 128, 192, 256])
    quality.add_argument("--shortlist", type=int, default=1000, help="rows per query that are rescored")
    quality.add_argument("--cache", type=Path, default=default_cache(), help="folder for cached features")
    quality.add_argument("--seed", type=int, default=0)
    quality.add_argument("--device", help="default: a GPU if there is one")
    speed = parts.add_parser("speed", help="search speed on synthetic codes")
    speed.add_argument(
        "--rows", type=int, nargs=3, default=[1_000_000, 200_000, 200_000], help="codes of 256, 1536 and 6144 bits"
    )
    speed.add_argument("--scans-only", action="store_true", help="skip curves and stores")
    speed.add_argument("--curve-rows", type=int, default=200_000, help="codes of 256 bits for recall against time")
    speed.add_argument("--rounds", type=int, default=13, help="rounds of three runs per contender")
    speed.add_argument("--stores", action="store_true", help="also LanceDB and milvus-lite, with a tenth of the rows")
    options = parser.parse_args()
    if options.part == "quality":
        pre = record.load(options.model)
        results = retrieval_quality.run(options)
        record.write(options.record, results, pre)
    else:
        results = retrieval_speed.run(options, record.RESULTS / "retrieval_speed.png")
        record.write("retrieval_scans" if options.scans_only else "retrieval_speed", results)
    print("\n".join(results["table"]))


if __name__ == "__main__":
    main()
