"""Whether a model has seen a data set in training, according to its record. Knows no models or images."""

from __future__ import annotations

import re
from typing import Final

# Names in training records for a benchmark's data set, and the larger sets that contain its images.
_NAMES: Final = {
    "cifar100": ("cifar100",),
    "cifar10": ("cifar10",),
    "tinyimagenet": ("tinyimagenet", "imagenet"),
    "imagenette": ("imagenette", "imagenet"),
    "imagenet": ("imagenet",),
    "places365": ("places365", "places"),
    "stl10": ("stl10",),
    "food101": ("food101",),
    "flowers102": ("flowers102",),
    "eurosat": ("eurosat",),
}


def trained_on(data: str, training: str, *, labels: bool) -> str | None:
    """A note that a model was trained on the images (and labels) of a data set; None if its record does not say so.

    data: name of the data set or its file. training: the model's training record.
    labels: whether training used labels.
    """
    called = next((name for name in _NAMES if name in _letters(data)), None)
    said = [_letters(word) for word in re.split(r"[\s,;:()\"]+", training.replace("Tiny ImageNet", "Tiny-ImageNet"))]
    if called is None or not any(
        word.startswith(name) and _ends(word, name) for word in said for name in _NAMES[called]
    ):
        return None
    return f"trained on this data set's images{' and labels' if labels else ''}, as its training record says"


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _ends(word: str, name: str) -> bool:
    """Whether a word is a name, possibly with a variant, such as "imagenet1k"; "cifar100" is not "cifar10"."""
    rest = word[len(name) :]
    return not rest or not name[-1].isdigit() or not rest[0].isdigit()
