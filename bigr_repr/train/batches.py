"""Training batches as a pure function of (seed, step): the same after a resume, and for any number of workers or ranks.

Knows nothing of models, losses or checkpoints.
"""

# B images of one rank's batch, S side in pixels, N tokens, K bits per token

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bigr_repr.datasets import ImageSet
from bigr_repr.images.formats import ImageError
from bigr_repr.train.alignment import AlignmentFeatures
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.stopping import ignore_stop_signals

# One drawn item: the image, and its position in the endless stream of items, which seeds its flip and crop.
Draw = tuple[int, int]


class Batch(NamedTuple):
    """Either `images`, uint8 (B, 3, S, S), or `codes`, bool (B, N, K); labels int64 (B,) or None.

    `captions` (B, T, E), float16, and `caption_lengths` (B,), int64, are as in `Captions`, one per image, if the data
    have captions. `features` (B, N, F) and `pooled` (B, G), float32, are another network's, for a generator aligned
    with it.
    """

    images: Tensor | None
    codes: Tensor | None
    labels: Tensor | None
    features: Tensor | None = None
    pooled: Tensor | None = None
    captions: Tensor | None = None
    caption_lengths: Tensor | None = None


class StreamSampler(Sampler[list[Draw]]):
    """Endless batches: concatenated permutations of the items, cut into global batches; each rank takes its part.

    The global batch of a step is the same for any number of ranks.
    """

    def __init__(
        self, items: int, batch_size: int, *, seed: int, first_step: int, rank: int = 0, ranks: int = 1
    ) -> None:
        if batch_size < ranks or batch_size % ranks:
            raise ValueError(f"batch_size={batch_size} must be a multiple of the number of processes ({ranks})")
        self._items, self._batch_size, self._seed = items, batch_size, seed
        self._first_step, self._rank, self._ranks = first_step, rank, ranks

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        step = self._first_step
        while True:
            start = step * self._batch_size
            draws = []
            for position in range(start + self._rank, start + self._batch_size, self._ranks):
                if position // self._items != epoch:
                    epoch = position // self._items
                    order = np.random.default_rng([self._seed, epoch]).permutation(self._items)
                draws.append((int(order[position % self._items]), position))
            yield draws
            step += 1


class _ImageItems(Dataset[Any]):
    def __init__(self, images: ImageSet, size: int, crop: int, flip: bool, least: float, seed: int) -> None:
        self._images, self._size, self._crop, self._seed = images, size, crop, seed
        self._flip, self._least = flip, least

    def _pixels(self, draw: Draw) -> np.ndarray[Any, np.dtype[np.uint8]]:
        index, position = draw
        rng = np.random.default_rng([self._seed, position, 1])
        if self._least < 1:
            pixels = self._images.load_part(index, self._size, rng, least=self._least, mirror=self._flip)
        else:
            pixels = self._images.load_square(index, self._size)
            if self._flip and rng.random() < 0.5:
                pixels = pixels[:, ::-1]
        top, left = rng.integers(0, self._size - self._crop + 1, size=2)
        return pixels[top : top + self._crop, left : left + self._crop]

    def __getitems__(self, draws: Sequence[Draw]) -> Batch | ImageError:
        try:
            pixels = np.stack([self._pixels(draw) for draw in draws])
        except ImageError as error:
            return error  # raised in another process, it would arrive as the text of a traceback
        labels = None
        if self._images.labels is not None:
            labels = torch.from_numpy(self._images.labels[[index for index, _ in draws]])
        return Batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), None, labels)


class _CodeItems(Dataset[Any]):
    def __init__(self, codes: CodeSet, seed: int, features: AlignmentFeatures | None) -> None:
        self._codes, self._seed, self._features = codes, seed, features

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        view = np.array([int(np.random.default_rng([self._seed, p, 1]).integers(self._codes.views)) for _, p in draws])
        drawn, epochs = (np.array(each) for each in zip(*((i, p // len(self._codes)) for i, p in draws), strict=True))
        index = self._codes.numbers(drawn, epochs)
        labels = None if self._codes.labels is None else torch.from_numpy(self._codes.labels[index])
        features = (None, None) if self._features is None else self._features.rows(index, view)
        bits = torch.from_numpy(self._codes.bits(index, view))
        return Batch(None, bits, labels, *features, *self._captions(index, draws))

    def _captions(self, index: NDArray[np.int64], draws: Sequence[Draw]) -> tuple[Tensor, ...]:
        """A random caption of each image (B,)."""
        if self._codes.captions is None:
            return ()
        choices = [float(np.random.default_rng([self._seed, position, 2]).random()) for _, position in draws]
        found = self._codes.captions.draw(index.tolist(), choices)
        return tuple(map(torch.from_numpy, found))


def _as_is(batch: Any) -> Any:
    return batch


def _checked(loaded: Iterable[Batch | ImageError]) -> Iterator[Batch]:
    for batch in loaded:
        if isinstance(batch, ImageError):
            raise batch
        yield batch


def check_crop(crop: int | None, image_size: int) -> None:
    """Raise ValueError for crops larger than the images."""
    if crop is not None and not 0 < crop <= image_size:
        raise ValueError(f"crop={crop} is outside 1..{image_size} (image_size)")


class Drawn(Protocol):
    """A recipe that says how images are drawn."""

    @property
    def mirror(self) -> bool:
        """Whether every other one is mirrored."""
        ...

    @property
    def least_area(self) -> float:
        """The minimum share of its area that is drawn."""
        ...


def views_of(recipe: Drawn) -> dict[str, Any]:
    """A recipe's view options as keyword arguments of `batches`."""
    return {"flip": recipe.mirror, "least_area": recipe.least_area}


def batches(
    source: ImageSet | CodeSet,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    image_size: int,
    crop: int | None = None,
    flip: bool = True,
    least_area: float = 1.0,
    features: AlignmentFeatures | None = None,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """Endless batches of this rank from `first_step` on.

    Images are resized and center-cropped to `image_size`; with `least_area` below 1, a random crop of at least that
    share of the area is used instead. Then they are mirrored half the time, with `flip`, and, with `crop`, cut to a
    random square of that side. `batch_size` is global; it must be a multiple of `ranks`. Raises ImageError for an
    unreadable picture when its batch is due.
    """
    check_crop(crop, image_size)
    sampler = StreamSampler(len(source), batch_size, seed=seed, first_step=first_step, rank=rank, ranks=ranks)
    items: Dataset[Any]
    if isinstance(source, CodeSet):
        items = _CodeItems(source, seed, features)
    else:
        items = _ImageItems(source, image_size, crop or image_size, flip, least_area, seed)
    context = "spawn" if workers else None  # forking a process with running threads can hang
    return _checked(
        DataLoader(
            items,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_as_is,
            multiprocessing_context=context,
            worker_init_fn=ignore_stop_signals,
        )
    )
