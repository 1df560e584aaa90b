"""Runs what is requested on the page with library calls: files in, files out. Independent of HTTP."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.checkpoints.classes import class_list, class_names, has_classes
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import decode_image
from bigr_repr.images.find import escape_path
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
from bigr_repr.system.files import naming, replacing
from bigr_repr_cli.app.jobs import Watch

MOST_VERSIONS, MOST_PICTURES, MOST_FRAMES = 8, 64, 32  # per job
MOST_CANDIDATES, MOST_WINDOWS = 16, 10_000  # likewise
MAX_PIXELS = 50_000_000  # of a photograph
_LOOK_PIXELS = 640
_SHOWN = 50  # characters of a text in a message


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """What to do to a photograph.

    mask: the marks on a copy of any size, bool (h, w); None: nothing.  label: classes by name or number; empty:
    whatever fits the surroundings.  options: keyword arguments of the library.  name: of the photograph, to record;
    None: its file's.
    """

    photo: Path
    name: str | None = None
    mask: NDArray[np.bool_] | None = None
    label: str | None = None
    versions: int = 1
    pasting: Pasting | None = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, kw_only=True)
class _NamedPhoto(PhotoFile):
    """A photograph that its results record by the name that users know, not by that of a private file."""

    name: str | None

    @property
    def facts(self) -> dict[str, Any]:
        facts = super().facts
        if self.name is not None:
            facts["photograph"]["name"] = escape_path(self.name)
        return facts


class Studio:
    """A model and the folder where its pictures are saved. Raises OSError for a folder that cannot be written.

    classes: the model's class names, each with its number as text; empty for a model without classes.  by_text: whether
    it draws from captions, which then take the place of labels.  max_pixels: larger photographs are refused.
    load_exact: loads the model in float32, if pre's weights are rounded.
    """

    def __init__(
        self,
        pre: Pretrained,
        out: Path,
        *,
        max_pixels: int = MAX_PIXELS,
        load_exact: Callable[[], Pretrained] | None = None,
    ) -> None:
        self.pre, self.out, self.max_pixels, self._load_exact = pre, out, max_pixels, load_exact
        self._make_folder()
        self.by_text = pre.config.generator.condition == "text"
        numbered = tuple(map(str, range(pre.config.generator.classes)))
        names = class_names(pre.config)
        told = [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]
        self.classes = dict(zip(told or numbered, numbered, strict=True)) if has_classes(pre.config) else {}

    @cached_property
    def exact(self) -> Pretrained:
        """The model with unrounded weights: rounded ones give other codes than an index has. Loaded on first use."""
        return self.pre if self._load_exact is None else self._load_exact()

    def inpaint(self, order: DrawRequest, watch: Watch) -> list[Path]:
        """Repaint the marked area."""
        if order.mask is None or not order.mask.any():
            raise ValueError("nothing is marked; paint over the area to replace")
        return self._painted(inpaint_file, "inpainted", order, watch)

    def enrich(self, order: DrawRequest, watch: Watch) -> list[Path]:
        """Add detail to the marked area, or everywhere if nothing is marked."""
        return self._painted(enrich_file, "enriched", order, watch)

    def outpaint(self, order: DrawRequest, aspect: float, watch: Watch) -> list[Path]:
        """Extend the photograph on both sides to an aspect ratio, width over height."""
        paint = partial(outpaint_file, aspect=aspect)
        return self._painted(paint, "outpainted", dataclasses.replace(order, mask=None), watch)

    def generate(self, labels: Sequence[str], count: int, options: Options, watch: Watch) -> list[Path]:
        """Draw a folder of new pictures, cycling through the classes. Raises ValueError beyond a job's limit."""
        classes, options = self.asked(labels, options)
        count = max(count, len(classes or ()))
        _limit("pictures", count, MOST_PICTURES)
        with self._target("generated") as path:
            folder = path.with_suffix("")
            folder.mkdir()
            try:
                done = generate_files(self.pre, folder, classes, count=count, **self._watched(options, watch))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)  # the page says that stopped jobs keep nothing
                raise
        return list(done.images)

    def interpolate(self, start: str, end: str, frames: int, options: Options, watch: Watch) -> list[Path]:
        """Interpolate between two classes, as an animation and a strip. Raises as `generate`."""
        _limit("frames", frames, MOST_FRAMES)
        for name, text in (("start", start), ("end", end)):
            self._check_end(name, text)
        labels, options = self.asked([start, end], options)
        with self._target("interpolated") as path:
            done = interpolate_file(self.pre, labels, path, frames=frames, **self._watched(options, watch))
        return [*done.also, *done.images]

    def _check_end(self, name: str, text: str) -> None:
        """Raise ValueError, which names the end of an interpolation, unless it is exactly one class or caption."""
        shown = f"{name}={text[:_SHOWN]!r}"
        if not text.strip():
            what = f"{'caption' if self.by_text else 'class'} to {'start from' if name == 'start' else 'end with'}"
            raise ValueError(f"{shown} is empty; name one {what}")
        if self.by_text:
            return
        try:
            labels = self.label_numbers([text]) or []
        except ValueError as error:
            raise ValueError(f"{shown}: {error}") from error
        if len(labels) != 1:
            raise ValueError(f"{shown} names {len(labels)} classes; name one")

    def _painted(self, paint: Callable[..., Written], name: str, order: DrawRequest, watch: Watch) -> list[Path]:
        _limit("versions", order.versions, MOST_VERSIONS)
        pasting = order.pasting or Pasting()
        _limit("candidates (best_of=)", pasting.best_of, MOST_CANDIDATES)
        _limit("windows (max_windows=)", pasting.max_windows, MOST_WINDOWS)
        labels, options = self.asked([order.label] if order.label else [], order.options)
        _limit("classes", len(labels or [None]), MOST_VERSIONS)
        with self._target(name) as out:
            file = self._file(order, out)
            try:
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
        """Classes and options; for a text model, no classes, and options with the captions as prompts."""
        if not self.by_text:
            return self.label_numbers(texts), options
        prompts = [text for text in texts if text.strip()]
        return None, {**options, "prompt": prompts} if prompts else options

    def label_numbers(self, texts: Sequence[str]) -> list[int] | None:
        """Class numbers from the names that the page offers, from numbers, or as on the command line."""
        texts = [self.classes.get(text, text) for text in texts if text.strip()]
        return class_list(self.pre.config, texts) if texts else None

    def _watched(self, options: Options, watch: Watch) -> Any:
        """Keyword arguments with which the first picture of each batch can be watched."""
        latest: list[Iteration] = []

        def keep(at: Iteration) -> None:
            latest[:] = [at]

        def picture() -> Image.Image:
            (at,) = latest
            with torch.inference_mode():
                (shown,) = to_pictures(partly(self.pre, decode(self.pre, at.codes[:1]), at.masked[:1]))
            return shown

        return {"on_progress": lambda done, total: watch(done, total, _look(picture)), "callback": keep, **options}

    def _file(self, order: DrawRequest, out: Path) -> PhotoFile:
        """Photograph and result, with the marks saved as a mask next to it, so that the picture can be reproduced."""
        photo = _NamedPhoto(photo=order.photo, name=order.name, out=out, max_pixels=self.max_pixels)
        if order.mask is None or not order.mask.any():
            return photo
        mask, size = out.with_stem(f"{out.stem}-mask"), decode_image(order.photo, max_pixels=self.max_pixels).size
        with replacing(mask) as target:
            Image.fromarray(order.mask).convert("L").resize(size, Image.Resampling.NEAREST).save(target, "PNG")
        return dataclasses.replace(photo, masks=[mask])

    @contextmanager
    def _target(self, name: str) -> Iterator[Path]:
        """An unused file name, from the time of day, which other studios do not use either until the block ends."""
        self._make_folder()
        stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        for number in itertools.count(1):
            path = self.out / (f"{stem}.png" if number == 1 else f"{stem}_{number}.png")  # -0, -1, … are versions
            reserved = path.with_name(f".{path.stem}.reserved")
            try:
                with naming(path, reserved):
                    reserved.touch(exist_ok=False)
            except FileExistsError:
                continue
            try:
                if not any(self.out.glob(f"{path.stem}*")):
                    yield path
                    return
            finally:
                reserved.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise NotADirectoryError(f"{self.out} is a file; choose a folder for the pictures: --out DIR")
        self.out.mkdir(parents=True, exist_ok=True)


def _look(picture: Callable[[], Image.Image] | None) -> Callable[[], Image.Image] | None:
    """The picture, small enough to be sent with every update."""

    def small() -> Image.Image:
        assert picture is not None
        image = picture()
        image.thumbnail((_LOOK_PIXELS, _LOOK_PIXELS))
        return image

    return None if picture is None else small


def _limit(what: str, asked: int, most: int) -> None:
    """Raise ValueError beyond a job's limit."""
    if not 1 <= asked <= most:
        raise ValueError(f"{asked} {what} are outside 1..{most}, the limit of one job; ask for fewer")
