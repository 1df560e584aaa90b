"""How many images the network should take at a time, measured where it runs. Knows nothing of files."""

# B batch, S side in pixels

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from bigr_repr.features.network import Network

if TYPE_CHECKING:
    from bigr_repr.features.extractor import FeatureExtractor

log = logging.getLogger(__name__)

_GAIN = 0.95  # of the time per image that a larger batch has to need, to be worth its memory
_SECONDS = 1.0  # that a batch may take: progress shows, and Ctrl-C is heard, as often
_LARGEST = 1024


def best_batch_size(extractor: FeatureExtractor) -> int:
    """The fastest batch size, measured on random images: extractor.group times a power of two.

    Doubled while an image takes less time for it, and memory suffices. On a CPU in float32 all such sizes give the same
    numbers, bit for bit.  Raises what the extractor raises when not even the smallest batch fits.
    """
    import torch

    size = best = extractor.group
    fastest = _seconds(extractor, size)
    while 2 * size <= _LARGEST and fastest * 2 * size <= _SECONDS:
        size *= 2
        try:
            seconds = _seconds(extractor, size)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if seconds > _GAIN * fastest:
            break
        best, fastest = size, seconds
    log.info("batch size %d: %.4g ms per image on %s", best, 1e3 * fastest, extractor.device)
    return best


def _seconds(extractor: FeatureExtractor, batch: int) -> float:
    """Time per image in batches of that size; the least of several, the first of which warms up."""
    import torch

    side = extractor.config.image_size
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=random)
    network = Network(extractor, batch)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        network.start(images)().codes.cpu()  # waits for a GPU
        times.append(time.perf_counter() - started)
    network.close()
    return min(times[1:]) / batch
