"""Reduced precision for a run: what it gains and costs on some of the images.

Independent of rows and how they are stored.
"""

# n images, S side in pixels

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bigr_repr._typing import PathLike
from bigr_repr.embed.dataset.entry import as_entry
from bigr_repr.embed.inputs.fetch import fetch, pictures
from bigr_repr.embed.inputs.sources import find_sources
from bigr_repr.embed.options import EmbedOptions
from bigr_repr.features.network import Network
from bigr_repr.images.decode import load_image
from bigr_repr.images.formats import ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from bigr_repr.features.extractor import FeatureExtractor

__all__ = ["Tradeoff", "measure_tradeoff", "sample_images"]

_SAMPLE, _LISTED = 64, 4096
_BATCH = 32


class Tradeoff(NamedTuple):
    """The effect of reduced precision. speed: relative to float32; cosine: mean over features; bits: share that is
    equal."""

    speed: float
    cosine: float
    bits: float


def sample_images(inputs: PathLike | Iterable[PathLike], options: EmbedOptions, side: int) -> Tensor:
    """Up to 64 of the first 4096 inputs, evenly spaced, as uint8 (n, 3, S, S).  Raises ValueError if there are none."""
    from bigr_repr.images.inputs import stack

    sources = find_sources(inputs, root=options.root, literal=options.literal, columns=options.columns)
    listed = list(islice(sources, _LISTED))
    places = np.unique(np.linspace(0, max(0, len(listed) - 1), min(_SAMPLE, len(listed))).astype(int))
    pixels = []
    with closing(pictures((as_entry(listed[place]) for place in places), options.columns)) as encoded:
        for picture in encoded:
            try:
                content = fetch(picture)
                pixels.append(load_image(content, side, max_pixels=options.max_pixels, icc=options.icc or "convert"))
            except ImageError:
                continue
    if not pixels:
        raise ValueError("none of the first images can be read, so there is nothing to measure; use dtype float32")
    return stack(pixels)


def measure_tradeoff(fast: FeatureExtractor, exact: FeatureExtractor, images: Tensor) -> Tradeoff:
    """Compare two extractors of the same layers on images, uint8 (n, 3, S, S), alternating their runs."""
    import torch.nn.functional as F

    whole = images.repeat(-(-_BATCH // len(images)), 1, 1, 1)[: max(_BATCH, len(images))]
    theirs, ours = fast(images), exact(images)
    times: dict[bool, list[float]] = {True: [], False: []}
    networks = {True: Network(fast, _BATCH), False: Network(exact, _BATCH)}
    try:
        for turn in range(6):
            started = time.perf_counter()
            networks[turn % 2 == 0].start(whole)()
            times[turn % 2 == 0].append(time.perf_counter() - started)
    finally:
        for network in networks.values():
            network.close()
    layers = ours.layers
    cosines = [F.cosine_similarity(layers[each].flatten(1), theirs.layers[each].flatten(1)).mean() for each in layers]
    return Tradeoff(
        speed=min(times[False]) / min(times[True]),
        cosine=float(sum(cosines) / max(1, len(cosines))),
        bits=float((theirs.codes == ours.codes).float().mean()),
    )
