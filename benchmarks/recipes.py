"""How the bundled recipe was found: short training runs of a small generator that each change one setting, best first.

    python benchmarks/recipes.py runs/codes64                          # all of them: about two hours of one core
    python benchmarks/recipes.py runs/codes64 --only aligned "aligned, seed 1"
    python benchmarks/recipes.py runs/codes64 --steps 3 --images 300   # a quick trial, a few minutes
    python benchmarks/recipes.py runs/codes --group classifier --probe runs/codes-test   # what the classifier adds

CODES is the code data set that `train_tiny.sh DATA OUT aligned WEIGHTS` creates, with EfficientNet-Lite0's features:
Tiny-ImageNet, then CIFAR-10. Every run sees the same number of images (300 steps of 64, sampled from all), with a
generator of 8 blocks of width 192, half as deep as the bundled one, unless the size is what differs. "plain" learns
codes and classes with the sampler's masking; "aligned" is the recipe of the bundled model; the others change what their
names say. "plain" and "aligned" run with 3 seeds, to show what is chance.

The group `classifier` takes the code data set that `train_tiny.sh DATA OUT` creates, with the features of a classifier
of the same images. "classifier" is the recipe of `bigr-tiny`; "no classifier" is the same recipe without those
features. The classifier has learned the labels of all training images, so these runs are probed on images that it has
not seen: the codes of cifar10-test.parquet, made by `bigr-repr train codes` with the same tokenizer.

Linear probe (logistic regression) and 20-NN use 4 000 and 2 000 images of CIFAR-10's training set, and the best block
of each, so that choosing a recipe does not use the test set that reports it. The loss is measured on 512 images without
a class, with the same masks for all runs.

Writes results/recipes/NAME.json as each run ends, and results/recipes.json, a table of all records there; the other
group writes to recipes_classifier. Runs that have a record are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from numpy.typing import NDArray

from bigr_repr.config import ModelConfig, preset
from bigr_repr.evaluate.probes.knn import knn
from bigr_repr.evaluate.probes.linear_probe import linear_probes
from bigr_repr.models.bigr import BiGR
from bigr_repr.train import CodeSet, GeneratorRecipe, TrainSettings, train_generator

_BATCH = 64
_SIZE = {"layers": 8}  # the preset tiny has 16
_PROBED = 10  # the last classes of the code set are CIFAR-10's
_LOSS_IMAGES = 512

_PLAIN: dict[str, Any] = {"optimizer": "muon", "dropout": 0.0, "diffusion_draws": 2}
_HALF: dict[str, Any] = _PLAIN | {"masking": "half", "light_share": 0.35}
_ALONE: dict[str, Any] = _PLAIN | {"class_dropout": 0.3, "read_share": 0.5, "masking": "mixed", "light_share": 0.3}
_CLASSIFIER: dict[str, Any] = _ALONE | {"align_weight": 0.7, "pool_weight": 0.5}
_ALIGNED: dict[str, Any] = _HALF | {"class_dropout": 0.3, "read_share": 0.5, "align_weight": 0.7, "pool_weight": 0.5}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One short run: a recipe, changes to the default settings and sizes, and a seed. times: of the usual steps."""

    name: str
    recipe: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    times: int = 1

    @property
    def file(self) -> str:
        """The name in a form that suits a file name."""
        return "-".join("".join(c if c.isalnum() or c == "." else " " for c in self.name).split())


