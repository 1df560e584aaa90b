"""Pictures of an adaptation's classes for the report: the user's, and what the model draws."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.sampling.applications import generate
from bigr_repr.sampling.settings import FAST, usual_settings
from bigr_repr.train.adaptation import Adapted


def class_pictures(pre: Pretrained, label: int | None, count: int, *, seed: int = 0) -> list[Image.Image]:
    """`count` pictures of a class, or without one, drawn with the settings of generate --fast."""
    settings = usual_settings(pre.config.generator, FAST)
    images = generate(pre, labels=label, count=count, settings=settings, seed=seed).clamp(0, 1).cpu()
    pixels = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(each) for each in pixels]


class Subject(NamedTuple):
    """A class to show: its held-out rows, and its number in the model before (None if unknown) and after."""

    name: str
    rows: NDArray[np.int64]
    before: int | None
    after: int | None


def subjects(made: Adapted, most: int) -> list[Subject]:
    """The first classes of an adaptation's pictures; without labels, a single subject, "no class"."""
    images, names = made.images, made.after.config.class_names
    if images.labels is None:
        return [Subject("no class", made.held_out, None, None)]
    known, found = made.before.config.class_names, []
    own = images.class_names or tuple(str(number) for number in range(int(images.labels.max()) + 1))
    for number in np.unique(images.labels[made.held_out]).tolist()[:most]:
        rows, name = made.held_out[images.labels[made.held_out] == number], own[number]
        found.append(Subject(name, rows, known.index(name) if name in known else None, names.index(name)))
    return found


def held_out_pictures(made: Adapted, rows: NDArray[np.int64]) -> list[Image.Image]:
    """The user's own pictures as the model sees them."""
    side = made.after.config.image_size
    return [Image.fromarray(made.images.load_square(int(row), side)) for row in rows]
