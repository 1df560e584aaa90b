"""One call that paints into a photograph: its options, and its windows, painted in sequence.

Masks and labels come from the functions of `photos`. Knows nothing of files.
"""

# H W pixels of the photograph, V versions, S side of the canvas in pixels, N tokens, g tokens per side

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import center_crop
from bigr_repr.painting.blend import PixelArray, paste
from bigr_repr.painting.pasting import Pasting
from bigr_repr.painting.quality import LITTLE, detail_kept
from bigr_repr.painting.windows import (
    Mask,
    Window,
    most_windows,
    tokens_of,
    window_side,
    windows,
)
from bigr_repr.sampling.canvas import decode, lower_detail, partly
from bigr_repr.sampling.job import Job, Labels, Options, Rounds, in_turn
from bigr_repr.sampling.sampler import Callback, Iteration
from bigr_repr.sampling.settings import SamplingSettings
from bigr_repr.sampling.surroundings import Surroundings

_log = logging.getLogger(__name__)

_FOLLOW, _FOLLOW_WITH_CLASS = 2.0, 0.5  # tokens
_MANY_WINDOWS = 50  # this many take minutes on two cores


class Painted(NamedTuple):
    """The progress of a call: `done` of `total` iterations of batches, over all windows.

    picture: returns the first version so far, masked tokens in gray, until the callback returns; None while other
    versions are drawn. settings, pasting: those in use, with all defaults filled in.
    """

    done: int
    total: int
    picture: Callable[[], Image.Image] | None
    settings: SamplingSettings
    pasting: Pasting


class PhotoOptions(Options, total=False):
    """Keywords of every call that paints into a photograph: those of `Options` and these.

    count       number of versions, cycling through the labels; None: one per label.
    pasting     a `Pasting`; None: the default.
    on_step     called with a `Painted` after each iteration of each batch.
    """

    count: int | None
    pasting: Pasting | None
    on_step: Callable[[Painted], object] | None


class Call:
    """The options of one call, split up. Raises TypeError for an unknown option."""

    def __init__(self, pre: Pretrained, usual: SamplingSettings, options: PhotoOptions) -> None:
        rest: Any = dict(options)
        self.count: int | None = rest.pop("count", None)
        self.on_step: Callable[[Painted], object] | None = rest.pop("on_step", None)
        pasting = rest.pop("pasting", None)
        if not isinstance(pasting, Pasting | None):
            raise TypeError(f"pasting={pasting!r} is not a Pasting; make one: Pasting(blend='feather')")
        self.pasting = pasting or Pasting()
        self.job = Job(pre, usual, rest)

    def usual_window(self, side: int) -> None:
        """The default side of windows."""
        if self.pasting.window is None:
            self.pasting = dataclasses.replace(self.pasting, window=side)

    def unfitted(self) -> None:
        """Fit no painting to its surroundings. Raises ValueError for `follow`, which would have no effect."""
        if self.pasting.follow is not None:
            raise ValueError(
                f"follow={self.pasting.follow:g} has no effect: enrich follows the photograph itself; leave follow out"
            )
        self.pasting = dataclasses.replace(self.pasting, fit="none")

    def check_windows(self, found: int) -> None:
        """Raise ValueError, before any work, if there may be too many windows: `found` of them."""
        most = self.pasting.max_windows
        if found > most:
            raise ValueError(
                f"this takes up to {found:,} windows of {self.pasting.window} pixels, more than max_windows={most:,}; "
                "choose a larger window, mark less, or allow more windows"
            )

    def paint(
        self, photo: PixelArray, mask: Mask, labels: Labels | None, *, rounds: Rounds | None = None, detail: int = 1
    ) -> list[Image.Image]:
        """Paint what is marked, in every version."""
        return _Painting(self, photo, mask, labels, rounds, detail).run()


@dataclass(frozen=True)
class _Seen:
    """What the model sees of a window: canvases (V, 3, S, S), tokens to paint (1, N), and their surroundings.

    near: None if the whole window is painted.  fit: whether paintings are fitted to their surroundings.
    """

    canvases: Tensor
    tokens: Tensor
    near: Surroundings | None
    fit: bool

    def fitted(self, painted: Tensor) -> Tensor:
        """Paintings of the first canvases, matched in tone to their surroundings."""
        if self.near is None or not self.fit:
            return painted
        return self.near.fitted(painted, self.canvases[: len(painted)])

    def better(self, first: Tensor, second: Tensor) -> Tensor:
        """Of two paintings of each canvas, the one with the smaller step at the border, or the first without one."""
        if self.near is None:
            return first
        steps = [self.near.border_steps(painted, self.canvases) for painted in (first, second)]
        return torch.where((steps[1] < steps[0]).to(first.device)[:, None, None, None], second, first)


