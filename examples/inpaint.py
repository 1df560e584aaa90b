"""Repaint part of a photograph, at its own resolution

The photograph may have any size: the model sees a window of it, and pixels outside the mask do not change.
"""

import argparse

import numpy as np
from PIL import Image

import bigr_repr as br
from bigr_repr.sampling import FAST

parser = argparse.ArgumentParser(description="Inpaint the middle of a photograph.")
parser.add_argument("photo", nargs="?", default="examples/images/raccoon.jpg")
parser.add_argument("--label", help="class to paint, by name or number; default: whatever fits the surroundings")
parser.add_argument("--steps", type=int, default=FAST.steps)
parser.add_argument("--out", default="inpainted.png")
given = parser.parse_args()

model = br.load("bigr-tiny-aligned")
photo = Image.open(given.photo).convert("RGB")
mask = np.zeros((photo.height, photo.width), dtype=bool)
mask[photo.height // 3 : photo.height * 2 // 3, photo.width // 3 : photo.width * 2 // 3] = True

(picture,) = br.inpaint_photo(
    model,
    photo,
    mask,
    None if given.label is None else [given.label],
    pasting=br.Pasting(blend="feather"),
    steps=given.steps,
    order=FAST.order,
    diffusion_steps=FAST.diffusion_steps,
    seed=3,
)
picture.save(given.out)
print(f"{given.out}: {picture.width} x {picture.height}")
