"""Reads pictures in any form as pixels of one size. Knows nothing of models."""

# H W pixels, S side in pixels

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bigr_repr._typing import PathLike
from bigr_repr.images.decode import as_rgb, center_crop, load_image
from bigr_repr.images.find import find_images
from bigr_repr.images.formats import ImageError
from bigr_repr.system.threads import map_ahead

Picture = PathLike | Image.Image | NDArray[np.generic] | Tensor
Pictures = Picture | Iterable[Picture]


def singles(images: Pictures) -> Iterator[Picture]:
    """Every single picture, in order: a folder's files, a sequence's items, the rows of 4-D arrays and tensors."""
    if isinstance(images, str | os.PathLike):
        for source in find_images(images):
            yield source.file
    elif isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        yield from images
    elif isinstance(images, np.ndarray | Tensor | Image.Image | bytes) or not isinstance(images, Iterable):
        yield images
    else:
        for image in images:
            yield from singles(image)


def read(picture: Picture, side: int, number: int, *, icc: str = "convert") -> NDArray[np.uint8]:
    """A file, PIL image, array (H, W, 3) or tensor (3, H, W) resized and cropped to (S, S, 3), uint8.

    icc: as in decode_image. Errors name the file, or "image <number>".
    Raises ImageError; ValueError or TypeError for anything that is not a picture.
    """
    if isinstance(picture, str | os.PathLike):
        return load_image(picture, side, icc=icc)
    try:
        return center_crop(as_rgb(_channels_last(picture) if isinstance(picture, Tensor) else picture, icc=icc), side)
    except ImageError as error:
        raise ImageError(error.kind, f"image {number}: {error}") from error
    except (ValueError, TypeError) as error:
        raise type(error)(f"image {number}: {error}") from error


def _channels_last(tensor: Tensor) -> NDArray[np.generic]:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ValueError(f"tensor of shape {tuple(tensor.shape)} is not (3, H, W) or (1, H, W)")
    if tensor.dtype == torch.bfloat16:  # NumPy has no such dtype
        tensor = tensor.float()
    return tensor.detach().cpu().movedim(0, -1).numpy()


def read_all(
    images: Pictures, side: int, *, workers: int | None, ahead: int, icc: str = "convert"
) -> Generator[NDArray[np.uint8], None, None]:
    """read() of every single picture, in order, in threads.  Closing the generator stops them."""
    numbered = enumerate(singles(images))
    return map_ahead(lambda item: read(item[1], side, item[0], icc=icc), numbered, workers=workers, ahead=ahead)


def stack(pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Pictures (S, S, 3) of uint8 as one tensor (B, 3, S, S), channels last in memory."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
