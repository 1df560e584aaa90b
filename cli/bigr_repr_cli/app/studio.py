"""Carries out what is entered on the page: files in, files out, by the library's calls. Knows no HTTP."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.checkpoints.classes import class_list, class_names, has_classes
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import decode_image
from bigr_repr.painting.files import (
    PhotoFile,
    Written,
    enrich_file,
    inpaint_file,
    interpolate_file,
    outpaint_file,
    to_pictures,
)
from bigr_repr.painting.pasting import Pasting
from bigr_repr.painting.series import generate_files
from bigr_repr.sampling.canvas import decode, partly
from bigr_repr.sampling.job import Options
from bigr_repr.sampling.sampler import Iteration
from bigr_repr.system.files import replacing
from bigr_repr_cli.app.jobs import Watch

MOST_VERSIONS, MOST_PICTURES, MOST_FRAMES = 8, 64, 32  # of one press
MOST_CANDIDATES, MOST_WINDOWS = 16, 10_000  # likewise
MAX_PIXELS = 50_000_000  # of a photograph
_LOOK_PIXELS = 640


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """What is to be done to a photograph.

    mask: what is marked on a copy of any size, bool (h, w); None: nothing.  label: classes by name or number; nothing:
    what fits the surroundings.  options: keywords of the library.
    """

    photo: Path
    mask: NDArray[np.bool_] | None = None
    label: str | None = None
    versions: int = 1
    pasting: Pasting | None = None
    options: Options = field(default_factory=Options)


class Studio:
    """A model and the folder where its pictures are kept. Raises OSError for a folder that cannot be written.

    classes: the model's by name, each with its number, as text; empty for a model without.  by_text: whether it draws
    from captions, which then stand where labels do.  max_pixels: photographs of
    more are refused.
    """

    def __init__(self, pre: Pretrained, out: Path, *, max_pixels: int = MAX_PIXELS) -> None:
        self.pre, self.out, self.max_pixels = pre, out, max_pixels
        out.mkdir(parents=True, exist_ok=True)
        self.by_text = pre.config.generator.condition == "text"
        numbered = tuple(map(str, range(pre.config.generator.classes)))
        names = class_names(pre.config)
        told = [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]
        self.classes = dict(zip(told or numbered, numbered, strict=True)) if has_classes(pre.config) else {}

    def inpaint(self, order: DrawRequest, watch: Watch) -> list[Path]:
        """The marked part repainted."""
        file = self._file(order, "inpainted")
        if not file.masks:
            raise ValueError("nothing is marked; paint over what is to be replaced")
        return self._painted(inpaint_file, file, order, watch)

    def enrich(self, order: DrawRequest, watch: Watch) -> list[Path]:
        """New detail where it is marked, or everywhere if nothing is."""
        return self._painted(enrich_file, self._file(order, "enriched"), order, watch)

    def outpaint(self, order: DrawRequest, aspect: float, watch: Watch) -> list[Path]:
        """The photograph continued on both sides to an aspect, width over height."""
        file = self._file(dataclasses.replace(order, mask=None), "outpainted")
        return self._painted(partial(outpaint_file, aspect=aspect), file, order, watch)

    def generate(self, labels: Sequence[str], count: int, options: Options, watch: Watch) -> list[Path]:
        """A folder of new pictures, the classes in turn. Raises ValueError for more than a press may ask for."""
        classes, options = self.asked(labels, options)
        count = max(count, len(classes or ()))
        _limit("pictures", count, MOST_PICTURES)
        folder = self._target("generated").with_suffix("")
        try:
            done = generate_files(self.pre, folder, classes, count=count, **self._watched(options, watch))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # the page says that what is stopped is not kept
            raise
        return list(done.images)

    def interpolate(self, start: str, end: str, frames: int, options: Options, watch: Watch) -> list[Path]:
        """A walk between two classes: the animation, and the strip. Raises as `generate`."""
        _limit("frames", frames, MOST_FRAMES)
        labels, options = self.asked([start, end], options)
        if len(labels or options.get("prompt") or ()) != 2:
            raise ValueError(f"name one {'caption' if self.by_text else 'class'} to begin with and one to end with")
        done = interpolate_file(
            self.pre, labels, self._target("interpolated"), frames=frames, **self._watched(options, watch)
        )
        return [*done.also, *done.images]

    def _painted(self, paint: Callable[..., Written], file: PhotoFile, order: DrawRequest, watch: Watch) -> list[Path]:
        try:
            _limit("versions", order.versions, MOST_VERSIONS)
            pasting = order.pasting or Pasting()
            _limit("candidates (best_of=)", pasting.best_of, MOST_CANDIDATES)
            _limit("windows (max_windows=)", pasting.max_windows, MOST_WINDOWS)
            labels, options = self.asked([order.label] if order.label else [], order.options)
            _limit("classes", len(labels or [None]), MOST_VERSIONS)
            done = paint(
                self.pre, file, labels, count=order.versions, pasting=order.pasting,
                on_step=lambda painted: watch(painted.done, painted.total, _look(painted.picture)), **options,
            )  # fmt: skip
        except BaseException:
            for mask in file.masks:
                Path(mask).unlink(missing_ok=True)
            raise
        return list(done.images)

    def asked(self, texts: Sequence[str], options: Options) -> tuple[list[int] | None, Options]:
        """Classes, and the options; of a model of captions none, and the options with the captions as prompts."""
        if not self.by_text:
            return self.label_numbers(texts), options
        prompts = [text for text in texts if text.strip()]
        return None, {**options, "prompt": prompts} if prompts else options

    def label_numbers(self, texts: Sequence[str]) -> list[int] | None:
        """Classes by the names that the page offers, by numbers and as the commands take them."""
        texts = [self.classes.get(text, text) for text in texts if text.strip()]
        return class_list(self.pre.config, texts) if texts else None

    def _watched(self, options: Options, watch: Watch) -> Any:
        """Keywords of a call that draws whole pictures, so that the first of each batch can be watched."""
        latest: list[Iteration] = []

        def keep(at: Iteration) -> None:
            latest[:] = [at]

        def picture() -> Image.Image:
            (at,) = latest
            with torch.inference_mode():
                (shown,) = to_pictures(partly(self.pre, decode(self.pre, at.codes[:1]), at.masked[:1]))
            return shown

        return {"on_progress": lambda done, total: watch(done, total, _look(picture)), "callback": keep, **options}

    def _file(self, order: DrawRequest, name: str) -> PhotoFile:
        """Photograph and result; the marks as a mask beside it, so that the picture can be made again."""
        out = self._target(name)
        if order.mask is None or not order.mask.any():
            return PhotoFile(photo=order.photo, out=out, max_pixels=self.max_pixels)
        mask, size = out.with_stem(f"{out.stem}-mask"), decode_image(order.photo, max_pixels=self.max_pixels).size
        with replacing(mask) as target:
            Image.fromarray(order.mask).convert("L").resize(size, Image.Resampling.NEAREST).save(target, "PNG")
        return PhotoFile(photo=order.photo, out=out, masks=[mask], max_pixels=self.max_pixels)

    def _target(self, name: str) -> Path:
        """A name that is not taken, by the time of day."""
        self.out.mkdir(parents=True, exist_ok=True)
        stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        number, path = 1, self.out / f"{stem}.png"
        while any(self.out.glob(f"{path.stem}*")):
            number += 1
            path = self.out / f"{stem}-{number}.png"
        return path


def _look(picture: Callable[[], Image.Image] | None) -> Callable[[], Image.Image] | None:
    """The same, small enough to be sent at every update."""

    def small() -> Image.Image:
        assert picture is not None
        image = picture()
        image.thumbnail((_LOOK_PIXELS, _LOOK_PIXELS))
        return image

    return None if picture is None else small


def _limit(what: str, asked: int, most: int) -> None:
    """Raise ValueError for more than one press may ask for, whoever sent it."""
    if not 1 <= asked <= most:
        raise ValueError(f"{asked} {what} are not 1..{most}, what one press may ask for")
