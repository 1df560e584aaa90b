"""Series of generated pictures in a folder, of any length: numbered files, resumable. Knows nothing of how they look.

A picture's number determines its noise and class, so a series can be interrupted, resumed and extended.
"""

# S side of the canvas in pixels, N tokens, K bits per token

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image
from torch import Tensor

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import decode_image
from bigr_repr.painting.files import (
    Written,
    check_picture,
    class_list_of,
    images_done,
    prompts_of,
    provenance,
    to_pictures,
)
from bigr_repr.painting.pictures import (
    MOST_FRAMES,
    for_animation,
    grid,
    recorded_text,
    write_gif,
    write_npz,
    write_png,
)
from bigr_repr.sampling.applications import generate
from bigr_repr.sampling.canvas import decode, partly
from bigr_repr.sampling.job import Job, Labels, Options, at_least_one
from bigr_repr.sampling.sampler import Iteration
from bigr_repr.sampling.settings import SamplingSettings
from bigr_repr.system.differences import differences
from bigr_repr.system.files import locked, replacing
from bigr_repr.system.records import read_record
from bigr_repr.system.targets import check_target, check_writable

SERIES_FILE = "generation.json"
MOST = 1_000_000  # maximum number of pictures: their numbers have six digits
SHOWN = 64  # maximum number of pictures in a grid or an animation
_MOST_COLUMNS = 16
_DECODED = 16  # pictures of an animation decoded together
_FRAME_MS = 120
_NUMBERED = re.compile(r"[0-9]{6}\.png")  # names of a series' pictures
_PARTIAL = f".{'[0-9]' * 6}.png*.part"  # and of those that a killed run was writing
_REMEDY = "choose another folder: out=DIR"


def generate_files(
    pre: Pretrained,
    out: PathLike,
    labels: Labels | None = None,
    *,
    count: int | None = None,
    sheet: PathLike | None = None,
    npz: PathLike | None = None,
    animation: PathLike | None = None,
    on_progress: Callable[[float, float], object] | None = None,
    **options: Unpack[Options],
) -> Written:
    """Generate a series into a folder: 000000.png, 000001.png, ..., cycling through classes or prompts.

    Existing pictures are not drawn again, and a folder with other settings is refused.  count: total number; None: one
    per label or prompt.  sheet: a PNG of the first 64.  npz: all of them as the array that ADM's evaluator reads.
    animation: a GIF of the unmasking of the first 64, which are drawn again for it; of at most 256 frames.  labels and
    options: as for `generate`, except `first`: a series starts at 0.

    Raises ValueError as `generate` does and for a folder of a different series, RuntimeError while another call draws
    into the folder, OSError if a file cannot be written.
    """
    started = time.monotonic()
    targets = [(Path(path), suffix) for path, suffix in ((sheet, ".png"), (npz, ".npz"), (animation, ".gif")) if path]
    series = _Series(pre, Path(out), labels, count, options)
    _check_targets(targets, series.folder)
    columns = len(series.labels or series.prompts or ())
    with series.claimed():
        recorder = None if animation is None else _Recorder(min(SHOWN, series.count))
        drawn = series.draw(recorder, on_progress)
        series.summarize(targets, recorder, columns if 2 <= columns <= _MOST_COLUMNS else None)
    also = tuple(path for path, _ in targets)
    return Written(images=tuple(series.paths()), also=also, drawn=drawn, seconds=time.monotonic() - started)


def _check_targets(targets: Sequence[tuple[Path, str]], folder: Path) -> None:
    """Raise ValueError or OSError if additional files of a series cannot be written."""
    for path, suffix in targets:
        if path.parent.is_dir():
            check_picture(path, suffix)
        else:
            check_target(path, suffix, made=folder)
        if path.parent.resolve() == folder.resolve() and _NUMBERED.fullmatch(path.name):
            raise ValueError(f"{path} has the name of a picture of the series itself; choose another")


