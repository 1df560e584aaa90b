"""Files in, files out: one call for each drawing command. Knows nothing of how codes are drawn.

Targets are checked before any work, pictures are written atomically, and each PNG records how it was made.
"""

# S side of the canvas in pixels

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from PIL import Image
from torch import Tensor

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.classes import class_names
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.color import to_srgb
from bigr_repr.images.decode import MAX_PIXELS, decode_with_profile
from bigr_repr.images.find import escape_path
from bigr_repr.painting.call import Painted, PhotoOptions
from bigr_repr.painting.masks import read_mask
from bigr_repr.painting.photos import enrich_photo, inpaint_photo, outpaint_within
from bigr_repr.painting.pictures import MOST_FRAMES, for_animation, grid, own_writer, write_gif, write_png
from bigr_repr.painting.windows import Margins, Mask, box_mask, margins_to_aspect
from bigr_repr.sampling.applications import interpolate
from bigr_repr.sampling.job import Job, Labels, Options, at_least_one, class_numbers
from bigr_repr.sampling.prompts import prompt_list
from bigr_repr.sampling.sampler import Iteration
from bigr_repr.sampling.settings import SamplingSettings
from bigr_repr.system.files import naming, partial_name, reserve
from bigr_repr.system.targets import check_target

Box = tuple[int, int, int, int]
OnProgress = Callable[[float, float], object]  # done, total

