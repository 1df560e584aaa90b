"""How good the representations are: runs suites/representation.yaml and records it with the machine.

    python benchmarks/representation.py --root data                # all images: about three hours on 2 cores
    python benchmarks/representation.py --root data --limit 10000  # at most 10 000 training images: 40 minutes
    python benchmarks/representation.py --root data --reduced      # suites/representation-small.yaml: 12 minutes
    python benchmarks/representation.py --root data --limit 400    # a quick trial, about a minute
    python benchmarks/representation.py --root data --suite pools --record pools --out runs/pools  # 12 min. on a core
    python benchmarks/representation.py --root data --suite transfer --record transfer --out runs/transfer  # README's
    python benchmarks/representation.py --root data --suite blocks --out runs/blocks  # every block: 15 minutes
    # the other model: --model bigr-tiny-aligned --record representation_aligned --out runs/aligned, and so on

Data: `data` holds CIFAR-10 and Tiny-ImageNet as Parquet files (cifar10-train.parquet, cifar10-test.parquet,
tinyimagenet-train-*.parquet, tinyimagenet-val.parquet), or in the form of torchvision or the original downloads.

Writes benchmarks/results/representation.json, and a plot next to it. Repeat the command to resume an interrupted run.
Expected: on CIFAR-10 the model scores 15 points above pixels and above the untrained network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import record

from bigr_repr.evaluate.reports.report import markdown_table, write_reports
from bigr_repr.evaluate.runs.cache import default_cache
from bigr_repr.evaluate.runs.extraction import BenchSettings
from bigr_repr.evaluate.runs.suite import read_suite, run_suite

SUITES = Path(__file__).parent / "suites"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--model", default="bigr-tiny")
    parser.add_argument("--reduced", action="store_true", help="fewer images and layers")
    parser.add_argument("--suite", default="representation", help="name of a suite in suites/")
    parser.add_argument("--record", default="representation", help="name of the record in results/")
    parser.add_argument("--limit", type=int, help="maximum number of training images, and half as many test images")
    parser.add_argument("--out", type=Path, default=Path("runs/representation"), help="folder for finished results")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for cached features")
    parser.add_argument("--device", help="default: a GPU if there is one")
    options = parser.parse_args()
    pre = record.load(options.model)
    name = "representation-small.yaml" if options.reduced else f"{options.suite}.yaml"
    suite = read_suite(SUITES / name, model=options.model, root=options.root)
    suite = suite.limited(options.limit, options.limit and max(1, options.limit // 2))
    settings = BenchSettings(cache=options.cache, device=options.device)
    try:
        rows = run_suite(suite, options.out, settings)
    except (OSError, ValueError) as error:
        raise SystemExit(f"representation.py: {error}") from error
    files = write_reports("representation", rows, options.out)
    drawn = options.out / "representation-layers.png"
    if drawn in files:  # the suite sweeps blocks
        (record.RESULTS / f"{options.record}-layers.png").write_bytes(drawn.read_bytes())
    table = markdown_table(rows)
    record.write(options.record, {"suite": name, "table": table.splitlines(), "rows": rows}, pre)
    print(table)


if __name__ == "__main__":
    main()