class _Series:
    """A folder of numbered pictures of one provenance."""

    def __init__(
        self, pre: Pretrained, folder: Path, labels: Labels | None, count: int | None, options: Options
    ) -> None:
        if options.get("first"):
            raise ValueError(
                f"first={options['first']!r} is not allowed: a series starts at 0 and continues from its files"
            )
        self.pre, self.folder, self.options = pre, folder, options
        self.labels, self.prompts = class_list_of(pre, labels), prompts_of(options)
        self.count = at_least_one("count", len(self.labels or self.prompts or [0]) if count is None else count)
        if self.count > MOST:
            raise ValueError(
                f"count={count} is more than {MOST:,} pictures per folder; make several, each with its own seed"
            )
        job = Job(pre, SamplingSettings(), options)
        job.check(labels is not None or self.prompts is not None)
        self.chunk = job.batch_size  # pictures drawn together are written at once: a killed run loses at most these
        self.provenance = provenance(pre, "generate", job.settings, options, self.labels)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the folder, or check that it holds this series, and keep others from drawing into it."""
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is a file; choose a folder for the pictures")
        self.folder.mkdir(parents=True, exist_ok=True)
        busy = f"{self.folder}: another run is drawing into this folder; wait for it, or {_REMEDY}"
        with locked(self.folder, busy):
            self._claim(self.folder / SERIES_FILE)
            yield

    def _claim(self, file: Path) -> None:
        """Write the series' file, or check that it is that of this series."""
        if file.exists():
            differing = _differing(_read_series(file), self.provenance)
            if differing:
                raise ValueError(f"{self.folder} holds another series: {'; '.join(differing)}; {_REMEDY}")
            return
        if found := sorted(path.name for path in self.folder.glob("*.png") if _NUMBERED.fullmatch(path.name)):
            said = f"{found[0]}, but no {SERIES_FILE}: its pictures do not record how they were made"
            raise ValueError(f"{self.folder} holds {said}; {_REMEDY}")
        check_writable(self.folder)
        with replacing(file) as target:
            target.write(json.dumps(self.provenance, indent=1, ensure_ascii=False).encode())

    def paths(self) -> list[Path]:
        """The pictures' files, in order."""
        return [self.folder / f"{number:06d}.png" for number in range(self.count)]

    def draw(self, recorder: _Recorder | None, on_progress: Callable[[float, float], object] | None) -> int:
        """Draw what is missing, and what the recorder needs. Returns the number of pictures drawn."""
        watched = 0 if recorder is None else recorder.images
        own = self.options.get("callback")
        todo = [i for i, path in enumerate(self.paths()) if not self._drawn(path, i) or i < watched]
        done = self.count - len(todo)
        if todo:
            check_writable(self.folder)
            for left in self.folder.glob(_PARTIAL):
                left.unlink(missing_ok=True)
        for first, size in _runs(todo, self.chunk):

            def watch(at: Iteration, first: int = first, done: int = done) -> None:
                numbered = at._replace(images=tuple(first + image for image in at.images))
                if own is not None:
                    own(numbered)
                if recorder is not None:
                    recorder(numbered)
                if on_progress is not None:
                    on_progress(done + images_done(at), self.count)

            self._draw(first, size, watch)
            done += size
        return len(todo)

    def summarize(self, targets: Sequence[tuple[Path, str]], recorder: _Recorder | None, columns: int | None) -> None:
        """Write the sheet, the array and the animation: files with these suffixes. columns: None: automatic."""
        paths, side = self.paths(), self.pre.config.image_size
        for path, suffix in targets:
            if suffix == ".png":
                sheet = grid([decode_image(picture) for picture in paths[:SHOWN]], columns)
                write_png(path, sheet, self.provenance)
            elif suffix == ".npz":
                write_npz(path, (decode_image(picture) for picture in paths), (len(paths), side, side, 3))
            elif recorder is not None:
                frames = recorder.frames(self.pre, columns)
                write_gif(path, frames, milliseconds=_FRAME_MS, provenance=self.provenance)

    def _label(self, number: int) -> list[int] | None:
        """The class that a picture records; None without classes."""
        return None if self.labels is None else [self.labels[number % len(self.labels)]]

    def _prompts(self, number: int) -> dict[str, list[str]]:
        """The prompt that a picture records; empty without prompts."""
        return {} if self.prompts is None else {"prompts": [self.prompts[number % len(self.prompts)]]}

    def _drawn(self, path: Path, number: int) -> bool:
        """Whether a picture already exists and is complete. Raises ValueError for a picture of another series."""
        if not path.exists():
            return False
        try:
            said = json.loads(recorded_text(path, verified=True) or "{}")
        except (OSError, ValueError, RecursionError):
            return False  # damaged: drawn again
        wanted = {key: self.provenance[key] for key in ("weights_sha256", "precision", "seed", "settings")}
        wanted |= {"image": number, "labels": self._label(number), **self._prompts(number)}
        wanted |= {"negative": self.provenance["negative"]} if "negative" in self.provenance else {}
        if not isinstance(said, dict) or {key: said.get(key) for key in wanted} != wanted:
            raise ValueError(f"{path} is not picture {number} of this series; move it away, then repeat the command")
        return True

    def _draw(self, first: int, size: int, watch: Callable[[Iteration], None]) -> None:
        numbers = range(first, first + size)
        labels = [label for number in numbers for label in self._label(number) or ()] or None
        options: Options = {**self.options, "first": first, "callback": watch}
        if self.prompts is not None:
            options["prompt"] = [text for number in numbers for text in self._prompts(number)["prompts"]]
        images = generate(self.pre, labels, count=size, **options)
        for index, picture in enumerate(to_pictures(images)):
            own: dict[str, Any] = {"image": first + index, "labels": self._label(first + index)}
            own |= self._prompts(first + index)
            if self.provenance["classes"] is not None:
                own["classes"] = [self.provenance["classes"][(first + index) % len(self.provenance["classes"])]]
            write_png(self.folder / f"{first + index:06d}.png", picture, self.provenance | own)


