"""Painting into photographs of any size: windows onto the model's canvas, and back. Knows nothing of files written.

A square window of the photograph is cropped, resized to the canvas as every picture is, painted, resized to the
window and put into the photograph at its own resolution. What one window does not hold is painted in several, each
seeing what the earlier ones painted. Photographs in: RGB or anything `as_rgb` takes; out: PIL images of mode RGB.
"""

# H W pixels of the photograph, V versions, S side of the canvas in pixels, N tokens, g tokens per side

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import MAX_PIXELS, as_rgb, center_crop
from bigr_repr.painting.blend import PixelArray, check_blend, paste
from bigr_repr.painting.windows import Margins, Mask, Window, grow, tokens_of, window_side, windows
from bigr_repr.sampling.applications import PAINTING, block_rounds
from bigr_repr.sampling.canvas import decode, lower_detail, partly
from bigr_repr.sampling.job import Job, Labels, Options, Rounds, at_least_one, class_numbers, in_turn
from bigr_repr.sampling.sampler import Callback, Iteration
from bigr_repr.sampling.settings import SamplingSettings

Photo = Image.Image | PixelArray


@dataclass(frozen=True, kw_only=True)
class Pasting:
    """How paintings are put into the photograph.

    window  side in pixels of the squares that the model sees, at most the photograph's shorter side, and that for None.
            Smaller ones paint finer, and know less of what is around.
    blend   "none": marked pixels are replaced, all others stay bit for bit. "feather": the painting fades out over
            `band` pixels outside the mask. "poisson": its gradients are fitted to what is around; needs OpenCV.
    band    None: half a token.
    Raises ValueError when made with a value that is not allowed, ImportError for "poisson" without OpenCV.
    """

    window: int | None = None
    blend: str = "none"
    band: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            at_least_one("window", self.window)
        check_blend(self.blend, self.band)


def _given(pasting: Pasting | None) -> Pasting:
    """`pasting`, or the usual one. Raises TypeError for anything else."""
    if not isinstance(pasting, Pasting | None):
        raise TypeError(f"pasting={pasting!r} is not a Pasting; make one: Pasting(blend='feather')")
    return pasting or Pasting()


class Painted(NamedTuple):
    """How far a call is: `done` of `total` iterations of batches, over all windows.

    picture: gives the first version as it stands, tokens that are still masked in gray, as long as the callback has not
    returned; None while it is the others' turn.  settings, pasting: as they are used, with nothing left open.
    """

    done: int
    total: int
    picture: Callable[[], Image.Image] | None
    settings: SamplingSettings
    pasting: Pasting


def inpaint_photo(
    pre: Pretrained,
    photo: Photo,
    mask: Mask,
    labels: Labels | None = None,
    *,
    count: int | None = None,
    pasting: Pasting | None = None,
    on_step: Callable[[Painted], object] | None = None,
    **options: Unpack[Options],
) -> list[Image.Image]:
    """A photograph of any size with the marked part painted anew; one image per version.

    mask: (H, W) of the photograph: bool or whole numbers, where anything but 0 is marked, or floats, from 0.5.
    labels: what to paint; None leaves it to the context.  count: versions, the labels taken in turn; None: one per
    label.

    Raises ValueError for a mask of another size or an empty one, and as `inpaint` does.
    """
    job, pixels = Job(pre, PAINTING, options), np.array(as_rgb(photo))
    return _Painting(job, pixels, _checked(mask, pixels), labels, count, _given(pasting), on_step).run()


def edit_photo(
    pre: Pretrained,
    photo: Photo,
    mask: Mask,
    labels: Labels,
    *,
    count: int | None = None,
    pasting: Pasting | None = None,
    on_step: Callable[[Painted], object] | None = None,
    **options: Unpack[Options],
) -> list[Image.Image]:
    """A photograph with the marked part replaced by something of the given class: `inpaint_photo` with labels."""
    classes = class_numbers(pre, labels)
    return inpaint_photo(pre, photo, mask, classes, count=count, pasting=pasting, on_step=on_step, **options)


def outpaint_photo(
    pre: Pretrained,
    photo: Photo,
    margins: Margins | Sequence[int],
    labels: Labels | None = None,
    *,
    count: int | None = None,
    pasting: Pasting | None = None,
    on_step: Callable[[Painted], object] | None = None,
    **options: Unpack[Options],
) -> list[Image.Image]:
    """A photograph continued beyond its edges, at its own scale, in as many windows as that takes.

    margins: (left, top, right, bottom) in pixels; see `margins_to_aspect`.  pasting: its window may be as large as the
    result's shorter side; unless given, it has the photograph's, or that of the model's canvas for a photograph smaller
    than that, which is then seen whole.  The rest as for `inpaint_photo`.

    Raises ValueError for margins that are negative or leave nothing to paint, and as `inpaint` does.
    """
    job, pixels, wanted = Job(pre, PAINTING, options), np.array(as_rgb(photo)), Margins(*margins)
    height, width = (pixels.shape[0] + wanted.top + wanted.bottom, pixels.shape[1] + wanted.left + wanted.right)
    if height * width > MAX_PIXELS:
        raise ValueError(f"the result would have {width}x{height} pixels, more than {MAX_PIXELS:,}; grow it by less")
    how, shorter = _given(pasting), min(pixels.shape[:2])
    pixels, mask = grow(pixels, wanted)
    if how.window is None:
        how = dataclasses.replace(how, window=max(shorter, min(pre.config.image_size, *pixels.shape[:2])))
    return _Painting(job, pixels, mask, labels, count, how, on_step).run()


