"""Features of a folder of images, and the nearest neighbor of each

`extract_features` accepts paths, folders, PIL images, arrays or a tensor, and returns one float32 vector per image.
"""

import argparse
from pathlib import Path

import numpy as np

import bigr_repr as br
from bigr_repr.images import find_images

parser = argparse.ArgumentParser(description="Print the nearest neighbor of each image, by the cosine of its features.")
parser.add_argument("images", nargs="?", default="examples/images")
parser.add_argument("--layer", type=int, default=12, help="block, counted from 0")
given = parser.parse_args()

paths = [source.file for source in find_images([given.images])]
features = br.extract_features(paths, layer=given.layer)  # float32 (n, D)

centered = features - features.mean(axis=0)
centered /= np.linalg.norm(centered, axis=1, keepdims=True)
cosine = centered @ centered.T
np.fill_diagonal(cosine, -1)
for path, row in zip(paths, cosine, strict=True):
    print(f"{Path(path).name}: {Path(paths[int(row.argmax())]).name} ({row.max():.2f})")
