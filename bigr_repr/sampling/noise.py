"""The source of randomness: uniform numbers per image. Knows nothing of models or their use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Draws(Protocol):
    """A source of uniform numbers for a batch of images. Anything with this method can replace `SeededDraws`."""

    def uniform(self, counts: Sequence[int], blocks: int, width: int) -> Tensor:
        """Numbers in [0, 1): (blocks, sum(counts), width), float32.

        `counts` has one entry per image; the second axis has counts[0] rows for image 0, then counts[1] rows for image
        1, and so on. What image i gets must depend only on its own counts, not on the rest of the batch.
        """
        ...


def _generator(seed: int, image: int) -> torch.Generator:
    # torch's CPU generator reads 32 bits of its seed. An odd multiplier maps image numbers to them one to one, so no
    # two of the first 2**32 images of a seed share their noise; the start differs from seed to seed.
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.Generator().manual_seed((start + image * 0x9E3779B1) % 2**32)


class SeededDraws:
    """Draws from one CPU generator per image: image `i` of a seed gets the same numbers in any batch, on any device.

    seed: 0 or more; images: the number of each image of the batch, 0 or more (the same number twice: the same noise).
    """

    def __init__(self, seed: int, images: Sequence[int]) -> None:
        for name, value in [("seed", seed), *(("image number", image) for image in images)]:
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name}={value!r} is not allowed: it must be a whole number of at least 0")
        self._generators = [_generator(seed, image) for image in images]

    def uniform(self, counts: Sequence[int], blocks: int, width: int) -> Tensor:
        pairs = zip(counts, self._generators, strict=True)
        parts = [torch.rand(blocks, count, width, generator=generator) for count, generator in pairs if count]
        return parts[0] if len(parts) == 1 else torch.cat([torch.empty(blocks, 0, width), *parts], dim=1)
