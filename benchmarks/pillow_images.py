"""Pillow's own test images, read by bigr-repr and by independent decoders: which files are read, and to what pixels.

    pip download --no-deps --no-binary :all: pillow && tar xf pillow-*.tar.gz
    python benchmarks/pillow_images.py pillow-*/Tests/images            # a minute

Decoders: unmodified Pillow, OpenCV, tifffile with imagecodecs, and torchvision. Color profiles are ignored here,
because OpenCV and tifffile ignore them. Every file in a format that bigr-repr reads has one outcome:

    same          a decoder other than Pillow gives the same pixels, to 2 levels
    as Pillow     Pillow gives the same pixels, and no other decoder opens the file, or they disagree
    differs       some decoder opens it, and none gives the same pixels
    refused       bigr-repr refuses it, and some decoder opens it
    alone         only bigr-repr opens it
    no decoder    nothing opens it

Writes benchmarks/results/pillow_images.json, which lists all files but the "same" ones with each decoder's result.
Expected: every refusal of a file that another decoder opens states a fitting reason, and pixels equal those of the
other decoders.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from record import write

from bigr_repr.images.decode import decode_image
from bigr_repr.images.find import IMAGE_SUFFIXES
from bigr_repr.images.formats import ImageError

Pixels = np.ndarray[Any, np.dtype[Any]]


def by_pillow(data: bytes) -> Pixels:
    """Pixels by Pillow: EXIF orientation applied, RGB over white."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        image: Image.Image = opened
        if image.mode.startswith("I") or image.mode == "F":
            return scaled(np.asarray(image))
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
        return np.asarray(image.convert("RGB"))


def by_opencv(data: bytes) -> Pixels:
    """OpenCV's raw samples over white; for 8-bit RGB, its own decoding with EXIF orientation."""
    import cv2

    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None:
        raise ValueError("not read")
    if found.ndim == 3:
        found = found[..., [2, 1, 0, 3][: found.shape[2]]]
    upright = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if found.ndim == 3 and found.shape[2] == 3 and found.dtype == np.uint8 and upright is not None:
        found = upright[..., ::-1]
    return scaled(found)


def by_tifffile(data: bytes) -> Pixels:
    """The first full page of a TIFF file."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = next((page for page in tiff.pages if not getattr(page, "subfiletype", 0) & 1), tiff.pages[0])
        found = page.asarray()
        if page.planarconfig == 2 and found.ndim == 3:
            found = np.moveaxis(found, 0, -1)
        photometric = getattr(page, "photometric", 1)
        if photometric == 3:
            found = np.take(page.colormap, found, axis=1)
            found = np.moveaxis(found, 0, -1)
        elif found.dtype == bool:
            found = found.astype(np.uint8) * 255
        elif photometric == 5 and found.ndim == 3:
            found = found.astype(float) / np.iinfo(found.dtype).max
            found = np.rint(255 * (1 - found[..., :3]) * (1 - found[..., 3:4])).astype(np.uint8)
        elif found.dtype == np.uint8 and page.bitspersample < 8:
            found = found * (255 // (2**page.bitspersample - 1))
        found = scaled(found)
        return 255 - found if photometric == 0 else found


def by_torchvision(data: bytes) -> Pixels:
    """torchvision.io: JPEG, PNG, GIF and WebP."""
    import torch
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_image as decode

    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    found = decode(raw, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    return scaled((found[0] if found.ndim == 4 else found).movedim(0, -1).numpy())


def scaled(found: Pixels) -> Pixels:
    """Samples (H, W) or (H, W, 1..4) as 8-bit RGB over white, by the rules of decode_image."""
    if found.ndim == 2:
        found = found[..., None]
    if found.dtype.kind == "f" or found.dtype.itemsize > 2 or found.dtype == np.int16:
        values = np.nan_to_num(found.astype(float), nan=0, posinf=0, neginf=0)
        low, high = float(values.min()), float(values.max())
        full = next((full for full in (1.0, 255.0, 65535.0) if low >= 0 and high <= full), None)
        low, full = (0.0, full) if full is not None else (low, high - low or 1)
        found = np.rint((values - low) * 255 / full)
    elif found.dtype == np.uint16:
        found = found / 257 if found.shape[2] < 3 else found >> 8
    found = np.rint(found.astype(float))
    if found.shape[2] in (2, 4):
        opacity = found[..., -1:] / 255
        found = np.rint(found[..., :-1] * opacity + 255 * (1 - opacity))
    return np.repeat(found, 3, axis=2) if found.shape[2] == 1 else found[..., :3]


DECODERS: dict[str, Callable[[bytes], Pixels]] = {
    "Pillow": by_pillow, "OpenCV": by_opencv, "tifffile": by_tifffile, "torchvision": by_torchvision,
}  # fmt: skip


_pools: dict[str, ProcessPoolExecutor] = {}


def apart(name: str, data: bytes) -> Pixels:
    """A decoder's pixels, from a separate process, as some decoders crash. Raises what the decoder raises."""
    if name not in _pools:
        _pools[name] = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _be_quiet)
    try:
        return _pools[name].submit(_decoded, name, data).result(timeout=120)
    except BrokenProcessPool:
        del _pools[name]
        raise


