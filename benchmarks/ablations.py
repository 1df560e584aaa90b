"""The paper's ablations at a small size: models that differ in one thing, trained, probed and drawn from, in one table.

    python benchmarks/ablations.py all --root data --gpu             # the full budget, all ablations: needs a GPU
    python benchmarks/ablations.py objective --root data             # the same budget, one ablation, on a CPU
    python benchmarks/ablations.py all --root data --preset mini     # a tenth of the network: hours on a CPU
    python benchmarks/ablations.py all --root data --budget small    # a try: about two minutes a model on one core

    code-width   K = 16, 20, 24, 32 bits a token: a tokenizer and a generator each
    objective    what the transcoder predicts: flip, x0, bce
    condition    with classes and without
    order        masked against autoregressive
    tokens       binary against categorical: one tokenizer of 14 bits, the transcoder or a softmax over all 2^14 codes

Data is CIFAR-10 at the size of the preset (64 px): cifar10-train.parquet and cifar10-test.parquet in the folder. `tiny`
has 64 tokens and 16 blocks of 192; `mini` 16 tokens and 8 blocks of 128.
The full budget is 20 000 images x 10 epochs in batches of 64 (3 125 steps) for every generator, and as many images for
each tokenizer that is trained here (of code-width and tokens; the others use the bundled one, or with `mini` that of 32
bits); probes are trained on
10 000 images and tested on 5 000, and 1 000 images are drawn. On 2 cores a generator takes about 50 minutes, so that
all of it is an overnight run there; the time on a GPU is not yet measured. The small budget is 640 images x 3 epochs,
probes of 400 and 40 drawn images: it shows that everything runs, and nothing more. The same command goes on with a
broken run: models and measurements that are there are kept.

Expected, from the paper at its size and its full training: flip before x0 before bce (probe 64.3, 62.0, 63.3; FID 3.17,
4.39, 5.84); probe without classes 68.3 against 67.5; masked before autoregressive (probe 64.3 against 45.2; FID 3.17
against 7.50).

Every variant of an ablation has the same images, steps, batch and recipe: Muon, dropout 0, classes where they are not
what differs, and no alignment with another network. Probes are logistic regression at every block, 20-NN, and an
attentive head at the best block. Fréchet distances are between features of drawn and of test images, by the network
that bench generation takes (EfficientNet-Lite0 where it is installed, and named in the record), which no variant was
trained with.

Writes benchmarks/results/ablation-NAME.json (with `mini` ablation-mini-NAME.json) for the full budget, and
OUT/ablation-NAME.json for any other.
"""

from __future__ import annotations

import argparse
import dataclasses
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
_OWN = {"tiny": _BUNDLED, "mini": "d32"}  # the tokenizer of those that do not compare tokenizers, by preset
_BATCH = 64  # images of a generator's step
_DRAWN = 100  # images drawn at a time


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every variant gets: images and passes over them; images of the probe, half as many to test; drawn images.

    steps: of a generator; 0: as many as the passes take.
    """

    train_images: int = 20_000
    epochs: int = 10
    limit: int = 10_000
    images: int = 1000
    steps: int = 0

    def __post_init__(self) -> None:
        if not self.steps:
            object.__setattr__(self, "steps", math.ceil(self.epochs * self.train_images / _BATCH))


BUDGETS = {"full": Budget(), "small": Budget(train_images=640, epochs=3, limit=400, images=40)}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model: tokenizer, what the transcoder predicts, whether classes are learned, which tokens a token reads, and
    what draws the bits of a token.

    tokenizer: the name of a size ("d16": K = 16) that is trained for the comparison; None: the preset's own.
    """

    name: str
    tokenizer: str | None = None
    objective: str = "flip"
    conditional: bool = True
    attention: str = "full"
    output_head: str = "bernoulli"

    def folder(self, tokenizer: str) -> str:
        """Of its generator; variants of several ablations may be one model."""
        head = "" if self.output_head == "bernoulli" else f"-{self.output_head}"
        return f"generator-{tokenizer}-{self.objective}-{self.conditional}-{self.attention}{head}"


ABLATIONS = {
    "code-width": [Variant(name=f"K={bits}", tokenizer=f"d{bits}") for bits in (16, 20, 24, 32)],
    "objective": [Variant(name=objective, objective=objective) for objective in ("flip", "x0", "bce")],
    "condition": [Variant(name="with classes"), Variant(name="without classes", conditional=False)],
    "order": [Variant(name="masked"), Variant(name="autoregressive", attention="causal")],
    "tokens": [
        Variant(name="binary", tokenizer="d14"),
        Variant(name="categorical", tokenizer="d14", output_head="categorical"),
    ],
}  # fmt: skip


def train(variant: Variant, budget: Budget, options: Any) -> Path:
    """The variant's model folder, trained as far as it is not yet."""
    images, steps = _images(budget, options), budget.steps
    place = [] if options.gpu else ["--cpu"]
    common = ["--precision", "bf16", "--schedule", "cosine", "--sample-every", "0", *place]
    size = variant.tokenizer or _OWN[options.preset]
    tokenizer, codes = _tokenizer(size, images, steps, options, common), options.out / f"codes-{size}"
    if not (codes / "codes.json").exists():
        _command("codes", images, "--tokenizer", tokenizer, "--out", codes, "--precision", "bf16")
    generator = options.out / variant.folder(size)
    _command(
        "generator", codes, "--tokenizer", tokenizer, "--out", generator, "--preset", options.preset,
        "--objective", variant.objective, "--attention", variant.attention, "--output-head", variant.output_head,
        "--conditional" if variant.conditional else "--no-conditional",
        "--steps", steps, "--batch-size", _BATCH, "--warmup", steps // 30,
        "--compile" if steps >= 1000 else "--no-compile",
        "--optimizer", "muon", "--learning-rate", "1.5e-3", "--diffusion-draws", "2", "--dropout", "0",
        "--ema", "0.998", "--name", f"ablation-{variant.name}", *common,
    )  # fmt: skip
    return generator / "model"


