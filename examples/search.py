"""Search images by their bits

`HammingIndex` accepts any packed codes, including those of other models. A flat index is exact.
"""

import argparse
from pathlib import Path

import bigr_repr as br
from bigr_repr.images import find_images

parser = argparse.ArgumentParser(description="Index a folder by the tokenizer's bits, and search it with one image.")
parser.add_argument("images", nargs="?", default="examples/images")
parser.add_argument("--query", default="examples/images/grass.jpg")
parser.add_argument("--out", default="example-index")
given = parser.parse_args()

model = br.load("bigr-tiny-aligned")
paths = [source.file for source in find_images([given.images])]
codes = br.encode_codes(paths, model=model)  # uint8 (n, 512)
br.HammingIndex.build(codes, ids=paths).save(given.out)

index = br.HammingIndex.load(given.out)  # memory-mapped
ids, distances = index.search(br.encode_codes([given.query], model=model), k=4)
for name, bits in zip(ids[0], distances[0], strict=True):
    print(f"{bits:4} bits  {Path(str(name)).name}")
