"""What other heads and measures find in the same features: the table beside the linear probe and 20-NN.

    python benchmarks/heads.py --root data --out runs/heads              # about an hour on 2 cores; resumes
    python benchmarks/heads.py --root data --out trial --images 200      # a quick trial, minutes
    python benchmarks/heads.py --root data --out runs/heads --only few-shot clusters

    linear       logistic regression, which the others are compared with
    attentive    a head that attends to all tokens, 8 queries
    few-shot     logistic regression on 1, 5 and 10 labeled images of each class, mean of 5 draws
    clusters     k-means of the test images against their classes, and RankMe
    augmented    MAE's linear probe on random crops, 5 epochs of 1 000 images in batches of 32
    finetune     the whole network with a linear head, 5 epochs of 1 000 images
    multi-label  which of 6 colors and 4 shapes a synthetic scene shows: mean average precision
    segment      the shape at every pixel of a synthetic scene: mean intersection over union

Data: cifar10-train.parquet and cifar10-test.parquet in --root, 3 000 training and 1 500 test images; and scenes that
the package draws, 1 000 and 500, which are new to every model. Block of the bundled models: 12, the commands' default.

Models: pixels, an untrained network, both bundled models and their bits, and EfficientNet-Lite0 if it is installed.
Null where a representation has no tokens or no network to train. Writes OUT/heads-IMAGES.json after each measurement,
from which an interrupted run resumes, and benchmarks/results/heads.json if all models have the same measures and those
already recorded. Expected: the features of the bundled models are ahead of pixels, bits and the untrained network in
every column.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import record
from PIL import Image

from bigr_repr.captions.scenes import SHAPES, Scene, draw, make_scene
from bigr_repr.evaluate import (
    BenchData,
    BenchSettings,
    FineTuning,
    bench,
    bench_attentive,
    bench_augmented,
    bench_clusters,
    bench_few_shot,
    bench_finetune,
    bench_multi_label,
    bench_segment,
    open_data,
)
from bigr_repr.evaluate.probes.attentive import AttentiveProbe
from bigr_repr.system.files import replacing

MODELS = {
    "pixels": "pixels",
    "untrained": "random:bigr-tiny",
    "bits of bigr-tiny": "tokenizer-bits:bigr-tiny",
    "bits of bigr-tiny-aligned": "tokenizer-bits:bigr-tiny-aligned",
    "bigr-tiny": "bigr-tiny",
    "bigr-tiny-aligned": "bigr-tiny-aligned",
    "EfficientNet-Lite0 (ImageNet)": "efficientnet-lite0",
}
TRAINABLE = ("bigr-tiny", "bigr-tiny-aligned", "efficientnet-lite0")
TOKENS = ("attentive", "segment")  # measures of tokens
_BLOCK = 12
_EPOCHS = 5
_BATCH = 32  # of the augmented probe: with MAE's 16 384, 1 000 images would make one step per epoch
Measure = Callable[[str, tuple[int, ...]], dict[str, Any]]


class Measures:
    """The measures by name: each takes a representation and its blocks, and returns figures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._settings = BenchSettings(cache=options.cache, device=options.device)
        self._mae = BenchSettings(cache=options.cache, device=options.device, protocol="mae", batch=_BATCH)
        self._images, self._options = options.images, options
        self._scenes = draw_scenes(options.out / f"scenes-{options.images}", options.images)
        self.by_name: dict[str, Measure] = {
            "linear": self._linear, "attentive": self._attentive, "few-shot": self._few_shot,
            "clusters": self._clusters, "augmented": self._augmented, "finetune": self._finetune,
            "multi-label": self._multi_label, "segment": self._segment,
        }  # fmt: skip

    def _cifar(self, limit: int) -> BenchData:
        return open_data("cifar10", root=self._options.root, limit=limit, test_limit=max(20, limit // 2))

    def _linear(self, model: str, layers: tuple[int, ...]) -> dict[str, Any]:
        (row,) = bench(model, self._cifar(self._images), self._settings, layers=layers)
        return _of_probe(row)

    def _attentive(self, model: str, layers: tuple[int, ...]) -> dict[str, Any]:
        probe = AttentiveProbe(queries=8)
        (row,) = bench_attentive(model, self._cifar(self._images), self._settings, probe=probe, layers=layers)
        return _of_probe(row)

    def _few_shot(self, model: str, layers: tuple[int, ...]) -> dict[str, Any]:
        rows = bench_few_shot(model, self._cifar(self._images), self._settings, layers=layers)
        return {f"{row.shots} per class": {"top1": row.top1, "interval": row.interval} for row in rows}

    def _clusters(self, model: str, layers: tuple[int, ...]) -> dict[str, Any]:
        (row,) = bench_clusters(model, self._cifar(self._images), self._settings, layers=layers)
        return {name: getattr(row.found, name) for name in ("accuracy", "nmi", "ari", "rank_me")}

    def _augmented(self, model: str, layers: tuple[int, ...]) -> dict[str, Any]:
        data = self._cifar(self._images // 3)
        (row,) = bench_augmented(model, data, self._mae, epochs=_EPOCHS, layers=layers)
        return _of_probe(row)

    def _finetune(self, model: str, layers: tuple[int, ...]) -> dict[str, Any]:
        layer = layers[0] if layers else None
        data, tuning = self._cifar(self._images // 3), FineTuning(epochs=_EPOCHS)
        return _of_probe(bench_finetune(model, data, self._settings, tuning=tuning, layer=layer))

    def _multi_label(self, model: str, layers: tuple[int, ...]) -> dict[str, Any]:
        sides = [self._scenes / side for side in ("train", "test")]
        images, labels = ([str(side / name) for side in sides] for name in ("images", "labels.txt"))
        (row,) = bench_multi_label(model, (images[0], images[1]), (labels[0], labels[1]), self._settings, layers=layers)
        return {"map": row.probe.map, "interval": row.probe.interval}

    def _segment(self, model: str, layers: tuple[int, ...]) -> dict[str, Any]:
        (row,) = bench_segment(model, self._scenes, self._settings, layers=layers, side=64)
        return {"miou": row.probe.miou, "interval": row.probe.interval}


def _of_probe(row: Any) -> dict[str, Any]:
    return {"top1": row.probe.top1, "interval": row.probe.interval}


def draw_scenes(folder: Path, images: int) -> Path:
    """Scenes of 64 x 64 pixels with masks and labels, as `bench segment` and `bench multi-label` read them."""
    for seed, (side, count) in enumerate((("train", images // 3), ("test", images // 6))):
        for name in ("images", "masks"):
            (folder / side / name).mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(count):
            scene = make_scene(seed, number)
            draw(scene, 64).save(folder / side / "images" / f"{number:05d}.png")
            mask_of(scene).save(folder / side / "masks" / f"{number:05d}.png")
            lines.append(",".join(sorted({word for thing in scene.things for word in (thing.color, thing.shape)})))
        (folder / side / "labels.txt").write_text("\n".join(lines) + "\n")
    (folder / "classes.txt").write_text("\n".join(("background", *SHAPES)) + "\n")
    return folder


def mask_of(scene: Scene) -> Image.Image:
    """The class of each pixel: 0 for the background, 1 and up for the shapes; the majority color decides an edge."""
    mask = np.zeros((64, 64), np.uint8)
    for thing in scene.things:
        alone = np.asarray(draw(Scene(kind="single", things=(thing,)), 64)).astype(int)
        blank = np.asarray(draw(Scene(kind="single", things=()), 64)).astype(int)
        full = np.abs(alone - blank).sum(axis=2)
        mask[full > full.max() / 2] = 1 + SHAPES.index(thing.shape)
    return Image.fromarray(mask)


def blocks_of(measure: str, model: str) -> tuple[int, ...]:
    """The block that is measured; none: the representation as a whole."""
    if model.removeprefix("random:").startswith("bigr-"):
        return (_BLOCK,)
    return (-1,) if measure in TOKENS else ()


def applies(measure: str, model: str) -> bool:
    """Whether a representation has what a measure needs: a network to train, or tokens."""
    if measure == "finetune":
        return model in TRAINABLE
    return measure not in TOKENS or not model.startswith(("pixels", "tokenizer-bits:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of CIFAR-10's Parquet files")
    parser.add_argument("--out", type=Path, required=True, help="folder for finished measurements, scenes and features")
    parser.add_argument("--images", type=int, default=3000, help="training images; half as many test images")
    parser.add_argument("--only", nargs="*", default=[], help="names of measures")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="rows of the table")
    parser.add_argument("--device", help="default: a GPU if there is one")
    options = parser.parse_args()
    options.cache = options.out / "cache"
    state = options.out / f"heads-{options.images}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = json.loads(state.read_text()) if state.exists() else {}
    measures = Measures(options)
    for measure, run in measures.by_name.items():
        for name in options.models:
            model, done = MODELS[name], rows.setdefault(name, {})
            if measure in done or (options.only and measure not in options.only):
                continue
            done[measure] = run(model, blocks_of(measure, model)) if applies(measure, model) else None
            print(f"{measure}: {name}: {done[measure]}", flush=True)
            with replacing(state) as file:
                file.write(json.dumps(rows, indent=1).encode())
    if options.images == parser.get_default("images") and adds_to_record(rows):
        record.write("heads", {"images": options.images, "block": _BLOCK, "rows": rows})


def adds_to_record(rows: dict[str, dict[str, Any]]) -> bool:
    """Whether all models have the same measures, and those that are recorded already are among them."""
    known = record.RESULTS / "heads.json"
    before = json.loads(known.read_text(encoding="utf-8"))["rows"] if known.exists() else {}
    each = [set(rows.get(name, {})) for name in MODELS]
    return all(measured == each[0] for measured in each) and all(set(row) <= each[0] for row in before.values())


if __name__ == "__main__":
    main()
