"""What the page does with what is entered on it: files in, files out, by the library's calls. Knows no Gradio."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.checkpoints import Pretrained
from bigr_repr.images import decode
from bigr_repr.sampling.files import PhotoFile, enrich_file, inpaint_file, interpolate_file, outpaint_file
from bigr_repr.sampling.job import Options
from bigr_repr.sampling.labels import class_list, class_names
from bigr_repr.sampling.photos import Pasting
from bigr_repr.sampling.series import generate_files
from bigr_repr.sampling.settings import FAST
from bigr_repr.sampling.windows import margins_to_aspect

OnProgress = Callable[[float, float], object]
SHOWN = 1024  # pixels of the longer side of the copy that is painted on


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The settings of the page; None leaves one to the library."""

    seed: int = 0
    fast: bool = False
    steps: int | None = None
    order: str | None = None
    diffusion_steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None

    def options(self) -> Options:
        """As keywords of the library."""
        found: Any = {"settings": FAST} if self.fast else {}
        found["seed"] = self.seed
        for name in ("steps", "order", "diffusion_steps", "guidance", "temperature"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        options: Options = found
        return options


class Studio:
    """A model and the folder where its pictures are kept. Raises OSError for a folder that cannot be written."""

    def __init__(self, pre: Pretrained, out: Path) -> None:
        self.pre, self.out = pre, out
        out.mkdir(parents=True, exist_ok=True)
        trained = pre.config.training.get("settings")
        conditional = not (isinstance(trained, dict) and trained.get("conditional") is False)
        numbered = tuple(map(str, range(pre.config.generator.classes)))
        self.classes = (class_names(pre.config) or numbered) if conditional else ()

    def shown(self, photo: str) -> Image.Image:
        """The photograph as it is painted on: upright, at most 1024 pixels per side. Raises ImageError."""
        image = decode(photo)
        image.thumbnail((SHOWN, SHOWN))
        return image

    def inpaint(
        self,
        photo: str | None,
        strokes: Sequence[NDArray[np.uint8]],
        label: str | None,
        count: int,
        pasting: Pasting,
        choices: Choices,
        on_progress: OnProgress,
    ) -> list[Path]:
        """What is under the strokes painted anew."""
        out = self._target("inpainted")
        file = PhotoFile(photo=_opened(photo), out=out, masks=[self._mask(photo, strokes, out)])
        done = inpaint_file(
            self.pre, file, self._labels(label), count=count, pasting=pasting, on_progress=on_progress,
            **choices.options(),
        )  # fmt: skip
        return list(done.images)

    def outpaint(
        self,
        photo: str | None,
        aspect: float,
        label: str | None,
        count: int,
        pasting: Pasting,
        choices: Choices,
        on_progress: OnProgress,
    ) -> list[Path]:
        """The photograph continued on both sides to an aspect, width over height."""
        source = _opened(photo)
        margins = margins_to_aspect(*decode(source).size, aspect)
        done = outpaint_file(
            self.pre, PhotoFile(photo=source, out=self._target("outpainted")), self._labels(label), margins=margins,
            count=count, pasting=pasting, on_progress=on_progress, **choices.options(),
        )  # fmt: skip
        return list(done.images)

    def enrich(
        self,
        photo: str | None,
        strokes: Sequence[NDArray[np.uint8]],
        label: str | None,
        count: int,
        pasting: Pasting,
        choices: Choices,
        on_progress: OnProgress,
    ) -> list[Path]:
        """New detail under the strokes, or everywhere if there are none."""
        out = self._target("enriched")
        masks = [self._mask(photo, strokes, out)] if _painted(strokes) else []
        done = enrich_file(
            self.pre, PhotoFile(photo=_opened(photo), out=out, masks=masks), self._labels(label), count=count,
            pasting=pasting, on_progress=on_progress, **choices.options(),
        )  # fmt: skip
        return list(done.images)

    def generate(self, labels: Sequence[str], count: int, choices: Choices, on_progress: OnProgress) -> list[Path]:
        """A folder of new pictures, the classes in turn."""
        classes = class_list(self.pre.config, labels) if labels else None
        done = generate_files(
            self.pre, self._target("generated").with_suffix(""), classes, count=max(count, len(labels)),
            on_progress=on_progress, **choices.options(),
        )  # fmt: skip
        return list(done.images)

    def interpolate(self, start: str, end: str, frames: int, choices: Choices, on_progress: OnProgress) -> list[Path]:
        """A walk between two classes: the animation, and the strip."""
        labels = class_list(self.pre.config, [start]) + class_list(self.pre.config, [end])
        done = interpolate_file(
            self.pre, labels, self._target("interpolated"), frames=frames, on_progress=on_progress, **choices.options()
        )
        return [*done.also, *done.images]

    def _labels(self, label: str | None) -> list[int] | None:
        return class_list(self.pre.config, [label]) if label else None

    def _target(self, name: str) -> Path:
        """A name that is not taken, by the time of day."""
        stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        number, path = 1, self.out / f"{stem}.png"
        while any(self.out.glob(f"{path.stem}*")):
            number += 1
            path = self.out / f"{stem}-{number}.png"
        return path

    def _mask(self, photo: str | None, strokes: Sequence[NDArray[np.uint8]], out: Path) -> Path:
        """The strokes as a mask of the photograph's size, kept beside the picture so that it can be made again."""
        size = decode(_opened(photo)).size
        if not _painted(strokes):
            raise ValueError("nothing is marked; paint over what is to be replaced")
        marked = np.logical_or.reduce([layer[..., 3] > 0 for layer in strokes])
        mask = out.with_stem(f"{out.stem}-mask")
        Image.fromarray(marked).convert("L").resize(size, Image.Resampling.NEAREST).save(mask)
        return mask


def _opened(photo: str | None) -> str:
    if photo is None:
        raise ValueError("no photograph is open; open one first")
    return photo


def _painted(strokes: Sequence[NDArray[np.uint8]]) -> bool:
    return any(bool(layer[..., 3].any()) for layer in strokes)
