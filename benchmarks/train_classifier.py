"""Trains a small timm network from scratch to name the classes of the bundled models' training images.

    python benchmarks/train_classifier.py tinyimagenet-train-*.parquet cifar10-train.parquet --out classifier.pth

`bigr-repr train codes --align timm:resnet10t:2 --align-weights classifier.pth` then stores its features, and the
generator learns to predict them. So bigr-tiny learns what separates the classes, from no images or labels but its own.

The network sees the images small first, then larger: `--stages 32:4 64:1` is four epochs at 32 pixels, then one at 64.
Each view is a random part of the image, at least 60 % of each side, mirrored at random, brightness and contrast changed
a little. Stochastic gradient descent with Nesterov's momentum; the learning rate falls to zero along a cosine. One
image in fifty is held out, and only measures accuracy.

Writes OUT, a timm state dictionary, and beside it a .json: accuracy on the held-out images, views, hours, machine.
After every epoch OUT.partial; repeat the command to resume. Takes 35 minutes of one core beside other work, and 2 GB of
memory.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from bigr_repr.datasets import ImageSet, open_images, stratified_split
from bigr_repr.system.threads import map_ahead

SIDE = 64
HELD_OUT = 0.02
LEAST = 0.6  # smallest side of a view, as a share of the image's
WARM = 0.05  # share of the training over which the learning rate rises


def parse_stage(text: str) -> tuple[int, int]:
    side, _, epochs = text.partition(":")
    if not (side.isdecimal() and epochs.isdecimal() and int(side) >= 32 and int(epochs) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not SIDE:EPOCHS; give for example 64:1, a side of at least 32")
    return int(side), int(epochs)


def read_pixels(images: ImageSet) -> Tensor:
    """All images as squares: uint8 (n, 3, SIDE, SIDE)."""
    pixels = torch.empty(len(images), 3, SIDE, SIDE, dtype=torch.uint8)
    squares = map_ahead(lambda index: images.load_square(index, SIDE), range(len(images)), ahead=256)
    for index, square in enumerate(squares):
        pixels[index] = torch.from_numpy(square).permute(2, 0, 1)
    return pixels


def views_of(pixels: Tensor, side: int, random: torch.Generator) -> Tensor:
    """A random view of each image: uint8 (B, 3, SIDE, SIDE) -> float32 (B, 3, side, side) in 0..1."""
    images = F.interpolate(pixels.float() / 255, size=(side, side), mode="bilinear", antialias=True)
    draw = torch.rand(6, len(images), generator=random)
    size = LEAST + (1 - LEAST) * draw[:2]
    shift = (2 * draw[2:4] - 1) * (1 - size)
    mirror = torch.where(draw[4] < 0.5, -1.0, 1.0)
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = size[0] * mirror, size[1], shift.T
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    parts = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    contrast, brightness = (1 + 0.4 * (torch.rand(2, len(images), 1, 1, 1, generator=random) - 0.5)).unbind()
    mean = parts.mean((1, 2, 3), keepdim=True)
    return ((parts - mean) * contrast + mean * brightness).clamp(0, 1)


class Classifier:
    """A timm network, its optimizer, and the scaling of its input."""

    def __init__(self, name: str, rate: float) -> None:
        self.network: Any = timm.create_model(name, pretrained=False).to(memory_format=torch.channels_last)
        config = self.network.pretrained_cfg
        self._mean, self._std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.rate = rate
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, s, s) in 0..1 -> logits (B, classes of the timm model), float32."""
        scaled = ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(scaled).float()

    def learn(self, images: Tensor, labels: Tensor, share_done: float) -> float:
        """One step. Returns the loss."""
        cosine = 0.5 * (1 + math.cos(math.pi * share_done))
        self.optimizer.param_groups[0]["lr"] = self.rate * cosine * min(1.0, share_done / WARM)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self(images), labels, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def accuracy(classifier: Classifier, pixels: Tensor, labels: Tensor, side: int) -> float:
    """Share of images whose class is named right, of whole images at a side, in percent."""
    classifier.network.eval()
    right = 0
    for images, wanted in zip(pixels.split(256), labels.split(256), strict=True):
        small = F.interpolate(images.float() / 255, size=(side, side), mode="bilinear", antialias=True)
        right += int((classifier(small).argmax(1) == wanted).sum())
    classifier.network.train()
    return 100 * right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="image sets with labels, as `bigr-repr train` takes them")
    parser.add_argument("--out", type=Path, required=True, help="file of the weights")
    parser.add_argument("--network", default="resnet10t", help="a timm network of convolutions")
    parser.add_argument("--stages", nargs="+", type=parse_stage, default=[(32, 4), (48, 2), (64, 1)])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    options = parser.parse_args()

    source = open_images(options.data)
    if source.labels is None:
        raise SystemExit(f"{options.data} has no labels; give labelled images")
    pixels, labels = read_pixels(source), torch.from_numpy(source.labels)
    kept, held = (torch.from_numpy(r) for r in stratified_split(source.labels, HELD_OUT, np.random.default_rng(0)))

    torch.manual_seed(0)
    classifier = Classifier(options.network, options.learning_rate)
    partial = options.out.with_name(options.out.name + ".partial")
    done, seconds = 0, 0.0
    if partial.exists():
        saved = torch.load(partial, weights_only=True)
        classifier.load(saved)
        done, seconds = saved["epochs"], saved["seconds"]
    sides = [side for side, epochs in options.stages for _ in range(epochs)]
    total = sum(side**2 for side in sides)
    for epoch in range(done, len(sides)):
        side, since = sides[epoch], time.monotonic()
        random = torch.Generator().manual_seed(epoch)
        order = kept[torch.randperm(len(kept), generator=random)].split(options.batch_size)
        losses = []
        for step, rows in enumerate(order):
            # the rate follows the pixels seen, so that it is still high when the images get larger
            share = (sum(s**2 for s in sides[:epoch]) + side**2 * step / len(order)) / total
            losses.append(classifier.learn(views_of(pixels[rows], side, random), labels[rows], share))
        seconds += time.monotonic() - since
        found = accuracy(classifier, pixels[held], labels[held], side)
        speed = len(kept) / (time.monotonic() - since)
        print(
            f"epoch {epoch + 1}/{len(sides)} at {side} px: loss {np.mean(losses):.3f}, {speed:.0f} images/s, "
            f"held-out accuracy {found:.1f} %", flush=True,
        )  # fmt: skip
        torch.save(classifier.state() | {"epochs": epoch + 1, "seconds": seconds}, partial)
    torch.save(classifier.network.state_dict(), options.out)
    result = {
        "network": options.network, "stages": options.stages, "views": len(sides) * len(kept),
        "held_out_images": len(held), "held_out_accuracy": accuracy(classifier, pixels[held], labels[held], sides[-1]),
        "hours": round(seconds / 3600, 2),
    }  # fmt: skip
    record.write(options.out.stem, result, folder=options.out.parent)
    partial.unlink()


if __name__ == "__main__":
    main()
