"""Copies a trained model folder into the package, in half precision, with its terms and measured quality.

    python benchmarks/bundle_model.py runs/generator/model --record benchmarks/results/training.json
    python benchmarks/bundle_model.py runs/aligned/model --name bigr-tiny-aligned --record RECORD

`quality` comes from those of benchmarks/results/{reconstruction,representation}*.json that name the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import record
import torch

import bigr_repr as br

ASSETS = Path(br.__file__).parent / "assets"
RECORDED = ("machine", "initial", "networks", "tokenizer", "generator", "note")
TERMS = (
    "Trained on Tiny-ImageNet, a subset of ImageNet, whose terms allow non-commercial research and education, and on "
    "CIFAR-10 (Krizhevsky 2009). The weights are given for the same purposes."
)


def measured(fingerprint: str) -> dict[str, Any]:
    """Reconstruction and representation quality recorded for exactly these weights; records of others are ignored."""
    ours: dict[str, Any] = {}
    for name in ("reconstruction", "representation"):
        records = [json.loads(path.read_text()) for path in sorted(record.RESULTS.glob(f"{name}*.json"))]
        if mine := [found for found in records if found["model"]["fingerprint"] == fingerprint]:
            ours[name] = mine[-1]
    quality: dict[str, Any] = {}
    if found := ours.get("reconstruction"):
        quality["reconstruction"] = {
            key: found[key] for key in ("source", "images", "psnr_mean_of_images_db", "dead_bits_of_code")
        }
    if found := ours.get("representation"):
        quality["representation"] = {"command": found["command"], "table": found["table"]}
    return quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder that `bigr-repr train generator` wrote")
    parser.add_argument(
        "--record", type=Path, help="JSON with steps, time and machine: benchmarks/results/training.json"
    )
    parser.add_argument("--name", default="bigr-tiny", help="name to bundle the model under")
    parser.add_argument("--out", type=Path, help="folder to write to, instead of the package's")
    arguments = parser.parse_args()
    model, out = br.load(arguments.model), arguments.out or ASSETS / arguments.name
    training = {"terms": TERMS}
    if arguments.record:
        run = json.loads(arguments.record.read_text())
        training |= {name: run[name] for name in RECORDED if name in run}
    config = dataclasses.replace(model.config, name=arguments.name, training=training, quality={})
    bundled = br.Pretrained(config=config, tokenizer=model.tokenizer, generator=model.generator)
    br.save(bundled, out, store_dtype=torch.float16)
    config = dataclasses.replace(config, quality=measured(br.load(out).fingerprint))
    br.save(dataclasses.replace(bundled, config=config), out, store_dtype=torch.float16)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{out}: {size:.1f} MB, fingerprint {br.load(out).fingerprint[:12]}")


if __name__ == "__main__":
    main()
