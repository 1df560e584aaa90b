"""How smooth the way between two classes is: distances of neighbors against the distance of the ends.

    python benchmarks/interpolation.py --model bigr-tiny --count 12

Ways of --frames images between classes spread over all of the model's, each with a seed of its own, drawn smoothly
(the default) and each image by itself. Distances are Euclidean, of pixels and of the pooled states of the middle block,
which see what is in an image rather than where. Mean: 1 / (frames - 1) is the least that is possible, a straight line;
images that have nothing to do with each other are at about 1. Largest: one jump where it is near 1.

Writes benchmarks/results/interpolation[_NAME].json. Expected for bigr-tiny: the mean a third of what it is for images
drawn by themselves. About 10 minutes on 2 cores for 12 ways.
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
    """Pooled states of the middle block: (B, D)."""
    middle = pre.config.generator.layers // 2
    return pre.generator.hidden_states(encode(pre, images), layers=[middle])[middle].mean(dim=1)


def distances(values: Tensor) -> tuple[float, float]:
    """The mean and the largest distance of neighbors, of that of the ends: values (B, ...)."""
    flat = values.flatten(1).float()
    ends = float((flat[0] - flat[-1]).norm())
    steps = (flat[1:] - flat[:-1]).norm(dim=1) / ends
    return float(steps.mean()), float(steps.max())


def measured(pre: br.Pretrained, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Means over all ways, of every row."""
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
    parser.add_argument("--count", type=int, default=12, help="ways")
    parser.add_argument("--frames", type=int, default=9, help="images of a way, with its ends")
    parser.add_argument("--diffusion-steps", type=int, help="default: the model's")
    parser.add_argument("--name", default="", help="of the record, beside others: interpolation_NAME.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    pre = record.load(options.model, device=options.device)
    facts = {"ways": options.count, "frames": options.frames, "diffusion_steps": options.diffusion_steps}
    name = "interpolation" + ("_" + options.name if options.name else "")
    record.write(name, facts | {"rows": measured(pre, options)}, pre)


if __name__ == "__main__":
    main()