def _decoded(name: str, data: bytes) -> Pixels:
    try:
        return DECODERS[name](data)
    except Exception as error:  # not every exception can be pickled
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}"[:80]) from None


def _be_quiet() -> None:
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def judge(data: bytes) -> tuple[str, dict[str, str]]:
    """The outcome, and each decoder's result for the file: its largest difference from ours, or its error."""
    try:
        ours: Pixels | None = np.asarray(decode_image(data, icc="ignore")).astype(int)
        said = {"bigr-repr": f"{ours.shape[1]} x {ours.shape[0]}"}
    except ImageError as error:
        ours, said = None, {"bigr-repr": f"{error.kind}: {error.message[:160]}"}
    opened, equal = [], []
    for name in DECODERS:
        if name == "tifffile" and data[:2] not in (b"II", b"MM"):
            continue
        try:
            found = apart(name, data)
        except Exception as error:  # decoders raise errors of many types
            said[name] = f"{type(error).__name__}: {error}"[:80]
            continue
        opened.append(name)
        if ours is None or found.shape != ours.shape:
            said[name] = f"{found.shape[1]} x {found.shape[0]}"
            continue
        gap = np.abs(found.astype(int) - ours)
        said[name] = f"largest difference {gap.max()}, mean {gap.mean():.2f}"
        if gap.max() <= 2:
            equal.append(name)
    if ours is None:
        return ("refused" if opened else "no decoder"), said
    if not opened:
        return "alone", said
    return ("same" if {*equal} - {"Pillow"} else "as Pillow" if equal else "differs"), said


def main() -> None:
    """Count outcomes and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Tests/images in Pillow's source")
    parser.add_argument("--only", help="only files whose name contains this; prints results and writes no record")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    listed: dict[str, dict[str, dict[str, str]]] = {}
    others: Counter[str] = Counter()
    for file in sorted(options.folder.rglob("*")):
        name = str(file.relative_to(options.folder))
        if not file.is_file() or (options.only and options.only not in name):
            continue
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            others[file.suffix.lower() or "none"] += 1
            continue
        outcome, said = judge(file.read_bytes())
        counts[outcome] += 1
        if options.only or outcome != "same":
            listed.setdefault(outcome, {})[name] = said
    if options.only:
        for outcome, files in listed.items():
            for name, said in files.items():
                print(outcome, name, *(f"\n   {key}: {value}" for key, value in said.items()))
        return
    results = {"files": counts.total(), "counts": dict(counts), "of other formats": others.total(), "listed": listed}
    write("pillow_images", results)


if __name__ == "__main__":
    main()