MOST = 10_000  # maximum number of versions of a photograph
_ROOM = 1 << 16  # free bytes of a disk on which pictures can be written
_FRAME_MS = 120
_WALK_MS = 250


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a call wrote: the pictures, other files made from them, and the time it took.

    drawn: number of pictures that this call drew; others already existed.
    """

    images: tuple[Path, ...]
    also: tuple[Path, ...] = ()
    drawn: int
    seconds: float


def provenance(
    pre: Pretrained, command: str, settings: SamplingSettings, options: Options, labels: Sequence[int] | None
) -> dict[str, Any]:
    """The provenance that a picture records: model, seed and settings, so that it can be reproduced."""
    from bigr_repr._version import __version__

    names, prompts = class_names(pre.config), prompts_of(options)
    conditional = labels is not None or prompts is not None
    of_text = {"prompts": prompts, "negative": options.get("negative")}
    return {
        "command": command,
        "version": __version__,
        "model": pre.config.name,
        "weights_sha256": pre.fingerprint,
        "precision": str(pre.generator.transformer.mask_tok.dtype).removeprefix("torch."),
        "seed": int(options.get("seed", 0)),
        "labels": None if labels is None else [int(label) for label in labels],
        "classes": None if labels is None or not names else [names[label] for label in labels],
        **(of_text if pre.config.generator.condition == "text" else {}),
        "settings": dataclasses.asdict(settings.resolved(pre.config.generator, conditional)),
    }


def class_list_of(pre: Pretrained, labels: Labels | None) -> list[int] | None:
    """Labels in any form as a list of numbers; None stays None. Raises ValueError as `class_numbers` does."""
    if labels is None:
        return None
    numbers: list[int] = class_numbers(pre, labels).tolist()
    return numbers


def prompts_of(options: Options) -> list[str] | None:
    """The prompts of a call; None if there are none. Raises as `prompt_list`."""
    prompt = options.get("prompt")
    return None if prompt is None else prompt_list(prompt)


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Images (B, 3, S, S) in [0, 1] as PIL images."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(row) for row in pixels]


def check_picture(path: Path, suffix: str) -> None:
    """Check, before any work, whether a picture can be written. Raises as `check_target`, OSError on a full disk."""
    check_target(path, suffix)
    probe = partial_name(path, own_writer())  # of its own: another process may be writing the file
    try:
        with naming(path, probe), probe.open("xb") as file:
            reserve(file, _ROOM)
    finally:
        probe.unlink(missing_ok=True)


# ---- painting into a photograph


@dataclass(frozen=True, kw_only=True)
class PhotoFile:
    """A photograph, where the result goes, and what is marked in it.

    out: a PNG; several versions become out-0.png, out-1.png and so on.  masks: images of the photograph's size, light
    and opaque where to paint; boxes: (left, top, right, bottom) in pixels; the mask is their union.  animate: write a
    GIF of the unmasking next to out; of a long one every second frame, or every fourth and so on, so that there are at
    most 256.  max_pixels: larger photographs, masks and results of outpainting are refused.
    """

    photo: PathLike
    out: PathLike
    masks: Sequence[PathLike] = ()
    boxes: Sequence[Box] = ()
    animate: bool = False
    max_pixels: int = MAX_PIXELS

    def read(self, versions: int) -> tuple[Image.Image, bytes | None]:
        """The photograph, upright, and its ICC profile, after checking that the results can be written.

        With a profile, which the results get too, the colors are the photograph's own values; without one, sRGB.

        Raises ImageError, OSError, and ValueError for results that would replace the photograph or a mask, and for more
        than 10,000 versions.
        """
        if at_least_one("count", versions) > MOST:
            raise ValueError(
                f"count={versions} is more than {MOST:,} versions of a photograph; make several calls, each with its "
                "own seed"
            )
        check_target(Path(self.out), ".png")
        pictures = self.targets(versions)
        longest = max(pictures, key=lambda path: len(path.name))  # if that can be written, so can the others
        for path in [*pictures, self.animation] if self.animate else pictures:
            if path in (longest, self.animation) or path.is_dir():
                check_picture(path, path.suffix.lower())
            for source in (self.photo, *self.masks):
                if path.exists() and Path(source).exists() and path.samefile(source):
                    raise ValueError(f"writing {path} would overwrite an input; choose another name for the result")
        return decode_with_profile(self.photo, max_pixels=self.max_pixels)

    def check(self, count: int | None = None) -> None:
        """Check inputs and outputs before a large model is loaded. Raises as `read` and `marked` do."""
        photo, _ = self.read(count or 1)
        if self.masks or self.boxes:
            self.marked(photo)

    def targets(self, versions: int) -> list[Path]:
        """The paths of this many versions."""
        out = Path(self.out)
        return [out] if versions == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(versions)]

    @property
    def facts(self) -> dict[str, Any]:
        """The source files, as a picture records them."""
        return {
            "photograph": _file_facts(self.photo),
            "masks": [_file_facts(mask) for mask in self.masks],
            "boxes": [[int(side) for side in box] for box in self.boxes],
        }

    @property
    def animation(self) -> Path:
        """Path of the GIF."""
        return Path(self.out).with_suffix(".gif")

    def marked(self, photo: Image.Image) -> Mask:
        """The union of all masks and boxes. Raises ValueError for a wrong size, or if there are none."""
        found = [read_mask(path, photo.size, max_pixels=self.max_pixels) for path in self.masks]
        found += [box_mask(*photo.size, box) for box in self.boxes]
        if not found:
            raise ValueError("nothing is marked: give a mask, an image that is light where to paint, or a box")
        union: Mask = np.logical_or.reduce(found)
        return union


def _file_facts(path: PathLike) -> dict[str, str]:
    with Path(path).open("rb") as file:
        return {"name": escape_path(Path(path).name), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def inpaint_file(
    pre: Pretrained,
    file: PhotoFile,
    labels: Labels | None = None,
    *,
    command: str = "inpaint",
    **options: Unpack[PhotoOptions],
) -> Written:
    """`inpaint_photo` from file to file. Raises what it does, ImageError for an unreadable file, OSError.

    command: the command that the pictures record; "edit" if labels say what replaces something.
    """
    numbers = class_list_of(pre, labels)
    photo, profile = file.read(_versions(numbers, options))
    paint = partial(inpaint_photo, pre, photo, file.marked(photo), numbers)
    return _Painter(pre, file, profile, numbers, command).paint(paint, options)


def outpaint_file(
    pre: Pretrained,
    file: PhotoFile,
    labels: Labels | None = None,
    *,
    margins: Margins | None = None,
    aspect: float | None = None,
    **options: Unpack[PhotoOptions],
) -> Written:
    """`outpaint_photo` from file to file, by margins or to an aspect ratio. Raises as `inpaint_file`."""
    if (margins is None) == (aspect is None):
        raise ValueError("give either the margins in pixels or an aspect ratio")
    numbers = class_list_of(pre, labels)
    photo, profile = file.read(_versions(numbers, options))
    if margins is None:
        margins = margins_to_aspect(*photo.size, aspect or 0.0, max_pixels=file.max_pixels)
    grown = margins

    def paint(**given: Unpack[PhotoOptions]) -> list[Image.Image]:
        return outpaint_within(pre, photo, grown, numbers, file.max_pixels, given)

    return _Painter(pre, file, profile, numbers, "outpaint").paint(paint, options, {"margins": list(grown)})


def enrich_file(
    pre: Pretrained,
    file: PhotoFile,
    labels: Labels | None = None,
    *,
    scale: int = 2,
    **options: Unpack[PhotoOptions],
) -> Written:
    """`enrich_photo` from file to file; without masks and boxes, the whole photograph. Raises as `inpaint_file`."""
    numbers = class_list_of(pre, labels)
    photo, profile = file.read(_versions(numbers, options))
    mask = file.marked(photo) if file.masks or file.boxes else None
    paint = partial(enrich_photo, pre, photo, numbers, mask=mask, scale=scale)
    return _Painter(pre, file, profile, numbers, "enrich").paint(paint, options, {"scale": scale})


def _versions(labels: Sequence[int] | None, options: PhotoOptions) -> int:
    """The number of pictures that a call makes."""
    return options.get("count") or len(labels or prompts_of(options) or [0])


@dataclass
class _Painter:
    """One call from file to file: what the pictures record, and the frames of the animation."""

    pre: Pretrained
    file: PhotoFile
    profile: bytes | None  # of the photograph
    labels: Sequence[int] | None
    command: str
    frames: list[Image.Image] = field(default_factory=list)
    used: dict[str, Any] = field(default_factory=dict)  # settings and pasting
    pace: int = 1  # of how many frames one is kept
    shown: int = 0  # frames so far, kept or not

    def paint(
        self,
        paint: Callable[..., list[Image.Image]],
        options: PhotoOptions,
        facts: Mapping[str, Any] | None = None,
    ) -> Written:
        """Call `paint`, and write its versions and the animation. facts: of the command, to record in the pictures."""
        started, file, labels = time.monotonic(), self.file, self.labels
        own = options.get("on_step")

        def watch(painted: Painted) -> None:
            self._watch(painted)
            if own is not None:
                own(painted)

        pictures = paint(**{**options, "on_step": watch})
        made = provenance(self.pre, self.command, self.used["settings"], options, labels) | file.facts
        made |= dict(facts or {}) | {"pasting": self.used["pasting"]}
        paths = file.targets(len(pictures))
        for version, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
            own_label = self._label(made, version) | {"image": int(options.get("first", 0)) + version}
            write_png(path, picture, made | own_label, self.profile)
        if file.animate:
            frames = [*self.frames, self._frame(pictures[0])]
            write_gif(file.animation, frames, milliseconds=_FRAME_MS, provenance=made)
        also = (file.animation,) if file.animate else ()
        return Written(images=tuple(paths), also=also, drawn=len(paths), seconds=time.monotonic() - started)

    def _watch(self, painted: Painted) -> None:
        self.used.update(settings=painted.settings, pasting=dataclasses.asdict(painted.pasting))
        if not self.file.animate or painted.picture is None:
            return
        if self.shown % self.pace == 0:
            if len(self.frames) == MOST_FRAMES - 1:  # the last frame is the result
                self.frames, self.pace = self.frames[::2], 2 * self.pace
            if self.shown % self.pace == 0:
                self.frames.append(self._frame(painted.picture()))
        self.shown += 1

    def _frame(self, picture: Image.Image) -> Image.Image:
        """A picture of the animation, in sRGB, for a GIF holds no profile."""
        small = for_animation(picture)
        conversion = to_srgb(self.profile) if self.profile else None
        return conversion(small) if conversion and conversion.mode == "RGB" else small

    def _label(self, made: Mapping[str, Any], version: int) -> dict[str, Any]:
        """The class or prompt of one version, if versions cycle through them."""
        in_turn = [key for key in ("labels", "classes", "prompts") if made.get(key) is not None]
        return {key: [made[key][version % len(made[key])]] for key in in_turn}


# ---- interpolation between classes


def interpolate_file(
    pre: Pretrained,
    labels: Labels | None,
    out: PathLike,
    *,
    frames: int = 9,
    smooth: bool = True,
    on_progress: OnProgress | None = None,
    **options: Unpack[Options],
) -> Written:
    """Write `interpolate` as a PNG strip, and as a GIF that goes back and forth. Raises as `interpolate`, OSError."""
    started, strip, walk = time.monotonic(), Path(out), Path(out).with_suffix(".gif")
    check_picture(strip, ".png")
    check_picture(walk, ".gif")

    own = options.get("callback")

    def watch(at: Iteration) -> None:
        if own is not None:
            own(at)
        if on_progress is not None:
            on_progress(min(images_done(at), frames), frames)  # intermediate classes are extra images

    settings, numbers = Job(pre, SamplingSettings(), options).settings, class_list_of(pre, labels)
    options = {**options, "callback": watch}
    pictures = to_pictures(interpolate(pre, numbers, frames=frames, smooth=smooth, **options))
    facts = {"frames": frames, "smooth": smooth, "first": int(options.get("first", 0))}
    record = provenance(pre, "interpolate", settings, options, numbers) | facts
    write_png(strip, grid(pictures, columns=frames), record)
    turns = (0, len(pictures) - 1)
    write_gif(walk, pictures + pictures[-2:0:-1], milliseconds=_WALK_MS, provenance=record, held=turns)
    return Written(images=(strip,), also=(walk,), drawn=frames, seconds=time.monotonic() - started)


def images_done(at: Iteration) -> float:
    """Images that a call has drawn so far, including fractions of those in progress."""
    return at.images[0] + len(at.images) * at.iteration / at.iterations
