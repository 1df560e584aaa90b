"""Images with class masks: folders of pictures and PNG files. Knows no models and no heads.

A folder contains `train` and `test` (or `val`), each with `images` and `masks`: a mask is a PNG with the picture's
name and size, and a class number in each pixel, 255 for none. `classes.txt` may list the class names, one per line.
"""

# H W size of a picture, S side of a square in pixels

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.datasets import FolderSet
from bigr_repr.evaluate.data.sources import TEST_NAMES
from bigr_repr.evaluate.data.text_lines import text_lines

__all__ = ["IGNORED", "SegmentSet", "class_names_of", "open_segments"]

IGNORED: Final = 255
_MODES: Final = ("1", "L", "P", "I", "I;16")


class SegmentSet(FolderSet):
    """One side: pictures cropped to their middle square, so that every network sees the same, and their masks."""

    def __init__(self, folder: PathLike) -> None:
        super().__init__(Path(folder) / "images")
        self.labels, self.class_names = None, ()
        masks = {file.stem: file for file in sorted((Path(folder) / "masks").glob("*.png"))}
        names = [Path(file).stem for file in self.files]
        if not names:
            raise FileNotFoundError(f"{folder}/images holds no pictures")
        if lost := [name for name in names if name not in masks]:
            raise FileNotFoundError(f"{folder}/masks lacks {len(lost)} masks, such as {lost[0]}.png")
        self.masks = [masks[name] for name in names]

    def load(self, index: int) -> Image.Image:
        image = super().load(index)
        return image.crop(_middle(image.width, image.height, 1.0))

    def mask(self, index: int, side: int, share: float = 1.0) -> NDArray[np.uint8]:
        """The classes in the middle square, or in a central part of it (`share` of its side): uint8 (S, S).

        Raises ValueError for a color mask, or one whose size differs from its picture's.
        """
        file = self.masks[index]
        with Image.open(file) as mask:
            if mask.mode not in _MODES:
                raise ValueError(f"{file} has mode {mask.mode}; a mask has one number per pixel, as palette or gray")
            classes = np.array(mask)
        if (size := super().load(index).size) != (classes.shape[1], classes.shape[0]):
            raise ValueError(f"{file} is {classes.shape[1]} x {classes.shape[0]}, its picture {size[0]} x {size[1]}")
        if classes.max() > IGNORED:
            raise ValueError(f"{file} holds the class {classes.max()}; the largest is {IGNORED - 1}")
        left, top, right, bottom = _middle(classes.shape[1], classes.shape[0], share)
        middle = Image.fromarray(classes.astype(np.uint8)[top:bottom, left:right])
        return np.asarray(middle.resize((side, side), Image.Resampling.NEAREST))


def open_segments(folder: PathLike) -> tuple[SegmentSet, SegmentSet]:
    """The training and the test side.  Raises FileNotFoundError that says what is missing."""
    place = Path(folder)
    test = next((place / name for name in TEST_NAMES if (place / name).is_dir()), None)
    if test is None or not (place / "train").is_dir():
        raise FileNotFoundError(f"{folder} needs the folders train and test, each with images and masks")
    return SegmentSet(place / "train"), SegmentSet(test)


def class_names_of(folder: PathLike) -> tuple[str, ...]:
    """The lines of classes.txt; empty without it."""
    file = Path(folder) / "classes.txt"
    return tuple(text_lines(file)) if file.is_file() else ()


def _middle(width: int, height: int, share: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the middle square whose side is this share of the shorter side."""
    side = max(1, round(share * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
