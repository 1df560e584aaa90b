"""Paints into photographs of any size, window by window on the model's canvas. Knows nothing of written files.

A square window of the photograph is cropped, resized to the canvas, painted, resized back and pasted into the
photograph at its own resolution. Areas larger than one window are painted in several, each seeing what the earlier
ones painted. Input: photographs as for `to_picture`; output: PIL images of mode RGB.
"""

# H W pixels of the photograph, V versions, S side of the canvas in pixels, N tokens, g tokens per side

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
from PIL import Image

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import MAX_PIXELS
from bigr_repr.images.pictures import ImageLike, MaskLike, to_marks, to_picture
from bigr_repr.painting.blend import PixelArray
from bigr_repr.painting.call import Call, PhotoOptions
from bigr_repr.painting.windows import (
    Margins,
    Mask,
    check_margins,
    grow,
    most_windows_around,
    usual_side,
    window_side,
)
from bigr_repr.sampling.applications import PAINTING, block_rounds
from bigr_repr.sampling.job import Labels, at_least_one, something_named
from bigr_repr.sampling.settings import SamplingSettings


def inpaint_photo(
    pre: Pretrained,
    photo: ImageLike,
    mask: MaskLike,
    labels: Labels | None = None,
    **options: Unpack[PhotoOptions],
) -> list[Image.Image]:
    """A photograph of any size with the marked part repainted; one image per version.

    photo: a file, PIL image, array (H, W, 3) or tensor (3, H, W).  mask: of the photograph's size; an array or tensor
    (H, W), or an image that is white where to paint; see `to_marks`.  labels: what to paint; None: whatever fits the
    context.

    Raises ValueError for a mask that is empty or has a different size, and as `inpaint` does.
    """
    call, pixels = Call(pre, PAINTING, options), np.array(to_picture(photo))
    marked = _checked(mask, pixels)
    call.usual_window(usual_side(marked, pre.config.image_size))
    return call.paint(pixels, marked, labels)


def edit_photo(
    pre: Pretrained, photo: ImageLike, mask: MaskLike, labels: Labels | None = None, **options: Unpack[PhotoOptions]
) -> list[Image.Image]:
    """A photograph with the marked part replaced by the given class or prompt: see `inpaint_photo`."""
    return inpaint_photo(pre, photo, mask, something_named(labels, options), **options)


def outpaint_photo(
    pre: Pretrained,
    photo: ImageLike,
    margins: Margins | Sequence[int],
    labels: Labels | None = None,
    **options: Unpack[PhotoOptions],
) -> list[Image.Image]:
    """A photograph extended beyond its edges, at its own scale, in as many windows as necessary.

    margins: (left, top, right, bottom) in pixels; see `margins_to_aspect`.  pasting: its window may be as large as the
    result's shorter side; by default it is the photograph's shorter side or, for photographs smaller than the model's
    canvas, that of the canvas, so that the photograph is seen whole.  Others as for `inpaint_photo`.

    Raises ValueError for margins that are negative or leave nothing to paint, and as `inpaint` does.
    """
    return outpaint_within(pre, photo, margins, labels, MAX_PIXELS, options)


def outpaint_within(
    pre: Pretrained,
    photo: ImageLike,
    margins: Margins | Sequence[int],
    labels: Labels | None,
    max_pixels: int,
    options: PhotoOptions,
) -> list[Image.Image]:
    """`outpaint_photo` up to a number of pixels. Raises ValueError for a larger result."""
    call, pixels, wanted = Call(pre, PAINTING, options), np.array(to_picture(photo)), Margins(*margins)
    height, width = (pixels.shape[0] + wanted.top + wanted.bottom, pixels.shape[1] + wanted.left + wanted.right)
    if height * width > max_pixels:
        raise ValueError(
            f"the result would have {width}x{height} pixels, more than max_pixels={max_pixels:,}; choose smaller "
            "margins, or allow more pixels"
        )
    check_margins(wanted)
    call.usual_window(max(min(pixels.shape[:2]), min(pre.config.image_size, height, width)))
    side = window_side(width, height, call.pasting.window)
    call.check_windows(most_windows_around(pixels.shape[1], pixels.shape[0], wanted, side))
    pixels, mask = grow(pixels, wanted)
    return call.paint(pixels, mask, labels)


def enrich_photo(
    pre: Pretrained,
    photo: ImageLike,
    labels: Labels | None = None,
    *,
    mask: MaskLike | None = None,
    scale: int = 2,
    **options: Unpack[PhotoOptions],
) -> list[Image.Image]:
    """A photograph with new detail: one token of every 2x2 block is redrawn at a time, as `enrich` does.

    mask: the part to enrich; None: all of it.  scale: as in `enrich`.  pasting: its default window has the side of the
    model's canvas, so that detail is drawn at the photograph's own scale; the result follows the photograph itself, so
    its fit is always none.  Others as for `inpaint_photo`.

    Raises ValueError for a pasting with `follow`, and as `inpaint_photo` and `enrich` do.
    """
    call, pixels = Call(pre, SamplingSettings(), options), np.array(to_picture(photo))
    call.unfitted()
    marked = np.ones(pixels.shape[:2], np.bool_) if mask is None else _checked(mask, pixels)
    call.usual_window(min(pre.config.image_size, *pixels.shape[:2]))
    return call.paint(pixels, marked, labels, rounds=block_rounds, detail=at_least_one("scale", scale))


def _checked(mask: MaskLike, photo: PixelArray) -> Mask:
    """The mask as bool. Raises ValueError unless it has the photograph's size and marks something."""
    marked = to_marks(mask)
    if marked.shape != photo.shape[:2]:
        found = f"is {marked.shape[1]}x{marked.shape[0]} pixels" if marked.ndim == 2 else f"has shape {marked.shape}"
        raise ValueError(f"mask {found}, the photograph {photo.shape[1]}x{photo.shape[0]}; they must agree")
    if not marked.any():
        raise ValueError("mask is empty: there is nothing to paint; mark the area to replace with white (1)")
    return marked
