"""Generate, inpaint, outpaint, edit, interpolate, enrich: arguments to the one sampler. Knows nothing of files.

All work on the model's square canvas and return images as the tokenizer decodes them, known parts included; for
photographs of any size see photos.py. Images are float32 (B, 3, S, S) in [0, 1] on the model's device. The keywords
that all of them take are those of `Options`.
"""

# B images of the call, N tokens, K bits per token, D width, S side of the canvas in pixels, g tokens per side

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.sampling.canvas import lower_detail, place, to_canvas, token_mask
from bigr_repr.sampling.inputs import ImageLike, MaskLike, to_batch
from bigr_repr.sampling.job import Job, Labels, Options, at_least_one, in_turn, something_named
from bigr_repr.sampling.noise import Draws
from bigr_repr.sampling.settings import SamplingSettings
from bigr_repr.sampling.walk import walk

# As in the released scripts for painting into images.
PAINTING = SamplingSettings(steps=25, schedule="linear")


def generate(
    pre: Pretrained, labels: Labels | None = None, *, count: int | None = None, **options: Unpack[Options]
) -> Tensor:
    """New images of the given classes; without labels, of no particular class; with a text model, of a `prompt`.

    labels: classes in 0..C-1.  count: how many images in all, the labels or prompts taken in turn; None: one of each.

    Raises ValueError for labels outside the model's classes, labels of a text model or a prompt to another, impossible
    settings, or guidance without labels.
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

    image: one or a batch, of the model's size; tensor (3, S, S) or (B, 3, S, S), array, PIL image or file.  mask: what
    to paint, in pixels (S, S) or tokens (g, g), one for all or one each, array or tensor, or an image that is white
    there; a token is painted if any of its pixels is.
    labels: what to paint; None leaves it to the context.  One image, mask or label goes with any number of the others.
    count: how many images in all, the inputs taken in turn; None: one of each.

    Raises ValueError for another size, an empty mask, labels outside the model's classes, or guidance without labels.
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
    """Images with the marked part replaced by something of the given class or prompt: `inpaint` with one of them."""
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
    """The canvas around images smaller than it.

    image: one or a batch, (3, H, W) or (B, 3, H, W) with H, W <= S, array, PIL image or file.  at: (left, top) of the
    image on the canvas in pixels; None: in the middle.  Tokens that it covers only in part are painted too.
    labels, count: as for `inpaint`.

    Raises ValueError for an image that leaves or fills the canvas, and as `inpaint` does.
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

    labels: two or more classes; None: as many prompts.  frames: so many even steps from the first to the last, by way
    of the others.  weights: (B, L), a row for each image and a column for each label, instead of even steps.  smooth:
    draw the classes themselves first, and what lies between so that neighbors are alike; see `walk`. False: each image
    by itself.

    Raises ValueError for fewer than two labels, labels outside the model's classes, or misshapen weights.
    """
    job = Job(pre, SamplingSettings(), options)
    condition = job.conditions(labels)
    if condition is None or len(condition) < 2:
        named = f"prompt={job.prompts} is a single prompt" if labels is None else f"labels={labels!r} is a single class"
        raise ValueError(f"{named}; interpolation goes between two or more")
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
    """Images with new detail: one token of every 2x2 block is drawn anew at a time.

    image: one or a batch, of the model's size.  scale: the detail that is first taken out, by making the image so many
    times smaller and large again; 1 for an image that is blurred already.  Four rounds of `steps` iterations, in an
    order of its own for each image, redraw every token once.  labels, count: as for `inpaint`.

    Raises ValueError for another size, labels outside the model's classes, or guidance without labels.
    """
    images = lower_detail(to_canvas(pre, image), at_least_one("scale", scale))
    everything = torch.ones(1, pre.config.generator.tokens, dtype=torch.bool)
    job = Job(pre, SamplingSettings(), options)
    return job.repaint(images, everything, job.conditions(labels), count, rounds=block_rounds)


def block_rounds(masked: Tensor, draws: Draws) -> list[Tensor]:
    """Four masks (B, N), each one place of every 2x2 block of tokens, in an order drawn for each image."""
    grid = round(masked.shape[1] ** 0.5)
    row, column = torch.arange(grid)[:, None] % 2, torch.arange(grid)[None, :] % 2
    place_of_token = (2 * row + column).flatten()
    order = draws.uniform([4] * len(masked), 1, 1).view(-1, 4).argsort(dim=1).cpu()
    return [masked & (place_of_token == order[:, i, None]).to(masked.device) for i in range(4)]


def _even_steps(frames: int, labels: int) -> Tensor:
    """Weights (frames, labels) that go from the first label to the last in even steps, between two at a time."""
    if at_least_one("frames", frames) < labels:
        raise ValueError(f"frames={frames} is too few; a way by {labels} classes has at least {labels}")
    position = torch.arange(frames, dtype=torch.float64)[:, None] * (labels - 1) / (frames - 1)
    return (1 - (position - torch.arange(labels)).abs()).clamp(min=0).float()
