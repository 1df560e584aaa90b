"""The paper's ablations at a small size: models that differ in one thing, trained, probed and drawn from, in one table.

    python benchmarks/ablations.py code-width --root data        # K = 16, 20, 24, 32: a tokenizer and a generator each
    python benchmarks/ablations.py objective --root data         # flip, x0, bce: three generators
    python benchmarks/ablations.py condition --root data         # with classes and without
    python benchmarks/ablations.py order --root data             # masked against autoregressive
    python benchmarks/ablations.py objective --root data --train-images 20000 --epochs 10    # a stated budget
    python benchmarks/ablations.py objective --root data --steps 3 --limit 100      # a try, about two minutes

Data is CIFAR-10 at the size of the preset `tiny` (64 px): cifar10-train.parquet and cifar10-test.parquet in the folder.
Expected time: code-width 7 hours on 2 cores, objective 3, condition and order 2; each under an hour with --gpu on one
data-center GPU (not yet measured). The same command goes on with a broken run. All but code-width use the bundled
tokenizer, so that only generators are trained. Expected, from the paper at its size:
flip before x0 before bce (probe 64.3, 62.0, 63.3; FID 3.17, 4.39, 5.84); probe without classes 68.3 against 67.5;
masked before autoregressive (probe 64.3 against 45.2; FID 3.17 against 7.50).

Every variant of an ablation has the same images, steps, batch and recipe: Muon, dropout 0, classes where they are not
what differs, and no alignment with another network. Probes are logistic regression at every block, 20-NN, and an
attentive head at the best block. Fréchet distances are between features of drawn and of test images, by the network
that bench generation takes (EfficientNet-Lite0 where it is installed, and named in the record), which no variant was
trained with. Not covered: binary against categorical tokens, which need another head than the Bernoulli transcoder.
Writes benchmarks/results/ablation-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import record
from numpy.typing import NDArray
from PIL import Image

import bigr_repr as br
from bigr_repr.evaluate.data.splits import BenchData, open_data
from bigr_repr.evaluate.data.stratified import stratified_sample
from bigr_repr.evaluate.metrics.generation import frechet_distance
from bigr_repr.evaluate.representations.base import Reading
from bigr_repr.evaluate.representations.open import judge, open_representation
from bigr_repr.evaluate.runs.attention import bench_attentive
from bigr_repr.evaluate.runs.bench import bench, best_row
from bigr_repr.evaluate.runs.cache import default_cache
from bigr_repr.evaluate.runs.extraction import BenchSettings

_BUNDLED = "bigr-tiny"
_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model: tokenizer, what the transcoder predicts, whether classes are learned, which tokens a token reads.

    tokenizer: the bundled one, or the name of a size ("d16": K = 16) that is trained for the comparison.
    """

    name: str
    tokenizer: str = _BUNDLED
    objective: str = "flip"
    conditional: bool = True
    attention: str = "full"


ABLATIONS = {
    "code-width": [Variant(name=f"K={bits}", tokenizer=f"d{bits}") for bits in (16, 20, 24, 32)],
    "objective": [Variant(name=objective, objective=objective) for objective in ("flip", "x0", "bce")],
    "condition": [Variant(name="with classes"), Variant(name="without classes", conditional=False)],
    "order": [Variant(name="masked"), Variant(name="autoregressive", attention="causal")],
}


def train(variant: Variant, options: Any) -> Path:
    """The variant's model folder, trained as far as it is not yet."""
    images = _images(options)
    steps = options.steps
    place = [] if options.gpu else ["--cpu"]
    common = ["--precision", "bf16", "--schedule", "cosine", "--sample-every", "0", *place]
    tokenizer, codes = _tokenizer(variant, images, options, steps, common), options.out / f"codes-{variant.tokenizer}"
    if not (codes / "codes.json").exists():
        _command("codes", images, "--tokenizer", tokenizer, "--out", codes, "--precision", "bf16")
    kind = f"{variant.objective}-{variant.conditional}-{variant.attention}"
    generator = options.out / f"generator-{variant.tokenizer}-{kind}"
    _command(
        "generator", codes, "--tokenizer", tokenizer, "--out", generator, "--preset", "tiny",
        "--objective", variant.objective, "--attention", variant.attention,
        "--conditional" if variant.conditional else "--no-conditional",
        "--steps", steps, "--batch-size", _batch(options), "--warmup", steps // 30, "--compile",
        "--optimizer", "muon", "--learning-rate", "1.5e-3", "--diffusion-draws", "2", "--dropout", "0",
        "--ema", "0.9995" if options.gpu else "0.998", "--name", f"ablation-{variant.name}", *common,
    )  # fmt: skip
    return generator / "model"


def _batch(options: Any) -> int:
    """Images of a generator's step."""
    return 512 if options.gpu else 64


def _tokenizer(variant: Variant, images: Path, options: Any, steps: int, common: list[str]) -> str:
    """The bundled tokenizer, or one trained here where its number of bits is what differs."""
    if variant.tokenizer == _BUNDLED:
        return _BUNDLED
    folder = options.out / f"tokenizer-{variant.tokenizer}"
    _command(
        "tokenizer", images, "--out", folder, "--preset", f"tiny-{variant.tokenizer}", "--perceptual", "none",
        "--pixel-loss", "l2", "--gan-start", "-1", "--no-sample-bits", "--learning-rate", "1e-3",
        *(["--steps", steps, "--batch-size", 256] if options.gpu else ["--steps", 4 * steps, "--batch-size", 16]),
        "--warmup", steps // 10, "--ema", "0.998", *common,
    )  # fmt: skip
    return str(folder / "tokenizer")


