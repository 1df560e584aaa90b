"""How well the model inpaints a box in a photograph, compared with methods that need no model.

    python benchmarks/inpainting.py tinyimagenet-val.parquet --model bigr-tiny --count 100 --best-of 4 --average 4
    python benchmarks/inpainting.py examples/images --boxes 3 --side 256 --share 0.25 --name photographs
    python benchmarks/inpainting.py tinyimagenet-val.parquet --model my-model --labels --set order=halton guidance=1.5

Data: any images that bigr_repr.datasets.open_images reads, cropped to --side (default: the model's image size). Each
image gets a square box whose side is --share of the image's, or --boxes of them, one at a time. Positions differ
between images but are the same in every run.

Rows of the table:
mean color (of the ring of pixels around the box); Telea (OpenCV); the tokenizer's reconstruction of the whole
photograph, the best that any sampler could reach with it (only at the model's size); the model as it is normally used;
the model "fitted to nothing", as in the paper; the best of several samples; and the mean of several, which nobody would
keep because it is blurred.

Columns, all measured over the box:
PSNR in dB, from the mean squared error over all images; color shift, the distance between the mean colors of box and
original, in levels of 0..255; border step, the mean difference between neighboring pixels across the border, in levels;
SSIM (gaussian window, sigma 1.5; 1 is best), which shows whether the structure is right; and a perceptual distance
(perceptual.py; 0 is best), which penalizes blur.

Repeat the command to resume: measurements are kept in --cache, and only missing ones are made. --sheet also writes the
first pictures. Writes benchmarks/results/inpainting[_NAME].json.

Expected for bigr-tiny: PSNR slightly above Telea's and a smaller perceptual distance than every method without a model;
worse than mean color and Telea when fitted to nothing. About 20 minutes on 2 cores for 100 images and all rows, 5
without --best-of and --average.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import record
import torch
from perceptual import Perceptual
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter

import bigr_repr as br
from bigr_repr.datasets import ImageSet, open_images
from bigr_repr.images.decode import center_crop
from bigr_repr.sampling.canvas import decode, encode

Pixels = np.ndarray  # uint8 (S, S, 3)
Painter = Callable[[Pixels, np.ndarray, int | None], Pixels]  # photograph, mask (S, S) and class -> whole picture
SHOWN = 8  # the sheet shows the first 8 pictures
RING = 4  # width in pixels of the ring that the mean color is taken from


def box_of(image: int, side: int, share: float = 0.5) -> np.ndarray:
    """The mask of image number `image`, bool (S, S). It never touches the edge. share: box side / image side."""
    length = round(share * side)
    left, top = np.random.default_rng(image).integers(side // 16, side - length - side // 16 + 1, 2)
    mask = np.zeros((side, side), bool)
    mask[top : top + length, left : left + length] = True
    return mask


def mean_color(photo: Pixels, mask: np.ndarray, label: int | None) -> Pixels:
    """Fill the box with the mean color of the ring around it."""
    ring = binary_dilation(mask, iterations=RING) & ~mask
    return np.where(mask[..., None], np.rint(photo[ring].mean(axis=0)), photo).astype(np.uint8)


def telea(photo: Pixels, mask: np.ndarray, label: int | None) -> Pixels:
    """Telea's method. Source: Telea, An image inpainting technique based on the fast marching method, 2004."""
    return np.asarray(cv2.inpaint(photo, mask.astype(np.uint8), 3, cv2.INPAINT_TELEA))