def _tokenizer(size: str, images: Path, steps: int, options: Any, common: list[str]) -> str:
    """The bundled tokenizer, or one of this size that is trained here."""
    if size == _BUNDLED:
        return _BUNDLED
    folder = options.out / f"tokenizer-{size}"
    _command(
        "tokenizer", images, "--out", folder, "--preset", f"{options.preset}-{size}", "--perceptual", "none",
        "--pixel-loss", "l2", "--gan-start", "-1", "--no-sample-bits", "--learning-rate", "1e-3",
        "--steps", 4 * steps, "--batch-size", _BATCH // 4, "--warmup", steps // 10, "--ema", "0.998", *common,
    )  # fmt: skip
    return str(folder / "tokenizer")


def _images(budget: Budget, options: Any) -> Path:
    """A Parquet file of the training images: a stratified sample."""
    whole = Path(options.root) / "cifar10-train.parquet"
    sample = options.out / f"cifar10-train-{budget.train_images}.parquet"
    if not sample.exists():
        table = pq.read_table(whole)
        labels = table["label"].to_numpy().astype(np.int64)
        rows = stratified_sample(labels, budget.train_images, np.random.default_rng(0))
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
    for start in range(0, count, _DRAWN):
        here = min(_DRAWN, count - start)
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


def measure(variant: Variant, model: Path, data: BenchData, budget: Budget, options: Any) -> dict[str, Any]:
    """One line of the table; kept in the run's folder, so that it is measured once."""
    kept = model.parent / f"measured-{len(data.train)}-{budget.images}-{judge()}.json"
    if not kept.exists():
        settings = BenchSettings(cache=options.cache, k=(20,), device=options.device)
        rows = bench(str(model), data, settings, layers=None)
        best = best_row(rows)
        assert best.probe is not None
        assert best.knn is not None
        assert best.view.layer is not None
        (attentive,) = bench_attentive(str(model), data, settings, layers=[best.view.layer])
        assert attentive.probe is not None
        line = {
            "layer": best.view.layer, "top1": round(best.probe.top1, 2), "interval": best.probe.interval,
            "attentive": round(attentive.probe.top1, 2), "knn20": round(best.knn.top1[20], 2),
            "frechet": round(distance(model, data, budget.images, variant, options.device), 3),
            "judge": judge(), "steps": budget.steps,
            "blocks": {row.view.layer: {"top1": _top1(row.probe), "knn20": _top1(row.knn)} for row in rows},
            "rows": [best.record(), attentive.record()],
        }  # fmt: skip
        kept.write_text(json.dumps(line))
    found: dict[str, Any] = json.loads(kept.read_text())
    return {"variant": variant.name, **found}


def _top1(found: Any) -> float:
    """Of a probe, or of the 20 nearest neighbors."""
    return round(found.top1 if isinstance(found.top1, float) else found.top1[20], 2)


def _budget(options: Any) -> Budget:
    """The named budget with the numbers that were given in the place of its own."""
    usual = BUDGETS[options.budget]
    given = {each.name: getattr(options, each.name) for each in dataclasses.fields(Budget)}
    return Budget(**{**dataclasses.asdict(usual), "steps": 0, **{k: v for k, v in given.items() if v is not None}})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablations", nargs="+", choices=[*ABLATIONS, "all"], metavar="ABLATION")
    parser.add_argument("--root", default="data", help="folder of cifar10-train.parquet and cifar10-test.parquet")
    parser.add_argument("--preset", choices=_OWN, default="tiny", help="architecture of every variant")
    parser.add_argument("--budget", choices=BUDGETS, default="full", help="of every variant")
    parser.add_argument("--train-images", type=int, help="instead of the budget's")
    parser.add_argument("--epochs", type=int, help="passes over these images, instead of the budget's")
    parser.add_argument("--steps", type=int, help="of a generator, instead of passes over them")
    parser.add_argument("--limit", type=int, help="training images of the probes, half as many to test, instead of its")
    parser.add_argument("--images", type=int, help="drawn for the Fréchet distance, instead of the budget's")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for features")
    parser.add_argument("--gpu", action="store_true", help="train and measure on a GPU")
    return parser


def main() -> None:
    options = _parser().parse_args()
    budget = _budget(options)
    options.device = "cuda" if options.gpu else "cpu"
    prefix = "" if options.preset == "tiny" else f"{options.preset}-"
    options.out = options.out / f"{prefix}images-{budget.train_images}-steps-{budget.steps}"
    data = open_data("cifar10", root=options.root, limit=budget.limit, test_limit=budget.limit // 2)
    table = [f"| ablation | model | block | probe | attentive | 20-NN | Fréchet distance, {judge()} |"]
    table.append("|---|---|---:|---:|---:|---:|---:|")
    for name in ABLATIONS if "all" in options.ablations else options.ablations:
        lines = [measure(each, train(each, budget, options), data, budget, options) for each in ABLATIONS[name]]
        results = {"judge": judge(), "preset": options.preset, "budget": dataclasses.asdict(budget), "lines": lines}
        record.write(f"ablation-{prefix}{name}", results, folder=record.RESULTS if budget == Budget() else options.out)
        for line in lines:
            shares = [f"{line[key]:.1f}" for key in ("top1", "attentive", "knn20")]
            cells = [name, line["variant"], str(line["layer"]), *shares, f"{line['frechet']:.2f}"]
            table.append(f"| {' | '.join(cells)} |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