def _images(options: Any) -> Path:
    """A Parquet file of the training images: a stratified sample, or all of them if so many are asked for."""
    whole = Path(options.root) / "cifar10-train.parquet"
    sample = options.out / f"cifar10-train-{options.train_images}.parquet"
    if not sample.exists():
        table = pq.read_table(whole)
        labels = table["label"].to_numpy().astype(np.int64)
        rows = stratified_sample(labels, options.train_images, np.random.default_rng(0))
        options.out.mkdir(parents=True, exist_ok=True)
        beside = sample.with_suffix(".part")
        pq.write_table(table.take(rows), beside)
        beside.replace(sample)
    return sample


def _command(kind: str, *words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "bigr_repr_cli", "train", kind, *map(str, words)], check=False)
    if done.returncode:
        raise SystemExit(f"ablations.py: bigr-repr train {kind} failed; the same command goes on from there")


def distance(model: Path, data: BenchData, count: int, variant: Variant, device: str | None) -> float:
    """Fréchet distance between `count` drawn images, classes in turn, and the test images."""
    pre, network = br.load(model, device=device or "cpu"), open_representation(judge(), device=device)
    (view,) = network.views((), Reading())

    def seen(images: list[Image.Image]) -> NDArray[Any]:
        parts = [images[start : start + 32] for start in range(0, len(images), 32)]
        batches = ([network.prepare(image.convert("RGB")) for image in part] for part in parts)
        return np.concatenate([network.arrays(batch, [view.item])[view.item] for batch in batches])

    features = []
    for start in range(0, count, _BATCH):
        here = min(_BATCH, count - start)
        labels = [(start + i) % pre.config.generator.classes for i in range(here)] if variant.conditional else None
        options: dict[str, Any] = {"guidance": 2.5} if variant.conditional else {}
        if variant.attention == "full":
            options["steps"] = 12
        images = br.generate(pre, labels, count=here, seed=start, **options)
        pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        features.append(seen([Image.fromarray(each) for each in pixels]))
    source = data.test.source
    real = [source.load(int(row)) for row in data.test.rows[:count]]  # type: ignore[union-attr]
    return frechet_distance(seen(real), np.concatenate(features))


def measure(variant: Variant, model: Path, data: BenchData, options: Any) -> dict[str, Any]:
    """One line of the table; kept in the run's folder, so that it is measured once."""
    kept = model.parent / f"measured-{len(data.train)}-{options.images}-{judge()}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    settings = BenchSettings(cache=options.cache, k=(20,), device=options.device)
    rows = bench(str(model), data, settings, layers=None)
    best = best_row(rows)
    assert best.probe is not None
    assert best.knn is not None
    assert best.view.layer is not None
    (attentive,) = bench_attentive(str(model), data, settings, layers=[best.view.layer])
    assert attentive.probe is not None
    line = {
        "attentive": round(attentive.probe.top1, 2), "judge": judge(), "steps": options.steps,
        "variant": variant.name, "layer": best.view.layer, "top1": round(best.probe.top1, 2),
        "interval": best.probe.interval, "knn20": round(best.knn.top1[20], 2),
        "frechet": round(distance(model, data, options.images, variant, options.device), 3),
        "rows": [row.record() for row in (*rows, attentive)],
    }  # fmt: skip
    kept.write_text(json.dumps(line))
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation", choices=ABLATIONS)
    parser.add_argument("--root", default="data", help="folder of cifar10-train.parquet and cifar10-test.parquet")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for features")
    parser.add_argument("--steps", type=int, help="of every generator; default: 4000, or 20 000 with --gpu")
    parser.add_argument("--epochs", type=int, help="instead of --steps: passes over --train-images")
    parser.add_argument(
        "--limit", type=int, default=10_000, help="training images of the probe, and half as many to test"
    )
    parser.add_argument("--images", type=int, help="drawn for the Fréchet distance; default: limit / 5, at most 1000")
    parser.add_argument("--train-images", type=int, help="default: all 50 000; the limit with --steps")
    parser.add_argument("--gpu", action="store_true", help="sizes for a GPU")
    options = parser.parse_args()
    options.device = "cuda" if options.gpu else "cpu"
    options.images = options.images or max(20, min(1000, options.limit // 5))
    options.train_images = options.train_images or (options.limit if options.steps else 50_000)
    if options.epochs:
        options.steps = math.ceil(options.epochs * options.train_images / _batch(options))
    if options.steps:
        options.out = options.out / f"images-{options.train_images}-steps-{options.steps}"
    options.steps = options.steps or (20_000 if options.gpu else 4000)
    data = open_data("cifar10", root=options.root, limit=options.limit, test_limit=options.limit // 2)
    lines = [measure(each, train(each, options), data, options) for each in ABLATIONS[options.ablation]]
    record.write(
        f"ablation-{options.ablation}",
        {"judge": judge(), "steps": options.steps, "images": options.train_images, "lines": lines},
    )
    head = f"| {options.ablation} | block | probe | attentive | 20-NN | Fréchet distance, {judge()} |"
    print(f"{head}\n|---|---:|---:|---:|---:|---:|")
    for line in lines:
        shares = (f"{line[name]:.1f}" for name in ("top1", "attentive", "knn20"))
        cells = (line["variant"], line["layer"], *shares, f"{line['frechet']:.2f}")
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
