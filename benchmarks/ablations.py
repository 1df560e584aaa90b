"""The paper's ablations at a small scale: models that differ in one setting, compared by probes and by their images.

    python benchmarks/ablations.py all --root data --gpu             # the full budget, all ablations: needs a GPU
    python benchmarks/ablations.py objective --root data             # the same budget, one ablation, on a CPU
    python benchmarks/ablations.py all --root data --preset mini     # a tenth of the network: hours on a CPU
    python benchmarks/ablations.py all --root data --budget small    # a quick trial: two minutes per model, one core

    code-width   K = 16, 20, 24, 32 bits per token: a tokenizer and a generator for each
    objective    what the transcoder predicts: flip, x0, bce
    condition    with and without classes
    order        masked against autoregressive
    tokens       binary against categorical: one tokenizer of 14 bits; a transcoder, or a softmax over all 2^14 codes

Data: CIFAR-10 at the preset's image size (64 px), from cifar10-train.parquet and cifar10-test.parquet in --root. `tiny`
has 64 tokens and 16 blocks of width 192; `mini` has 16 tokens and 8 blocks of width 128.

All variants of an ablation share the images, the number of steps, the batch size and the recipe: Muon, no dropout,
class-conditional unless that is what differs, and no alignment with another network. Each is measured by logistic
regression on every block, by 20-NN, and by an attentive probe on the best block. Fréchet distances compare features of
generated and of test images. The features come from the default network of `bench generation`, which no variant was
trained with: EfficientNet-Lite0 if it is installed. The record names it.

The full budget trains each generator on 20 000 images for 10 epochs in batches of 64 (3 125 steps), trains probes on
10 000 images and tests them on 5 000, and generates 1 000 images. Tokenizers that have to be trained see as many images
as a generator: those of code-width and tokens, and with `mini` the one of 32 bits that the other ablations share; with
`tiny` these use the bundled tokenizer. The small budget trains on 640 images for 3 epochs, with probes on 400 and 40
generated images: it shows only that everything runs.

Writes benchmarks/results/ablation-NAME.json for the full budget (ablation-mini-NAME.json with `mini`), and
OUT/ablation-NAME.json for any other, after every variant, and draws all recorded ablations next to them, in
ablations.png (ablations-mini.png). Repeat the command to resume an interrupted run; models that
are in OUT and variants that are in the record are not trained again.

Expected, from the paper's larger models and full training: flip beats x0 and bce (probe 64.3, 62.0, 63.3; FID 3.17,
4.39, 5.84); the probe reaches 68.3 without classes against 67.5 with them; masked beats autoregressive (probe 64.3
against 45.2; FID 3.17 against 7.50).

Time: about 50 minutes per generator on 2 cores with the full budget, so all ablations run overnight. Not yet measured
on a GPU. CPUs without bfloat16 arithmetic emulate it at a sixth of the speed: use --precision float32 there.
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
from bigr_repr.evaluate.reports.plots import COLORS, pyplot, save_figure
from bigr_repr.evaluate.representations.base import Reading
from bigr_repr.evaluate.representations.open import judge, open_representation
from bigr_repr.evaluate.runs.attention import bench_attentive
from bigr_repr.evaluate.runs.bench import bench, best_row
from bigr_repr.evaluate.runs.cache import default_cache
from bigr_repr.evaluate.runs.extraction import BenchSettings

_BUNDLED = "bigr-tiny"
_OWN = {"tiny": _BUNDLED, "mini": "d32"}  # by preset: the tokenizer of ablations that do not compare tokenizers
_BATCH = 64  # images per generator step
_DRAWN = 100  # images generated at a time


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The training and measuring budget of every variant.

    limit: training images of the probes, which are tested on half as many. images: generated images.
    steps: training steps of a generator; 0: as many as the epochs take.
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
    """One model of an ablation.

    tokenizer: a size trained for the comparison ("d16": K = 16); None: the preset's default tokenizer.
    objective: what the transcoder predicts. attention: which tokens a token attends to. output_head: what predicts the
    bits of a token.
    """

    name: str
    tokenizer: str | None = None
    objective: str = "flip"
    conditional: bool = True
    attention: str = "full"
    output_head: str = "bernoulli"

    def folder(self, tokenizer: str) -> str:
        """The generator's folder name. Equal variants of different ablations share one model."""
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
    """The variant's model folder. Trains what is missing."""
    images, steps = _images(budget, options), budget.steps
    place = [] if options.gpu else ["--cpu"]
    common = ["--precision", options.precision, "--schedule", "cosine", "--sample-every", "0", *place]
    size = variant.tokenizer or _OWN[options.preset]
    tokenizer, codes = _tokenizer(size, images, steps, options, common), options.out / f"codes-{size}"
    if not (codes / "codes.json").exists():
        _command("codes", images, "--tokenizer", tokenizer, "--out", codes, "--precision", options.precision)
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
    """The bundled tokenizer, or the folder of one of this size, trained if missing."""
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
    """A Parquet file with a stratified sample of the training images."""
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
        raise SystemExit(f"ablations.py: bigr-repr train {kind} failed; repeat the command to resume")