def _read_series(file: Path) -> dict[str, Any]:
    """The record of a series. Raises ValueError for a damaged one."""
    return read_record(file, remedy=f"the settings of the pictures are unknown, so {_REMEDY}")


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """How two provenances differ, in words, ignoring the version; settings by their own names."""
    return [each.removeprefix("settings.") for each in differences(found, wanted, ignored=["version"])]


def _runs(numbers: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """Ascending numbers as runs of consecutive ones: (first, length), of bounded length."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1 or i - start == longest:
            yield numbers[start], i - start
            start = i


@dataclass
class _Recorder:
    """A callback that records iterations of the first images, at most `MOST_FRAMES`, and turns them into frames."""

    images: int
    _seen: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, at: Iteration) -> None:
        every = -(-at.iterations // (MOST_FRAMES - 1))
        if at.iteration % every and at.iteration != at.iterations:
            return
        for row, image in enumerate(at.images):
            if image < self.images:
                self._seen[image, at.iteration] = at.codes[row].bool().cpu(), at.masked[row].cpu()

    @torch.inference_mode()
    def frames(self, pre: Pretrained, columns: int | None) -> list[Image.Image]:
        """A grid of the images after every recorded iteration, masked tokens in gray; the first all masked."""
        iterations = sorted({iteration for _, iteration in self._seen})
        gray = Image.new("RGB", (pre.config.image_size,) * 2, (128, 128, 128))
        sheets = [for_animation(grid([gray] * self.images, columns))]
        for iteration in iterations:
            pictures: list[Image.Image] = []
            for start in range(0, self.images, _DECODED):
                part = [self._seen[i, iteration] for i in range(start, min(start + _DECODED, self.images))]
                codes, masked = (torch.stack(list(rows)).to(pre.device) for rows in zip(*part, strict=True))
                pictures += to_pictures(partly(pre, decode(pre, codes.float()), masked))
            sheets.append(for_animation(grid(pictures, columns)))
        return sheets
