"""A subset of an image set. Knows nothing of why images were chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from PIL import Image

from bigr_repr.datasets.image_set import ImageSet, IntArray


class Subset(ImageSet):
    """Some images of a set, by number (n,), with their own labels (n,) or none."""

    def __init__(self, images: ImageSet, rows: IntArray, labels: IntArray | None, names: Sequence[str] = ()) -> None:
        self._images, self._rows = images, rows
        self.labels, self.class_names = labels, tuple(names)

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, index: int) -> Image.Image:
        return self._images.load(int(self._rows[index]))

    def fingerprint(self) -> str:
        labels = None if self.labels is None else self.labels.tolist()
        facts = [self._images.fingerprint(), self._rows.tolist(), labels]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
