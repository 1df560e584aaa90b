"""How well a tokenizer reconstructs images it was not trained on, and whether it uses all of its bits.

    python benchmarks/reconstruction.py data/tinyimagenet-val.parquet --model bigr-tiny

Data: any images that bigr_repr.datasets.open_images reads, cropped to the model's size as everywhere in the package.

PSNR is computed in RGB in [0, 1], with reconstructions clamped but not rounded, and reported in two ways: the mean over
images, and the PSNR of the mean squared error over all images, which is never higher. A bit is dead if it has the same
value in at least 99.9 % of cases: over all tokens of all images for the K bits of a token, and over all images for the
N x K bits of a code.

Writes benchmarks/results/reconstruction.json, and reconstruction.png, which shows the photographs of examples/images
above their reconstructions. Expected for bigr-tiny on Tiny-ImageNet's validation images: 21 dB or more, and no dead bit
of a token. About three minutes on 2 cores.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from PIL import Image

import bigr_repr as br
from bigr_repr.codes import grid_to_tokens
from bigr_repr.datasets import ImageSet, open_images
from bigr_repr.images.decode import center_crop, load_image
from bigr_repr.images.find import find_images
from bigr_repr.system.threads import map_ahead

BATCH = 32
DEAD = 0.999
EXAMPLES = Path(__file__).parent.parent / "examples" / "images"


def entropy(p: np.ndarray) -> np.ndarray:
    """Binary entropy of probabilities, in bits. p: any shape."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def psnr(mse: Any) -> Any:
    """PSNR in dB from the mean squared error of values in [0, 1]."""
    return -10 * np.log10(np.maximum(mse, 1e-10))


@torch.no_grad()
def reconstruct(pre: br.Pretrained, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 (B, S, S, 3) -> reconstructions in [0, 1], bits (B, N, K) bool and P(bit = 1) (B, N, K)."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(pre.device).float() / 255
    probabilities = pre.tokenizer.bit_probabilities(images)
    bits = probabilities > 0.5
    decoded = pre.tokenizer.decode(bits.float()).clamp(0, 1).permute(0, 2, 3, 1)
    bits, probabilities = grid_to_tokens(bits), grid_to_tokens(probabilities)
    return decoded.cpu().numpy(), bits.cpu().numpy(), probabilities.cpu().numpy()


def measure(pre: br.Pretrained, images: ImageSet, count: int) -> dict[str, Any]:
    """PSNR and bit usage over the first `count` images."""
    tokens, bits = pre.config.generator.tokens, pre.config.generator.code_bits
    ones, certainty, mse = np.zeros((tokens, bits)), 0.0, []
    stream = map_ahead(lambda row: center_crop(images.load(row), pre.config.image_size), range(count), ahead=4 * BATCH)
    while batch := list(islice(stream, BATCH)):
        pixels = np.stack(batch)
        decoded, codes, probabilities = reconstruct(pre, pixels)
        mse.append(np.square(decoded - pixels / 255.0).mean(axis=(1, 2, 3)))
        ones += codes.sum(axis=0)
        certainty += float(np.abs(2 * probabilities - 1).mean(axis=(1, 2)).sum())
    errors = np.concatenate(mse)
    place, token = ones / count, ones.mean(axis=0) / count
    return {
        "images": count,
        "psnr_mean_of_images_db": round(float(psnr(errors).mean()), 3),
        "psnr_of_mean_mse_db": round(float(psnr(errors.mean())), 3),
        "code_bits": int(place.size),
        "dead_bits_of_token": int((np.maximum(token, 1 - token) >= DEAD).sum()),
        "dead_bits_of_code": int((np.maximum(place, 1 - place) >= DEAD).sum()),
        "entropy_of_token_bits": _spread(entropy(token)),
        "entropy_of_code_bits": _spread(entropy(place)),
        "bit_certainty": round(certainty / count, 4),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": round(float(values.mean()), 4), "min": round(float(values.min()), 4)}


def draw(pre: br.Pretrained, folder: Path, path: Path) -> None:
    """Save a sheet of photographs above their reconstructions, each at least 96 pixels wide."""
    side = pre.config.image_size
    originals = np.stack([load_image(source.file, side) for source in find_images(folder)])
    decoded = np.rint(255 * reconstruct(pre, originals)[0]).astype(np.uint8)
    rows = [np.concatenate(list(row), axis=1) for row in (originals, decoded)]
    sheet = Image.fromarray(np.concatenate(rows))
    scale = max(1, -(-96 // side))
    sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+", help="images: a folder, Parquet files, torchvision:NAME:ROOT")
    parser.add_argument("--model", default="bigr-tiny")
    parser.add_argument("--limit", type=int, help="use the first images only")
    parser.add_argument("--record", default="reconstruction", help="name of the record in results/")
    parser.add_argument("--pictures", type=Path, default=EXAMPLES, help="folder of photographs to show")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    pre = record.load(options.model, device=options.device)
    images = open_images(options.source, train=False)
    count = min(options.limit or len(images), len(images))
    results = {"source": [Path(source).name for source in options.source], "limit": options.limit}
    record.write(options.record, results | measure(pre, images, count), pre)
    draw(pre, options.pictures, record.RESULTS / f"{options.record}.png")


if __name__ == "__main__":
    main()
