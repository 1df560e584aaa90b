"""Store an image as 512 bytes, and see what is preserved

The tokenizer of `bigr-tiny-aligned` encodes an image of 64 x 64 pixels into 64 tokens of 64 bits, and decodes them
again.
"""

import argparse

import torch
from torchvision.utils import save_image

import bigr_repr as br
from bigr_repr.codes import from_bytes, tokens_to_grid

parser = argparse.ArgumentParser(description="Encode a folder of images into bits, and decode them into one sheet.")
parser.add_argument("images", nargs="?", default="examples/images")
parser.add_argument("--out", default="decoded.png")
given = parser.parse_args()

model = br.load("bigr-tiny-aligned")
tokens, width = model.config.tokenizer.grid**2, model.config.tokenizer.code_bits
codes = br.encode_codes(given.images, model=model)  # uint8 (n, 512)
bits = from_bytes(codes, tokens * width).reshape(len(codes), tokens, width)
with torch.inference_mode():
    images = model.tokenizer.decode(torch.from_numpy(tokens_to_grid(bits)).float()).clamp(0, 1)  # (n, 3, 64, 64)
save_image(images, given.out)
print(f"{len(codes)} images of {codes.shape[1]} bytes each, decoded: {given.out}")