def enrich_photo(
    pre: Pretrained,
    photo: Photo,
    labels: Labels | None = None,
    *,
    mask: Mask | None = None,
    scale: int = 2,
    count: int | None = None,
    pasting: Pasting | None = None,
    on_step: Callable[[Painted], object] | None = None,
    **options: Unpack[Options],
) -> list[Image.Image]:
    """A photograph with new detail: one token of every 2x2 block drawn anew at a time, as `enrich` does.

    mask: the part to enrich; None: all of it.  scale: as of `enrich`.  pasting: its window, unless given, has the side
    of the model's canvas, so that detail is drawn at the photograph's own scale.  The rest as for `inpaint_photo`.

    Raises ValueError as `inpaint_photo` and `enrich` do.
    """
    job, pixels = Job(pre, SamplingSettings(), options), np.array(as_rgb(photo))
    marked = np.ones(pixels.shape[:2], np.bool_) if mask is None else _checked(mask, pixels)
    how, detail = _given(pasting), at_least_one("scale", scale)
    if how.window is None:
        how = dataclasses.replace(how, window=min(pre.config.image_size, *pixels.shape[:2]))
    return _Painting(job, pixels, marked, labels, count, how, on_step, rounds=block_rounds, detail=detail).run()


def _checked(mask: Mask, photo: PixelArray) -> Mask:
    """The mask as bool. Raises ValueError unless it has the photograph's size and marks something."""
    values = np.asarray(mask)
    marked: Mask = values >= 0.5 if values.dtype.kind == "f" else values != 0
    if marked.shape != photo.shape[:2]:
        found = "x".join(map(str, marked.shape[::-1]))
        raise ValueError(f"mask is {found} pixels, the photograph {photo.shape[1]}x{photo.shape[0]}; they must agree")
    if not marked.any():
        raise ValueError("mask is empty: nothing is to be painted; mark what to replace with white (1)")
    return marked


class _Painting:
    """One call: the versions as far as they are, and the windows that are left."""

    def __init__(
        self,
        job: Job,
        photo: PixelArray,
        mask: Mask,
        labels: Labels | None,
        count: int | None,
        pasting: Pasting,
        on_step: Callable[[Painted], object] | None,
        *,
        rounds: Rounds | None = None,
        detail: int = 1,
    ) -> None:
        self.job, self.mask, self.on_step, self.rounds, self.detail = job, mask, on_step, rounds, detail
        self.left = mask.copy()  # what no window has painted yet
        side = window_side(photo.shape[1], photo.shape[0], pasting.window)
        band = pasting.band or max(1, round(side / job.pre.config.generator.grid / 2))
        self.pasting = dataclasses.replace(pasting, window=side, band=band)
        self.windows = list(windows(mask, side, room=band if pasting.blend == "feather" else 0))
        classes = None if labels is None else class_numbers(job.pre, labels)
        which = in_turn(count, 1 if classes is None else len(classes))
        self.classes = None if classes is None else classes[which]
        self.versions = [photo.copy() for _ in which]
        self.settings = job.settings.resolved(job.pre.config.generator, classes is not None)
        self.band, self.done = band, 0

    def run(self) -> list[Image.Image]:
        """Paint window after window."""
        for index, window in enumerate(self.windows):
            # Noise of its own for every window; the first has that of `inpaint`.
            self._paint(window, self.job.seed + (index << 64))
        return [Image.fromarray(version) for version in self.versions]

    def _paint(self, window: Window, seed: int) -> None:
        pre, part = self.job.pre, self.left[window.area]
        side, grid = pre.config.image_size, pre.config.generator.grid
        crops = [center_crop(Image.fromarray(version[window.area]), side) for version in self.versions]
        canvases = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
        tokens = tokens_of(part, grid)
        if self.detail > 1:
            chosen = tokens.view(1, 1, grid, grid).repeat_interleave(side // grid, 2).repeat_interleave(side // grid, 3)
            canvases = torch.where(chosen, lower_detail(canvases, self.detail), canvases)
        job = self.job.with_changes(seed=seed, callback=self._callback(window))
        painted = job.repaint(canvases, tokens, self.classes, None, rounds=self.rounds)
        for version, canvas in zip(self.versions, painted, strict=True):
            version[window.area] = self._pasted(version[window.area], canvas, window, self.pasting.blend)
        self.left[window.area] = False

    def _pasted(self, crop: PixelArray, canvas: Tensor, window: Window, blend: str) -> PixelArray:
        """A canvas (3, S, S) in [0, 1] put into a window's crop where it is to be painted."""
        pixels = (canvas.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
        painting = np.array(Image.fromarray(pixels).resize((window.side, window.side), Image.Resampling.BICUBIC))
        part = self.left[window.area]
        pasted = paste(crop, painting, part, blend, self.band)
        earlier = self.mask[window.area] & ~part
        if earlier.any():  # no seam between two paintings, however the painting meets the photograph
            pasted[earlier] = paste(crop, painting, part, "feather", self.band)[earlier]
        return pasted

    def _callback(self, window: Window) -> Callback | None:
        if self.on_step is None:
            return self.job.callback
        tell, callback = self.on_step, self.job.callback
        batches = -(-len(self.versions) // self.job.batch_size)

        def report(at: Iteration) -> None:
            if callback is not None:
                callback(at)
            self.done += 1
            picture = (lambda: self._picture(window, at)) if at.images[0] == 0 else None
            total = at.iterations * batches * len(self.windows)
            tell(Painted(self.done, total, picture, self.settings, self.pasting))

        return report

    @torch.inference_mode()
    def _picture(self, window: Window, at: Iteration) -> Image.Image:
        pre, photo = self.job.pre, self.versions[0].copy()
        canvas = partly(pre, decode(pre, at.codes[:1]), at.masked[:1])[0]
        photo[window.area] = self._pasted(photo[window.area], canvas, window, "none")
        return Image.fromarray(photo)
