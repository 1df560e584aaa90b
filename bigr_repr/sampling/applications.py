"""Generate, inpaint, outpaint, edit, interpolate, enrich, all with one sampler. Knows nothing of files.

All work on the model's square canvas and return images as decoded by the tokenizer, including known parts; for
photographs of any size see photos.py. Images are float32 (B, 3, S, S) in [0, 1] on the model's device. All take the
keywords in `Options`.
"""

# B images of the call, N tokens, K bits per token, D width, S side of the canvas in pixels, g tokens per side

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.pictures import ImageLike, MaskLike, to_batch
from bigr_repr.sampling.canvas import lower_detail, place, to_canvas, token_mask
from bigr_repr.sampling.job import Job, Labels, Options, at_least_one, in_turn, something_named
from bigr_repr.sampling.noise import Draws
from bigr_repr.sampling.settings import SamplingSettings
from bigr_repr.sampling.walk import walk

# As in the released scripts for painting into images.
PAINTING = SamplingSettings(steps=25, schedule="linear")


def generate(
    pre: Pretrained, labels: Labels | None = None, *, count: int | None = None, **options: Unpack[Options]
) -> Tensor:
    """New images of the given classes; without labels, unconditional; with a text model, of a `prompt`.

    labels: classes in 0..C-1.  count: total number of images, cycling through labels or prompts; None: one of each.

    Raises ValueError for labels outside the model's classes, labels for a text model or a prompt for a class model,
    invalid settings, or guidance without labels.
    """
    job = Job(pre, SamplingSettings(), options)
    given = job.conditions(labels)
    which = in_turn(count, 1 if given is None else len(given))
    masked = torch.ones(len(which), pre.config.generator.tokens, dtype=torch.bool)
    return job.run(masked, condition=None if given is None else given[which.to(given.device)])


def inpaint(
    pre: Pretrained,
    image: ImageLike,
    mask: MaskLike,
    labels: Labels | None = None,
    *,
    count: int | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Images with the marked part repainted; tokens outside the mask keep their bits.

    image: one or a batch, of the model's size; tensor (3, S, S) or (B, 3, S, S), array, PIL image or file.  mask: the
    area to paint, in pixels (S, S) or tokens (g, g), one for all or one each, array or tensor, or an image that is
    white there; a token is painted if any of its pixels is.
    labels: what to paint; None: whatever fits the context.  A single image, mask or label is used with all others.
    count: total number of images, cycling through the inputs; None: one of each.

    Raises ValueError for a wrong size, an empty mask, labels outside the model's classes, or guidance without labels.
    """
    job = Job(pre, PAINTING, options)
    return job.repaint(to_canvas(pre, image), token_mask(pre, mask), job.conditions(labels), count)


def edit(
    pre: Pretrained,
    image: ImageLike,
    mask: MaskLike,
    labels: Labels | None = None,
    *,
    count: int | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Images with the marked part replaced by the given class or prompt: `inpaint` with one of them."""
    return inpaint(pre, image, mask, something_named(labels, options), count=count, **options)


def outpaint(
    pre: Pretrained,
    image: ImageLike,
    labels: Labels | None = None,
    *,
    at: tuple[int, int] | None = None,
    count: int | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Paint the canvas around images that are smaller than it.

    image: one or a batch, (3, H, W) or (B, 3, H, W) with H, W <= S, array, PIL image or file.  at: (left, top) of the
    image on the canvas in pixels; None: centered.  Tokens that it covers only partly are painted too.
    labels, count: as for `inpaint`.

    Raises ValueError for an image that fills or extends outside the canvas, and as `inpaint` does.
    """
    canvas, masked = place(pre, to_batch(image), at)
    job = Job(pre, PAINTING, options)
    return job.repaint(canvas, masked, job.conditions(labels), count)


def interpolate(
    pre: Pretrained,
    labels: Sequence[int] | Tensor | None = None,
    *,
    frames: int = 9,
    weights: Tensor | Sequence[Sequence[float]] | None = None,
    smooth: bool = True,
    **options: Unpack[Options],
) -> Tensor:
    """Images between classes, or prompts: the condition is the weighted sum of theirs; all share the noise of `first`.

    labels: two or more classes; None: use two or more prompts.  frames: number of evenly spaced images from the first
    to the last, passing through the others.  weights: (B, L), a row per image and a column per label, instead of even
    steps.  smooth: draw the classes themselves first, then images in between so that neighbors are similar; see `walk`.
    False: draw each image independently.

    Raises ValueError for fewer than two labels, labels outside the model's classes, or misshapen weights.
    """
    job = Job(pre, SamplingSettings(), options)
    condition = job.conditions(labels)
    if condition is None or len(condition) < 2:
        named = f"prompt={job.prompts} is a single prompt" if labels is None else f"labels={labels!r} is a single class"
        raise ValueError(f"{named}; interpolation needs two or more")
    ends = len(condition)
    mix = _even_steps(frames, ends) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    if mix.ndim != 2 or mix.shape[1] != ends or not len(mix) or not mix.isfinite().all():
        found = f"weights has shape {tuple(mix.shape)}"
        raise ValueError(f"{found}; expected (images, {ends}), finite: one column per label")
    masked = torch.ones(len(mix), pre.config.generator.tokens, dtype=torch.bool)
    if smooth:
        job.check(conditional=True)
        return job.decoded(walk(job, condition, mix))
    mixed = (mix.to(condition.device).view(*mix.shape, *(1,) * (condition.ndim - 1)) * condition.float()).sum(dim=1)
    return job.run(masked, condition=mixed, numbers=[job.first] * len(mix))


def enrich(
    pre: Pretrained,
    image: ImageLike,
    labels: Labels | None = None,
    *,
    scale: int = 2,
    count: int | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Images with new detail: one token of every 2x2 block is redrawn at a time.

    image: one or a batch, of the model's size.  scale: factor by which the image is first shrunk and enlarged again, to
    remove detail; 1 for an image that is already blurred.  Four rounds of `steps` iterations, in a different order for
    each image, redraw every token once.  labels, count: as for `inpaint`.

    Raises ValueError for a wrong size, labels outside the model's classes, or guidance without labels.
    """
    images = lower_detail(to_canvas(pre, image), at_least_one("scale", scale))
    everything = torch.ones(1, pre.config.generator.tokens, dtype=torch.bool)
    job = Job(pre, SamplingSettings(), options)
    return job.repaint(images, everything, job.conditions(labels), count, rounds=block_rounds)


def block_rounds(masked: Tensor, draws: Draws) -> list[Tensor]:
    """Four masks (B, N), each with one position of every 2x2 block of tokens, in a random order for each image."""
    grid = round(masked.shape[1] ** 0.5)
    row, column = torch.arange(grid)[:, None] % 2, torch.arange(grid)[None, :] % 2
    place_of_token = (2 * row + column).flatten()
    order = draws.uniform([4] * len(masked), 1, 1).view(-1, 4).argsort(dim=1).cpu()
    return [masked & (place_of_token == order[:, i, None]).to(masked.device) for i in range(4)]


def _even_steps(frames: int, labels: int) -> Tensor:
    """Weights (frames, labels) from the first label to the last in even steps, between two at a time."""
    if at_least_one("frames", frames) < labels:
        raise ValueError(f"frames={frames} is too few; {labels} classes need at least {labels}")
    position = torch.arange(frames, dtype=torch.float64)[:, None] * (labels - 1) / (frames - 1)
    return (1 - (position - torch.arange(labels)).abs()).clamp(min=0).float()