RUNS = [
    Run(name="plain", recipe=_PLAIN),
    Run(name="plain, seed 1", recipe=_PLAIN, seed=1),
    Run(name="plain, seed 2", recipe=_PLAIN, seed=2),
    Run(name="plain, half of the tokens masked", recipe=_PLAIN | {"masking": "half"}),
    Run(name="plain, 35 % of the images lightly masked", recipe=_PLAIN | {"light_share": 0.35}),
    Run(name="plain, both", recipe=_HALF),
    Run(name="plain, both, half of the tokens read", recipe=_HALF | {"read_share": 0.5}),
    Run(name="plain, no classes", recipe=_PLAIN | {"conditional": False}),
    Run(name="plain, class dropout 0.5", recipe=_PLAIN | {"class_dropout": 0.5}),
    Run(name="plain, dropout 0.1", recipe=_PLAIN | {"dropout": 0.1}),
    Run(name="plain, AdamW", recipe=_PLAIN | {"optimizer": "adamw"}),
    Run(name="plain, one noise draw", recipe=_PLAIN | {"diffusion_draws": 1}),
    Run(name="aligned", recipe=_ALIGNED),
    Run(name="aligned, seed 1", recipe=_ALIGNED, seed=1),
    Run(name="aligned, seed 2", recipe=_ALIGNED, seed=2),
    Run(name="aligned, by token only", recipe=_ALIGNED | {"pool_weight": 0.0}),
    Run(name="aligned, pooled only", recipe=_ALIGNED | {"align_weight": 0.0}),
    Run(name="aligned, twice the weights", recipe=_ALIGNED | {"align_weight": 1.4, "pool_weight": 1.0}),
    Run(name="aligned, blocks 1 and 3", recipe=_ALIGNED | {"align_block": 1, "pool_block": 3}),
    Run(name="aligned, blocks 4 and 6", recipe=_ALIGNED | {"align_block": 4, "pool_block": 6}),
    Run(name="aligned, all tokens read", recipe=_ALIGNED | {"read_share": 1.0}),
    Run(name="aligned, a quarter of the tokens read", recipe=_ALIGNED | {"read_share": 0.25}),
    Run(name="aligned, masked as in the sampler", recipe=_ALIGNED | {"masking": "cosine", "light_share": 0.0}),
    Run(name="aligned, no classes", recipe=_ALIGNED | {"conditional": False}),
    Run(name="aligned, rate 0.0006", recipe=_ALIGNED, settings={"learning_rate": 6e-4}),
    Run(name="aligned, rate 0.0024", recipe=_ALIGNED, settings={"learning_rate": 2.4e-3}),
    Run(name="aligned, batch 32", recipe=_ALIGNED, settings={"batch_size": 32}),
    Run(name="aligned, batch 128", recipe=_ALIGNED, settings={"batch_size": 128}),
    Run(name="aligned, EMA 0.98", recipe=_ALIGNED, settings={"ema": 0.98}),
    Run(name="aligned, AdamW", recipe=_ALIGNED | {"optimizer": "adamw"}),
    Run(name="aligned, 4 blocks of 256", recipe=_ALIGNED, size={"layers": 4, "dim": 256, "heads": 4}),
    Run(name="aligned, 14 blocks of 144", recipe=_ALIGNED, size={"layers": 14, "dim": 144}),
    Run(name="aligned, 6 heads", recipe=_ALIGNED, size={"heads": 6}),
]  # fmt: skip
_CLASSIFIER_RUNS = [
    *(Run(name=f"classifier, seed {seed}", recipe=_CLASSIFIER, seed=seed) for seed in range(3)),
    *(Run(name=f"no classifier, seed {seed}", recipe=_ALONE, seed=seed) for seed in range(3)),
    Run(name="classifier, by token only", recipe=_CLASSIFIER | {"pool_weight": 0.0}),
    Run(name="classifier, pooled only", recipe=_CLASSIFIER | {"align_weight": 0.0}),
    Run(name="classifier, four times the images", recipe=_CLASSIFIER, times=4),
    Run(name="no classifier, four times the images", recipe=_ALONE, times=4),
]
GROUPS = {"efficientnet": RUNS, "classifier": _CLASSIFIER_RUNS}


def train(run: Run, codes: CodeSet, views: int, out: Path) -> tuple[BiGR, ModelConfig, float]:
    """The trained generator, its architecture, and the processor seconds of training."""
    usual = preset("tiny", code_bits=codes.header.code_bits, classes=len(codes.header.class_names))
    config = dataclasses.replace(usual, generator=dataclasses.replace(usual.generator, **_SIZE | run.size))
    batch = run.settings.get("batch_size", _BATCH)
    settings = TrainSettings(
        out=str(out), steps=run.times * views // batch, tracker="none", cpu=True, seed=run.seed, save_every=10**6,
        log_every=10, **{"batch_size": batch, "learning_rate": 1.2e-3, "warmup": 20, "schedule": "cosine",
        "ema": 0.99, "precision": "bf16"} | run.settings,
    )  # fmt: skip
    start = time.process_time()
    model = train_generator(codes, config, settings, GeneratorRecipe(**run.recipe), compile_blocks=False)
    return model, config, time.process_time() - start


def features(model: BiGR, codes: CodeSet, rows: NDArray[np.int64]) -> dict[int, NDArray[np.float32]]:
    """Mean hidden states of every block, (n, D) each, of images without masked tokens."""
    layers, found = range(model.config.layers), []
    for start in range(0, len(rows), 100):
        bits = _bits(codes, rows[start : start + 100])
        with torch.inference_mode():
            states = model.hidden_states(bits, layers=tuple(layers))
        found.append([states[layer].float().mean(1).numpy() for layer in layers])
    return {layer: np.concatenate([part[layer] for part in found]) for layer in layers}


