"""Embed a folder into Parquet files, and read them back

Every input gets a row, or a line in `failures.jsonl`. Running this script again embeds nothing, because the data set is
complete.
"""

import argparse

import bigr_repr as br

parser = argparse.ArgumentParser(description="Embed images, and show what the data set contains.")
parser.add_argument("images", nargs="?", default="examples/images")
parser.add_argument("--out", default="example-embeddings")
given = parser.parse_args()

summary = br.embed_images(given.images, given.out, layers=(4, 12), codes=True)
print(f"{summary.inputs} images: {summary.rows} rows, {summary.failures} failures")

data = br.read_embeddings(given.out, layer=12)
print(f"vectors {data.vectors.shape} {data.vectors.dtype}, first row {data.paths[0]}")
if data.codes is not None:
    print(f"codes {data.codes.shape} {data.codes.dtype}")
