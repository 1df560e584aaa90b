"""Files in, files out: what the drawing commands do, in one call each. Knows nothing of how codes are drawn.

Targets are checked before any work, pictures appear whole, and each PNG says how it was made.
"""

# S side of the canvas in pixels

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from PIL import Image
from torch import Tensor

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.classes import class_names
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import decode_image
from bigr_repr.images.find import escape_path
from bigr_repr.painting.masks import color_profile, read_mask
from bigr_repr.painting.photos import Painted, Pasting, edit_photo, enrich_photo, inpaint_photo, outpaint_photo
from bigr_repr.painting.pictures import check_target, for_animation, grid, write_gif, write_png
from bigr_repr.painting.windows import Margins, Mask, box_mask, margins_to_aspect
from bigr_repr.sampling.applications import interpolate
from bigr_repr.sampling.job import Job, Options
from bigr_repr.sampling.sampler import Iteration
from bigr_repr.sampling.settings import SamplingSettings

Box = tuple[int, int, int, int]
OnProgress = Callable[[float, float], object]  # done, total
OnStep = Callable[[Painted], object]

_FRAME_MS = 120
_WALK_MS = 250


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a call wrote: the pictures themselves, other files made of them, and how long it took.

    drawn: pictures that this call drew; others were there from an earlier one.
    """

    images: tuple[Path, ...]
    also: tuple[Path, ...] = ()
    drawn: int
    seconds: float


def origin(
    pre: Pretrained, command: str, settings: SamplingSettings, options: Options, labels: Sequence[int] | None
) -> dict[str, Any]:
    """What a picture says about how it was made; with model, seed and settings it can be made again."""
    from bigr_repr._version import __version__

    names = class_names(pre.config)
    return {
        "command": command,
        "version": __version__,
        "model": pre.config.name,
        "weights_sha256": pre.fingerprint,
        "precision": str(pre.generator.transformer.mask_tok.dtype).removeprefix("torch."),
        "seed": int(options.get("seed", 0)),
        "labels": None if labels is None else [int(label) for label in labels],
        "classes": None if labels is None or not names else [names[label] for label in labels],
        "settings": dataclasses.asdict(settings.resolved(pre.config.generator, labels is not None)),
    }


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Images (B, 3, S, S) in [0, 1] as PIL images."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(row) for row in pixels]


# ---- painting into a photograph


@dataclass(frozen=True, kw_only=True)
class PhotoFile:
    """A photograph, where the result goes, and what is marked in it.

    out: a PNG; several versions become out-0.png, out-1.png and so on.  masks: images of the photograph's size, light
    and opaque where to paint; boxes: (left, top, right, bottom) in pixels; all of them together are the mask.  animate:
    a GIF of the unmasking, beside out.
    """

    photo: PathLike
    out: PathLike
    masks: Sequence[PathLike] = ()
    boxes: Sequence[Box] = ()
    animate: bool = False

    def read(self, versions: int) -> Image.Image:
        """The photograph, upright, after checking that the results can be written.

        Raises ImageError, OSError, and ValueError for results that would replace the photograph or a mask.
        """
        check_target(Path(self.out), ".png")
        pictures = self.targets(versions)
        for path in [*pictures, self.animation] if self.animate else pictures:
            check_target(path, path.suffix.lower())
            for source in (self.photo, *self.masks):
                if path.exists() and Path(source).exists() and path.samefile(source):
                    raise ValueError(f"writing {path} would overwrite an input; choose another name for the result")
        return decode_image(self.photo)

    def check(self, count: int | None = None) -> None:
        """See to inputs and outputs before a large model is loaded. Raises as `read` and `marked` do."""
        photo = self.read(count or 1)
        if self.masks or self.boxes:
            self.marked(photo)

    def targets(self, versions: int) -> list[Path]:
        """Where so many versions go."""
        out = Path(self.out)
        return [out] if versions == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(versions)]

    @property
    def facts(self) -> dict[str, Any]:
        """What a picture says of the files that it was made of."""
        return {
            "photograph": _file_facts(self.photo),
            "masks": [_file_facts(mask) for mask in self.masks],
            "boxes": [[int(side) for side in box] for box in self.boxes],
        }

    @property
    def animation(self) -> Path:
        """Where the GIF goes."""
        return Path(self.out).with_suffix(".gif")

    def marked(self, photo: Image.Image) -> Mask:
        """The mask of all masks and boxes. Raises ValueError for one of another size, or for none at all."""
        found = [read_mask(path, photo.size) for path in self.masks]
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
    labels: Sequence[int] | None = None,
    *,
    count: int | None = None,
    pasting: Pasting | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[Options],
) -> Written:
    """`inpaint_photo` from file to file. Raises what it does, ImageError for an unreadable file, OSError."""
    photo = file.read(_versions(labels, count))
    paint = partial(inpaint_photo, pre, photo, file.marked(photo), labels)
    return _paint(pre, "inpaint", file, paint, labels, count, pasting, on_step, options)


def edit_file(
    pre: Pretrained,
    file: PhotoFile,
    labels: Sequence[int],
    *,
    count: int | None = None,
    pasting: Pasting | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[Options],
) -> Written:
    """`edit_photo` from file to file. Raises as `inpaint_file`."""
    photo = file.read(_versions(labels, count))
    paint = partial(edit_photo, pre, photo, file.marked(photo), labels)
    return _paint(pre, "edit", file, paint, labels, count, pasting, on_step, options)


def outpaint_file(
    pre: Pretrained,
    file: PhotoFile,
    labels: Sequence[int] | None = None,
    *,
    margins: Margins | None = None,
    aspect: float | None = None,
    count: int | None = None,
    pasting: Pasting | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[Options],
) -> Written:
    """`outpaint_photo` from file to file, by margins or to an aspect, width over height. Raises as `inpaint_file`."""
    if (margins is None) == (aspect is None):
        raise ValueError("give either the pixels to grow by or an aspect")
    photo = file.read(_versions(labels, count))
    grown = margins if margins is not None else margins_to_aspect(*photo.size, aspect or 0.0)
    paint = partial(outpaint_photo, pre, photo, grown, labels)
    facts = {"margins": list(grown)}
    return _paint(pre, "outpaint", file, paint, labels, count, pasting, on_step, options, facts)


def enrich_file(
    pre: Pretrained,
    file: PhotoFile,
    labels: Sequence[int] | None = None,
    *,
    scale: int = 2,
    count: int | None = None,
    pasting: Pasting | None = None,
    on_step: OnStep | None = None,
    **options: Unpack[Options],
) -> Written:
    """`enrich_photo` from file to file; without masks and boxes, all of the photograph. Raises as `inpaint_file`."""
    photo = file.read(_versions(labels, count))
    mask = file.marked(photo) if file.masks or file.boxes else None
    paint = partial(enrich_photo, pre, photo, labels, mask=mask, scale=scale)
    return _paint(pre, "enrich", file, paint, labels, count, pasting, on_step, options, {"scale": scale})


def _versions(labels: Sequence[int] | None, count: int | None) -> int:
    """How many pictures a call makes."""
    return count or (len(labels) if labels else 1)


def _paint(
    pre: Pretrained,
    command: str,
    file: PhotoFile,
    paint: Callable[..., list[Image.Image]],
    labels: Sequence[int] | None,
    count: int | None,
    pasting: Pasting | None,
    on_step: OnStep | None,
    options: Options,
    facts: Mapping[str, Any] | None = None,
) -> Written:
    """Call `paint`, write its versions and the animation. `facts` are the command's own, for the pictures to say."""
    started, frames, used = time.monotonic(), [], dict[str, Any]()

    def watch(painted: Painted) -> None:
        used.update(settings=painted.settings, pasting=dataclasses.asdict(painted.pasting))
        if file.animate and painted.picture is not None:
            frames.append(for_animation(painted.picture()))
        if on_step is not None:
            on_step(painted)

    pictures = paint(count=count, pasting=pasting, on_step=watch, **options)
    record = origin(pre, command, used.pop("settings"), options, labels) | file.facts | dict(facts or {}) | used
    first, profile = options.get("first", 0), color_profile(file.photo)
    paths = file.targets(len(pictures))
    for number, (path, picture) in enumerate(zip(paths, pictures, strict=True), first):
        write_png(path, picture, record | {"image": number}, profile)
    if file.animate:
        write_gif(file.animation, [*frames, pictures[0]], milliseconds=_FRAME_MS, origin=record)
    also = (file.animation,) if file.animate else ()
    return Written(images=tuple(paths), also=also, drawn=len(paths), seconds=time.monotonic() - started)


