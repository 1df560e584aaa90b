"""Measures the best batch size on the network's device. Independent of files."""

# B batch, S side in pixels

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from bigr_repr.features.network import Network

if TYPE_CHECKING:
    from bigr_repr.features.extractor import FeatureExtractor

log = logging.getLogger(__name__)

_GAIN = 0.95  # maximum relative time per image at which a larger batch is worth its memory
_SECONDS = 1.0  # maximum time per batch, so that progress and Ctrl-C respond
_LARGEST = 1024


def best_batch_size(extractor: FeatureExtractor) -> int:
    """The fastest batch size, measured on random images: extractor.group times a power of two.

    Doubled as long as that reduces the time per image and memory suffices. On a CPU in float32, all such sizes give
    bit-identical results.  Raises what the extractor raises if not even the smallest batch fits.
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
    """Minimum time per image over several batches of that size, after a warm-up."""
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