class _Painting:
    """A call in progress: the versions so far, and the windows that are left."""

    def __init__(
        self,
        call: Call,
        photo: PixelArray,
        mask: Mask,
        labels: Labels | None,
        rounds: Rounds | None,
        detail: int,
    ) -> None:
        self.job, self.on_step, self.mask, self.rounds, self.detail = call.job, call.on_step, mask, rounds, detail
        self.left = mask.copy()  # what no window has painted yet
        side = window_side(photo.shape[1], photo.shape[0], call.pasting.window)
        self.band = call.pasting.band or max(1, round(side / self.job.pre.config.generator.grid / 2))
        given = self.job.conditions(labels)
        follow = call.pasting.follow
        if follow is None and rounds is None:
            follow = _FOLLOW if given is None else _FOLLOW_WITH_CLASS
        follow = None if follow is None else float(follow)
        self.pasting = dataclasses.replace(call.pasting, window=side, band=self.band, follow=follow)
        call.check_windows(most_windows(mask, side))
        self.windows = list(windows(mask, side))
        which = in_turn(call.count, 1 if given is None else len(given))
        self.condition = None if given is None else given[which.to(given.device)]
        self.versions = [photo.copy() for _ in which]
        self.settings = self.job.settings.resolved(self.job.pre.config.generator, given is not None)
        self.done = 0

    def run(self) -> list[Image.Image]:
        """Paint window after window."""
        self._warn()
        for index, window in enumerate(self.windows):
            seen = self._seen(window)
            best = seen.canvases
            for candidate in range(self.pasting.best_of):
                # Different noise for every window and candidate; the first has that of `inpaint`.
                seed = self.job.seed + (index << 64) + (candidate << 96)
                painted = self._drawn(seen, window, seed)
                best = painted if candidate == 0 else seen.better(best, painted)
            for version, canvas in zip(self.versions, best, strict=True):
                self._put(version, canvas, window, self.pasting.blend)
            self.left[window.area] = False
        return [Image.fromarray(version) for version in self.versions]

    def _warn(self) -> None:
        """Warn, before any work, if it will take long, or if the model has far less detail than the photograph."""
        window, name = self.windows[0], self.job.pre.config.name
        if len(self.windows) > _MANY_WINDOWS:
            _log.warning(
                "painting %s windows of %d pixels; a larger window or a smaller marked area takes less time",
                f"{len(self.windows):,}",
                self.pasting.window,
            )
        share = detail_kept(self.job.pre, self.versions[0][window.area])
        if share < LITTLE:
            _log.warning(
                "%s keeps %.0f %% of this photograph's fine detail in what it redraws: %s",
                name,
                100 * share,
                "expect a blurred area" if self.rounds is None else "it removes more than it adds",
            )

    def _seen(self, window: Window) -> _Seen:
        side, grid, part = self.job.pre.config.image_size, self.job.pre.config.generator.grid, self.left[window.area]
        crops = [center_crop(Image.fromarray(version[window.area]), side) for version in self.versions]
        hole = tokens_of(part, side).view(side, side).numpy()
        return _Seen(
            torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255,
            tokens_of(part, grid),
            None if hole.all() else Surroundings(hole, grid),
            fit=self.pasting.fit == "surroundings",
        )

    def _drawn(self, seen: _Seen, window: Window, seed: int) -> Tensor:
        """One painting of a window, in every version."""
        images, trust = seen.canvases, None
        if self.detail > 1:
            grid = self.job.pre.config.generator.grid
            step = images.shape[-1] // grid
            chosen = seen.tokens.view(1, 1, grid, grid).repeat_interleave(step, 2).repeat_interleave(step, 3)
            images = torch.where(chosen, lower_detail(images, self.detail), images)
        if seen.fit and seen.near is not None:
            images, trust = seen.near.continued(images), seen.near.trust(self.pasting.follow or 0.0)
        job = self.job.with_changes(seed=seed, callback=self._callback(window, seen))
        return seen.fitted(job.repaint(images, seen.tokens, self.condition, None, rounds=self.rounds, trust=trust))

    def _put(self, photo: PixelArray, canvas: Tensor, window: Window, blend: str) -> None:
        """Paste a canvas (3, S, S) in [0, 1] into its window, without a seam to earlier paintings.

        The painting is mirrored at the window's border over the width of the band, so that it can fade out wherever its
        part of the mask ends, even on the border.
        """
        pixels = (canvas.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
        small = np.array(Image.fromarray(pixels).resize((window.side, window.side), Image.Resampling.BICUBIC))
        area, margins = window.with_margins(self.band, self.mask.shape)
        painting = np.pad(small, (*margins, (0, 0)), mode="symmetric")
        part = np.pad(self.left[window.area], margins)
        crop, earlier = photo[area], self.mask[area] & ~self.left[area]
        pasted = paste(crop, painting, part, blend, self.band)
        if blend != "poisson" and earlier.any():  # poisson has already fitted the painting to its neighbors
            faded = pasted if blend == "feather" else paste(crop, painting, part, "feather", self.band)
            pasted[earlier] = faded[earlier]
        later = self.left[area] & ~part  # belongs to a later window
        pasted[later] = crop[later]
        photo[area] = pasted

    def _callback(self, window: Window, seen: _Seen) -> Callback | None:
        if self.on_step is None:
            return self.job.callback
        tell, callback = self.on_step, self.job.callback
        batches = -(-len(self.versions) // self.job.batch_size)

        def report(at: Iteration) -> None:
            if callback is not None:
                callback(at)
            self.done += 1
            picture = (lambda: self._picture(window, at, seen)) if at.images[0] == 0 else None
            total = at.iterations * batches * self.pasting.best_of * len(self.windows)
            tell(Painted(self.done, total, picture, self.settings, self.pasting))

        return report

    @torch.inference_mode()
    def _picture(self, window: Window, at: Iteration, seen: _Seen) -> Image.Image:
        pre, photo = self.job.pre, self.versions[0].copy()
        canvas = partly(pre, seen.fitted(decode(pre, at.codes[:1])), at.masked[:1])[0]
        self._put(photo, canvas, window, "none")
        return Image.fromarray(photo)
