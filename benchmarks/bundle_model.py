"""Puts a trained model folder into the package as bigr-tiny, in half precision, with its terms and measured quality.

    python benchmarks/bundle_model.py runs/generator/model --record benchmarks/results/training.json

`quality` is taken from benchmarks/results/{reconstruction,representation}.json where they name the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

import bigr_repr as br

ASSETS = Path(br.__file__).parent / "assets" / "bigr-tiny"
TERMS = (
    "Trained on Tiny-ImageNet, a subset of ImageNet, whose terms allow non-commercial research and education, and on "
    "CIFAR-10 (Krizhevsky 2009). The weights are given for the same purposes."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder that `bigr-repr train generator` wrote")
    parser.add_argument(
        "--record", type=Path, help="JSON with steps, time and machine: benchmarks/results/training.json"
    )
    parser.add_argument("--quality", type=Path, help="JSON of measured figures to keep in the model's config")
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    model = br.load(arguments.model)
    training = {"terms": TERMS}
    if arguments.record:
        record = json.loads(arguments.record.read_text())
        training |= {name: record[name] for name in ("machine", "tokenizer", "generator", "note") if name in record}
    quality = json.loads(arguments.quality.read_text()) if arguments.quality else {}
    config = dataclasses.replace(model.config, name="bigr-tiny", training=training, quality=quality)
    br.save(
        br.Pretrained(config=config, tokenizer=model.tokenizer, generator=model.generator),
        arguments.out,
        dtype=torch.float16,
    )
    size = sum(file.stat().st_size for file in arguments.out.iterdir()) / 1e6
    print(f"{arguments.out}: {size:.1f} MB, fingerprint {br.load(arguments.out).fingerprint[:12]}")


if __name__ == "__main__":
    main()
