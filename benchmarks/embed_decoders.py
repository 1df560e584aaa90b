"""The decoding stage of embed_scale.py: threads, processes, and torchvision.io in place of Pillow."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def decoders(options: argparse.Namespace, images: Path) -> dict[str, Any]:
    """Compare threads with processes, and torchvision.io with Pillow, on the data and on photographs."""
    photographs = Path(__file__).parent.parent / "examples" / "images"
    few = sorted(images.rglob("*.jpg"))[: min(4000, options.limit)]
    found = {}
    for name, files, side in (("data", few, 64), ("photographs", sorted(photographs.glob("*.jpg")) * 30, 256)):
        listed = [str(file) for file in files]
        times: dict[str, list[float]] = {"threads": [], "processes": [], "torchvision": []}
        for _ in range(options.repeats):
            times["threads"].append(seconds_to_decode(listed, side, None))
            times["processes"].append(seconds_to_decode(listed, side, 120))
            times["torchvision"].append(_seconds_of(lambda file, side=side: by_torchvision(file, side), listed))
        speeds = {f"{key}_per_s": round(len(listed) / statistics.median(value), 1) for key, value in times.items()}
        found[name] = {"side": side, **speeds, "torchvision_differs_by": _difference(listed[:100], side)}
    return found


def by_torchvision(file: str, side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """load_image with torchvision's JPEG decoder."""
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    from bigr_repr.images.decode import center_crop

    pixels = decode_jpeg(read_file(file), ImageReadMode.RGB, apply_exif_orientation=True)
    return center_crop(Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())), side)


def _seconds_of(load: Callable[[str], object], files: list[str]) -> float:
    from bigr_repr.system.threads import map_ahead

    load(files[0])  # imports
    started = time.perf_counter()
    for _ in map_ahead(load, files, ahead=64):
        pass
    return time.perf_counter() - started


def _difference(files: list[str], side: int) -> int:
    """The largest difference between pixel values."""
    from bigr_repr.images.decode import load_image

    pairs = ((load_image(file, side), by_torchvision(file, side)) for file in files)
    return max(int(np.abs(ours.astype(int) - theirs).max()) for ours, theirs in pairs)


def seconds_to_decode(files: list[str], side: int, timeout: float | None) -> float:
    """Seconds to decode all files as the engine does; timeout=None: in threads. Starting processes is not counted."""
    from bigr_repr.embed.engines.decoding import Decoding
    from bigr_repr.images.isolated import GuardedLoading
    from bigr_repr.system.threads import map_ahead

    load = Decoding(timeout=timeout).loader(side, sha256=False, icc="convert")
    stream = map_ahead(lambda file: load(file, file).pixels, [*files[:64], *files], ahead=64)
    try:
        for _ in range(64):
            next(stream)
        started = time.perf_counter()
        for _ in stream:
            pass
        return time.perf_counter() - started
    finally:
        stream.close()
        if isinstance(load, GuardedLoading):
            load.close()