@torch.inference_mode()
def decoded(pre: br.Pretrained, photo: Pixels, mask: np.ndarray, label: int | None) -> Pixels:
    """Fill the box from the tokenizer's reconstruction of the whole photograph."""
    canvas = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    pixels = (decode(pre, encode(pre, canvas))[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.where(mask[..., None], pixels, photo)


def step(photo: Pixels, mask: np.ndarray) -> float:
    """Mean difference between neighboring pixels on the two sides of the box's border."""
    values = photo.astype(float)
    across = [np.abs(np.diff(values, axis=axis)).mean(axis=2)[np.diff(mask, axis=axis)] for axis in (0, 1)]
    return float(np.concatenate(across).mean())


def structure(first: Pixels, second: Pixels, mask: np.ndarray) -> float:
    """SSIM over the box. Source: Wang et al., Image quality assessment, 2004."""

    def blurred(values: np.ndarray) -> np.ndarray:
        return np.asarray(gaussian_filter(values, (1.5, 1.5, 0)))

    a, b = first.astype(float), second.astype(float)
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    shared, c1, c2 = blurred(a * b) - mean_a * mean_b, (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * shared + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(ssim[mask].mean())


def measured(photo: Pixels, painted: Pixels, mask: np.ndarray, perceptual: Perceptual) -> dict[str, float]:
    """One image's measurements."""
    error = (painted[mask].astype(float) - photo[mask]) / 255
    return {
        "mse": float(np.square(error).mean()),
        "color_shift": float(np.linalg.norm(255 * error.mean(axis=0))),
        "border_step": step(painted, mask),
        "own_step": step(photo, mask),
        "ssim": structure(photo, painted, mask),
        "perceptual": perceptual(photo, painted, mask),
    }


class Kept:
    """Measurements of one table row by image, in a JSON Lines file that runs append to."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.file = folder / f"inpainting-{key}.jsonl"
        lines = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        self.rows = {int(row["image"]): row for row in map(json.loads, lines) if "image" in row}

    def add(self, image: int, numbers: dict[str, float]) -> None:
        """Store the measurements of an image."""
        self.rows[image] = {"image": image, **numbers}
        with self.file.open("a") as file:
            file.write(json.dumps(self.rows[image]) + "\n")


def drawn(pre: br.Pretrained, options: argparse.Namespace, versions: int = 1, **fitting: Any) -> Painter:
    """A painter that uses the model. versions: how many samples are averaged."""
    changes, pasting = dict(options.set), br.Pasting(blend=options.blend, **dict(options.paste) | fitting)

    def paint(photo: Pixels, mask: np.ndarray, label: int | None) -> Pixels:
        painted = br.inpaint_photo(pre, Image.fromarray(photo), mask, label, pasting=pasting, count=versions, **changes)
        return np.rint(np.mean([np.asarray(each) for each in painted], axis=0)).astype(np.uint8)

    return paint


def painters(pre: br.Pretrained, options: argparse.Namespace) -> dict[str, tuple[Kept, Painter]]:
    """For each row of the table, where its measurements are kept and the function that paints."""
    side, name = options.side or pre.config.image_size, pre.config.name
    facts = {"source": [Path(each).name for each in options.source], "side": side, "share": options.share}
    facts |= {"boxes": options.boxes, "columns": 6}
    model = facts | {"model": pre.fingerprint}
    how = model | {"blend": options.blend, "labels": options.labels, "changes": dict(options.set)}
    how |= {"paste": dict(options.paste), "version": br.__version__}
    rows: dict[str, tuple[dict[str, Any], Painter]] = {"mean color": (facts, mean_color), "Telea": (facts, telea)}
    if side == pre.config.image_size:
        rows["tokenizer"] = (model, partial(decoded, pre))
    rows[name] = (how, drawn(pre, options))
    rows[f"{name}, fitted to nothing"] = (how, drawn(pre, options, fit="none"))
    if options.best_of > 1:
        rows[f"{name}, best of {options.best_of}"] = (how, drawn(pre, options, best_of=options.best_of))
    if options.average > 1:
        rows[f"{name}, mean of {options.average}"] = (how, drawn(pre, options, options.average))
    return {row: (Kept(options.cache, facts | {"row": row}), paint) for row, (facts, paint) in rows.items()}


def table(pre: br.Pretrained, images: ImageSet, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The summary of every row."""
    side, rows, found = options.side or pre.config.image_size, painters(pre, options), defaultdict(list)
    perceptual, sheet = Perceptual(), []
    for number in range(min(options.count, options.boxes * len(images))):
        image = number // options.boxes
        photo = np.asarray(center_crop(images.load(image), side))
        mask = box_of(number, side, options.share)
        label = int(images.labels[image]) if options.labels and images.labels is not None else None
        strip = [photo, np.where(mask[..., None], np.uint8(128), photo)]
        for row, (kept, paint) in rows.items():
            shown = options.sheet is not None and number < SHOWN
            if number not in kept.rows or shown:
                painted = paint(photo, mask, label)
                kept.add(number, measured(photo, painted, mask, perceptual))
                strip.append(painted)
            found[row].append(kept.rows[number])
        sheet += [np.hstack(strip)] if number < SHOWN else []
    if options.sheet is not None:
        Image.fromarray(np.vstack(sheet)).save(options.sheet)
    return {row: summary(numbers) for row, numbers in found.items()}


def summary(numbers: list[dict[str, float]]) -> dict[str, float]:
    """Means over the images, and PSNR from the mean squared error."""
    mean = {name: float(np.mean([each[name] for each in numbers])) for name in numbers[0] if name != "image"}
    return {
        "psnr_db": round(-10 * float(np.log10(mean["mse"])), 2),
        "color_shift": round(mean["color_shift"], 1),
        "border_step": round(mean["border_step"], 1),
        "border_step_of_the_photographs": round(mean["own_step"], 1),
        "ssim": round(mean["ssim"], 3),
        "perceptual": round(mean["perceptual"], 3),
    }


def change(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE into a keyword argument."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+", help="images: a folder, Parquet files, torchvision:NAME:ROOT")
    parser.add_argument("--model", default="bigr-tiny")
    parser.add_argument("--count", type=int, default=100, help="number of boxes")
    parser.add_argument("--boxes", type=int, default=1, help="boxes per image, one at a time")
    parser.add_argument("--side", type=int, help="side of the cropped images; default: the model's image size")
    parser.add_argument("--share", type=float, default=0.5, help="side of a box as a fraction of the image's")
    parser.add_argument("--best-of", type=int, default=1, help="also measure the best of this many samples")
    parser.add_argument("--average", type=int, default=1, help="also measure the mean of this many samples")
    parser.add_argument("--paste", nargs="*", type=change, default=[], metavar="NAME=VALUE", help="fields of Pasting")
    parser.add_argument("--sheet", type=Path, help="PNG of the first 8: photograph, box, and each row's result")
    parser.add_argument("--labels", action="store_true", help="tell the model each image's class")
    parser.add_argument("--blend", default="none", choices=["none", "feather", "poisson"])
    parser.add_argument("--set", nargs="*", type=change, default=[], metavar="NAME=VALUE", help="sampling settings")
    parser.add_argument("--name", default="", help="suffix of the record: inpainting_NAME.json")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    pre = record.load(options.model, device=options.device)
    rows = table(pre, open_images(options.source, train=False), options)
    facts = {"source": [Path(each).name for each in options.source], "images": options.count, "blend": options.blend}
    facts |= {"labels": options.labels, "settings": dict(options.set), "pasting": dict(options.paste)}
    facts |= {"side": options.side or pre.config.image_size, "boxes": options.boxes, "share": options.share}
    record.write("inpainting" + ("_" + options.name if options.name else ""), facts | {"rows": rows}, pre)


if __name__ == "__main__":
    main()