def distance(model: Path, data: BenchData, count: int, variant: Variant, device: str | None) -> float:
    """Fréchet distance between `count` generated images, which cycle through the classes, and as many test images."""
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
    """One row of the table. Cached in the run's folder, so that it is measured only once."""
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
            "judge": judge(), "steps": budget.steps, "precision": options.precision,
            "blocks": {row.view.layer: {"top1": _top1(row.probe), "knn20": _top1(row.knn)} for row in rows},
            "rows": [best.record(), attentive.record()],
        }  # fmt: skip
        kept.write_text(json.dumps(line))
    found: dict[str, Any] = json.loads(kept.read_text())
    return {"variant": variant.name, **found}


def recorded(file: Path, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The lines of an earlier record with the same facts, by variant."""
    if not file.exists():
        return {}
    record = json.loads(file.read_text())
    if any(record.get(name) != value for name, value in facts.items()):
        return {}
    return {line["variant"]: line for line in record["lines"]}


def draw(folder: Path, prefix: str, facts: dict[str, Any]) -> None:
    """Plot all records with the same facts: accuracies, with the probe's 95 % interval, and Fréchet distances."""
    found = {name: recorded(folder / f"ablation-{prefix}{name}.json", facts) for name in ABLATIONS}
    rows = [(name, line) for name, lines in found.items() for line in lines.values()]
    places, names, last = list[float](), list[str](), ""
    for name, line in rows:
        places.append(places[-1] + (1.0 if name == last else 1.7) if places else 0.0)
        names.append(f"{name}: {line['variant']}" if name != last else line["variant"])
        last = name
    figure, panes = pyplot().subplots(
        1, 2, figsize=(9.5, 1.4 + 0.3 * max(places)), sharey=True, width_ratios=(3, 2), constrained_layout=True
    )
    tops = [line["top1"] for _, line in rows]
    ends = np.array([line["interval"] for _, line in rows]).T
    panes[0].errorbar(tops, places, xerr=np.abs(ends - tops), fmt="o", color=COLORS[0], label="probe, 95 %")
    for key, name, mark, color in (
        ("attentive", "attentive probe", "D", COLORS[1]),
        ("knn20", "20-NN", "s", COLORS[2]),
    ):
        panes[0].plot([line[key] for _, line in rows], places, mark, color=color, label=name, alpha=0.8)
    panes[1].barh(places, [line["frechet"] for _, line in rows], height=0.6, color=COLORS[0])
    panes[0].set(yticks=places, yticklabels=names, xlabel="accuracy on CIFAR-10, percent")
    panes[0].invert_yaxis()
    panes[0].grid(axis="x", alpha=0.3)
    panes[0].legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2 if len(rows) < 6 else 1.12), ncols=3)
    panes[1].set(xlabel=f"Fréchet distance, {facts['judge']}")
    for pane in panes:
        pane.spines[["top", "right"]].set_visible(False)
    save_figure(figure, folder / f"ablations{'-mini' if prefix else ''}.png")


def _top1(found: Any) -> float:
    """Top-1 accuracy of a probe or of 20-NN."""
    return round(found.top1 if isinstance(found.top1, float) else found.top1[20], 2)


def _budget(options: Any) -> Budget:
    """The named budget, with any numbers given on the command line in place of its own."""
    usual = BUDGETS[options.budget]
    given = {each.name: getattr(options, each.name) for each in dataclasses.fields(Budget)}
    return Budget(**{**dataclasses.asdict(usual), "steps": 0, **{k: v for k, v in given.items() if v is not None}})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablations", nargs="+", choices=[*ABLATIONS, "all"], metavar="ABLATION")
    parser.add_argument("--root", default="data", help="folder of cifar10-train.parquet and cifar10-test.parquet")
    parser.add_argument("--preset", choices=_OWN, default="tiny", help="architecture of every variant")
    parser.add_argument("--budget", choices=BUDGETS, default="full", help="budget of every variant")
    parser.add_argument("--train-images", type=int, help="training images, instead of the budget's")
    parser.add_argument("--epochs", type=int, help="passes over the training images, instead of the budget's")
    parser.add_argument("--steps", type=int, help="training steps of a generator, instead of epochs")
    parser.add_argument("--limit", type=int, help="training images of the probes (tested on half as many)")
    parser.add_argument("--images", type=int, help="generated images for the Fréchet distance")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for cached features")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16", help="of the training")
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
    folder = record.RESULTS if budget == Budget() else options.out
    facts = {"judge": judge(), "preset": options.preset, "budget": dataclasses.asdict(budget)}
    for name in ABLATIONS if "all" in options.ablations else options.ablations:
        lines = recorded(folder / f"ablation-{prefix}{name}.json", facts)
        for each in ABLATIONS[name]:
            if each.name not in lines:
                lines[each.name] = measure(each, train(each, budget, options), data, budget, options)
                record.write(f"ablation-{prefix}{name}", facts | {"lines": list(lines.values())}, folder=folder)
        for line in lines.values():
            shares = [f"{line[key]:.1f}" for key in ("top1", "attentive", "knn20")]
            cells = [name, line["variant"], str(line["layer"]), *shares, f"{line['frechet']:.2f}"]
            table.append(f"| {' | '.join(cells)} |")
    draw(folder, prefix, facts)
    print("\n".join(table))


if __name__ == "__main__":
    main()
