"""How smooth interpolation between two classes is: distances of neighboring images relative to that of the ends.

    python benchmarks/interpolation.py --model bigr-tiny --count 12

Each of --count paths has --frames images between two classes and its own seed; the classes are spread over all of the
model's. Each path is drawn smoothly (the default) and with every image sampled independently. Distances are Euclidean,
between pixels and between pooled hidden states of the middle block, which respond to what is in an image rather than
where. All are divided by the distance of the ends. The smallest possible mean is 1 / (frames - 1), a straight line;
unrelated images are at about 1. A largest distance near 1 means a single jump.

Writes benchmarks/results/interpolation[_NAME].json. Expected for bigr-tiny: the mean is a third of that of
independently sampled images. About 10 minutes on 2 cores for 12 paths.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import record
import torch
from torch import Tensor

import bigr_repr as br
from bigr_repr.sampling.canvas import encode

ROWS = {"smooth": True, "each by itself": False}


@torch.inference_mode()
def states(pre: br.Pretrained, images: Tensor) -> Tensor:
    """Mean-pooled hidden states of the middle block: (B, D)."""
    middle = pre.config.generator.layers // 2
    return pre.generator.hidden_states(encode(pre, images), layers=[middle])[middle].mean(dim=1)


def distances(values: Tensor) -> tuple[float, float]:
    """Mean and largest distance of neighbors, relative to the distance of the ends. values: (B, ...)."""
    flat = values.flatten(1).float()
    ends = float((flat[0] - flat[-1]).norm())
    steps = (flat[1:] - flat[:-1]).norm(dim=1) / ends
    return float(steps.mean()), float(steps.max())


def measured(pre: br.Pretrained, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Means over all paths, for every row."""
    classes, found = pre.config.generator.classes, defaultdict[str, list[list[float]]](list)
    for way in range(options.count):
        ends = [way * classes // options.count, (way * classes // options.count + classes // 2) % classes]
        for row, smooth in ROWS.items():
            images = br.interpolate(
                pre, ends, frames=options.frames, smooth=smooth, seed=way, diffusion_steps=options.diffusion_steps
            )
            found[row].append([*distances(images), *distances(states(pre, images))])
    names = ("pixels_mean", "pixels_largest", "states_mean", "states_largest")
    return {
        row: dict(zip(names, np.mean(numbers, axis=0).round(3).tolist(), strict=True)) for row, numbers in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bigr-tiny")
    parser.add_argument("--count", type=int, default=12, help="number of paths")
    parser.add_argument("--frames", type=int, default=9, help="images per path, including its ends")
    parser.add_argument("--diffusion-steps", type=int, help="steps of the diffusion chain; default: the model's")
    parser.add_argument("--name", default="", help="suffix of the record: interpolation_NAME.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    pre = record.load(options.model, device=options.device)
    facts = {"ways": options.count, "frames": options.frames, "diffusion_steps": options.diffusion_steps}
    name = "interpolation" + ("_" + options.name if options.name else "")
    record.write(name, facts | {"rows": measured(pre, options)}, pre)


if __name__ == "__main__":
    main()
