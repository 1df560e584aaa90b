"""The synthetic world of captions as an image set. Knows nothing of how scenes are made or described."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from bigr_repr.captions.scenes import draw, make_scene
from bigr_repr.captions.wording import captions_of
from bigr_repr.datasets.image_set import ImageSet, fingerprint_of

_SCENES = 10_000


class SceneSet(ImageSet):
    """Pictures of the synthetic world with their captions, generated on demand: scenes 0..count-1 of a seed.

    held_out: scenes with a pair of color and shape that the others never have.
    """

    def __init__(self, count: int, *, seed: int = 0, held_out: bool = False, side: int = 64) -> None:
        self._facts = [count, seed, held_out, side]
        self._scenes = [make_scene(seed, number, held_out=held_out) for number in range(count)]
        self._side = side
        self._captions = [captions_of(scene) for scene in self._scenes]

    def __len__(self) -> int:
        return len(self._scenes)

    @property
    def captions(self) -> Sequence[Sequence[str]]:
        return self._captions

    def load(self, index: int) -> Image.Image:
        return draw(self._scenes[index], self._side)

    def fingerprint(self) -> str:
        return fingerprint_of(["synthetic-captions", *self._facts])


def scene_set(source: str, train: bool) -> SceneSet:
    """The set for "synthetic-captions", "synthetic-captions:COUNT" or "synthetic-captions:COUNT:held-out"."""
    _, count, which = (*source.split(":", 2), "", "")[:3]
    if not (count or "1").isdecimal() or which not in ("", "held-out"):
        raise ValueError(f"{source}: expected synthetic-captions:COUNT or synthetic-captions:COUNT:held-out")
    return SceneSet(int(count or _SCENES), seed=0 if train else 1, held_out=which == "held-out")
