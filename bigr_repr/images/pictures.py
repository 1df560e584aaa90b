"""Pictures and masks in any form: files, PIL images, arrays, tensors. Knows nothing of models."""

# B batch, H W pixels

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bigr_repr._typing import PathLike
from bigr_repr.images.decode import MAX_PIXELS, ROUNDING, as_rgb, decode_image, load_stored, unread
from bigr_repr.images.formats import image_errors

ImageLike: TypeAlias = PathLike | Image.Image | NDArray[Any] | Tensor
MaskLike: TypeAlias = PathLike | Image.Image | NDArray[Any] | Tensor

LIGHT = 128  # of 255: pixels of a mask image at least this light and opaque are marked


def to_picture(image: ImageLike) -> Image.Image:
    """One picture as an upright RGB image.

    image: a file, a PIL image, an array as for `as_rgb`, or a tensor as for `to_batch`.
    Raises ImageError for a file that is not an image, ValueError for a wrong shape, dtype or range, TypeError for
    anything else.
    """
    if isinstance(image, str | os.PathLike):
        return decode_image(image)
    if isinstance(image, Tensor):
        batch = to_batch(image)
        if len(batch) != 1:
            raise ValueError(f"image holds {len(batch)} pictures; give one at a time")
        return Image.fromarray((batch[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy())
    if isinstance(image, Image.Image | np.ndarray):
        return as_rgb(image)
    raise TypeError(_neither("image", image))


def to_batch(image: ImageLike) -> Tensor:
    """One image or a batch as float32 (B, 3, H, W) in [0, 1].

    image: tensor (3, H, W) or (B, 3, H, W), uint8 or floats in [0, 1]; or one file, PIL image or array (H, W, 3).
    Raises as `to_picture`.
    """
    if not isinstance(image, Tensor):
        return torch.from_numpy(np.array(to_picture(image))).permute(2, 0, 1)[None].float() / 255
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (3, H, W) or (B, 3, H, W)")
    if batch.dtype == torch.uint8:
        return batch.float() / 255
    if not batch.is_floating_point():
        raise ValueError(f"image has dtype {batch.dtype}; expected uint8 or floats in [0, 1]")
    low, high = float(batch.amin()), float(batch.amax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # written so that NaN fails
        raise ValueError(f"image has values {low:.7g}..{high:.7g}; expected 0..1, or uint8; rescale or clamp it")
    return batch.float().clamp(0, 1)


def to_marks(mask: MaskLike) -> NDArray[np.bool_]:
    """The marks of a mask: bool, of its shape; (H, W) for an image.

    Arrays and tensors: bool or integers, marked where nonzero, or floats, marked from 0.5.  Files and PIL images:
    marked where light and opaque, both from 128. Transparent pixels are unmarked, whatever color they hide, so white
    strokes on a transparent layer mark only the strokes.

    Raises ImageError for a file that is not an image, TypeError for anything else.
    """
    if isinstance(mask, str | os.PathLike):
        return marks_in_file(mask)
    if isinstance(mask, Image.Image):
        return _marks_in_memory(mask)
    values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if values.dtype.kind not in "biuf":
        raise TypeError(_neither("mask", mask))
    marked: NDArray[np.bool_] = values >= 0.5 if values.dtype.kind == "f" else values != 0
    return marked


def marks_in_file(path: PathLike, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """`to_marks` for a file, with a limit on its pixels."""
    image = decode_image(path, max_pixels=max_pixels)
    name = os.fspath(path)
    with Path(path).open("rb") as file, image_errors(name):
        return _marks(image, opacity(load_stored(file, name, max_pixels)))


def _marks_in_memory(image: Image.Image) -> NDArray[np.bool_]:
    """`to_marks` for a PIL image: colors and opacity of one reading of its file, if it has not been read yet."""
    with image_errors("PIL image"):
        if content := unread(image):
            image = load_stored(io.BytesIO(content), "PIL image", image.width * image.height)
        return _marks(as_rgb(image), opacity(image))


def opacity(image: Image.Image) -> NDArray[np.uint8] | None:
    """The opacity of a picture's pixels, upright: (H, W), 255 is opaque; None if it has no transparency."""
    if not image.has_transparency_data:
        return None
    return np.asarray(as_rgb(image.convert("RGBA").getchannel("A")).getchannel(0))


def _marks(image: Image.Image, opaque: NDArray[np.uint8] | None) -> NDArray[np.bool_]:
    marked: NDArray[np.bool_] = np.asarray(image.convert("L")) >= LIGHT
    return marked if opaque is None else marked & (opaque >= LIGHT)


def _neither(name: str, value: object) -> str:
    return f"{name} is a {type(value).__name__}; give a file's path, a PIL image, an array or a tensor"