def _bits(codes: CodeSet, rows: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(codes.bits(rows, np.zeros_like(rows))).float()


def loss(model: BiGR, codes: CodeSet, rows: NDArray[np.int64]) -> float:
    """Mean loss per bit without a class. Masks follow the sampler's schedule and are the same in every call."""
    total, generator = 0.0, torch.Generator().manual_seed(0)
    shares = torch.cos(torch.pi / 2 * (torch.arange(64) + 0.5) / 64)[:, None]
    for start in range(0, len(rows), 64):
        bits = _bits(codes, rows[start : start + 64])
        masked = torch.rand(bits.shape[:2], generator=generator) < shares[: len(bits)]
        masked[:, 0] |= ~masked.any(1)
        with torch.inference_mode():
            total += float(model.loss(bits, generator=generator, masked=masked)) * len(bits)
    return total / len(rows)


def measure(model: BiGR, codes: CodeSet, images: int) -> dict[str, Any]:
    """Probe and 20-NN at every block, the best of each, and the loss, from images of the last _PROBED classes."""
    assert codes.labels is not None
    own = np.flatnonzero(codes.labels >= len(codes.header.class_names) - _PROBED)
    chosen = np.random.default_rng(0).permutation(own)[: images + images // 2]
    kept, held = np.sort(chosen[:images]), np.sort(chosen[images:])
    train, test = features(model, codes, kept), features(model, codes, held)
    labels, wanted = codes.labels[kept], codes.labels[held]
    probes = {layer: found.top1 for layer, found in linear_probes(train, labels, test, wanted).items()}
    nearest = {layer: knn(train[layer], labels, test[layer], wanted, k=[20]).top1[20] for layer in train}
    return {
        "probe": round(max(probes.values()), 2),
        "probe_block": max(probes, key=lambda layer: probes[layer]),
        "knn20": round(max(nearest.values()), 2),
        "knn20_block": max(nearest, key=lambda layer: nearest[layer]),
        "loss": round(loss(model, codes, held[:_LOSS_IMAGES]), 4),
        "blocks": {layer: {"probe": round(probes[layer], 2), "knn20": round(nearest[layer], 2)} for layer in probes},
    }


def table(lines: list[dict[str, Any]]) -> list[str]:
    """A Markdown table, sorted by the sum of probe and 20-NN, best first."""
    rows = ["| run | probe | 20-NN | loss | processor minutes |", "|---|---:|---:|---:|---:|"]
    for line in sorted(lines, key=lambda line: -line["probe"] - line["knn20"]):
        shares = f"{line['probe']:.1f} | {line['knn20']:.1f} | {line['loss']:.4f} | {line['cpu_seconds'] / 60:.1f}"
        rows.append(f"| {line['run']} | {shares} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codes", type=Path, help="code data set with features")
    parser.add_argument("--group", choices=GROUPS, default="efficientnet", help="whose features CODES has")
    parser.add_argument("--probe", type=Path, help="code data set to probe on (default: the last classes of CODES)")
    names = [run.name for runs in GROUPS.values() for run in runs]
    parser.add_argument("--only", nargs="+", choices=names, metavar="RUN", help="only these runs")
    parser.add_argument("--steps", type=int, default=300, help="training steps of 64 images")
    parser.add_argument("--images", type=int, default=4000, help="images to train probes on; half as many test them")
    parser.add_argument("--out", type=Path, help="folder of the runs' records")
    options = parser.parse_args()
    name = "recipes" if options.group == "efficientnet" else f"recipes_{options.group}"
    options.out = options.out or record.RESULTS / name
    codes = CodeSet(options.codes)
    probed = CodeSet(options.probe) if options.probe else codes
    for run in GROUPS[options.group]:
        if (options.only and run.name not in options.only) or (options.out / f"{run.file}.json").exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            model, config, seconds = train(run, codes, options.steps * _BATCH, Path(folder))
        found = measure(model, probed, options.images)
        changed = {"recipe": run.recipe, "settings": run.settings, "size": run.size, "seed": run.seed}
        size = {"parameters": sum(each.numel() for each in model.parameters()), "layers": config.generator.layers}
        facts = {"run": run.name, "images_seen": run.times * options.steps * _BATCH, "cpu_seconds": round(seconds)}
        record.write(run.file, facts | found | changed | size, folder=options.out)
    lines = [json.loads(file.read_text()) for file in sorted(options.out.glob("*.json"))]
    record.write(name, {"table": table(lines)}, folder=options.out.parent)
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