# ---- a walk between classes


def interpolate_file(
    pre: Pretrained,
    labels: Sequence[int],
    out: PathLike,
    *,
    frames: int = 9,
    on_progress: OnProgress | None = None,
    **options: Unpack[Options],
) -> Written:
    """`interpolate` as a strip, a PNG, and beside it as a GIF that goes there and back. Raises as it does, OSError."""
    started, strip, walk = time.monotonic(), Path(out), Path(out).with_suffix(".gif")
    check_target(strip, ".png")
    check_target(walk, ".gif")

    own = options.get("callback")

    def watch(at: Iteration) -> None:
        if own is not None:
            own(at)
        if on_progress is not None:
            on_progress(images_done(at), frames)

    settings = Job(pre, SamplingSettings(), options).settings
    options = {**options, "callback": watch}
    pictures = to_pictures(interpolate(pre, labels, frames=frames, **options))
    record = origin(pre, "interpolate", settings, options, labels)
    write_png(strip, grid(pictures, columns=frames), record | {"frames": frames})
    turns = (0, len(pictures) - 1)
    write_gif(walk, pictures + pictures[-2:0:-1], milliseconds=_WALK_MS, origin=record, held=turns)
    return Written(images=(strip,), also=(walk,), drawn=frames, seconds=time.monotonic() - started)


def images_done(at: Iteration) -> float:
    """Images that a call has drawn so far, with the share of those being drawn."""
    return at.images[0] + len(at.images) * at.iteration / at.iterations
