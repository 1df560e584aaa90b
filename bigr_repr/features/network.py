"""Runs the network on batches asynchronously. Knows nothing of pictures or files.

On a CPU, the rounding of float32 products and convolutions depends on how many threads share one. So each group of
images is processed by one thread, and rows are bit-identical with any number of threads.
"""

# B batch, S side in pixels

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from bigr_repr.features.extractor import FeatureExtractor, Features


class Network:
    """Turns batches into features. Has as many threads as torch used for one operation, until it is closed.

    ahead: number of batches worth starting before requesting the first one's features. full: images that give each
    thread a group.
    """

    def __init__(self, extractor: FeatureExtractor, batch_size: int) -> None:
        import torch

        self._extractor, self._pool, self.ahead, self.full = extractor, None, 1, 1
        if extractor.group > 1:
            threads = torch.get_num_threads()
            self.full = threads * extractor.group
            self._pool = _single_threaded(threads)
            groups = -(-batch_size // extractor.group)
            self.ahead = -(-threads // groups)

    def start(self, images: Tensor, extractor: FeatureExtractor | None = None) -> Callable[[], Features]:
        """Start a batch, (B, 3, S, S) as for the extractor; returns a function that waits for its features.

        extractor: another one for the same model.
        """
        import torch

        extractor = extractor or self._extractor
        if self._pool is None:
            features = extractor(images)
            return lambda: features
        parts = [self._pool.submit(extractor, group) for group in torch.split(images, extractor.group)]
        return lambda: _joined([part.result() for part in parts])

    def close(self) -> None:
        """Wait for groups in progress; those not started are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _single_threaded(count: int) -> ThreadPoolExecutor:
    """Threads in which torch runs single-threaded."""
    import torch

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # otherwise the thread's first operation would adopt the other threads' setting

    before, all_there = torch.get_num_threads(), Barrier(count)
    pool = ThreadPoolExecutor(count, thread_name_prefix="bigr-network", initializer=begin)
    try:
        for waiting in [pool.submit(all_there.wait) for _ in range(count)]:
            waiting.result()
    except BaseException:  # a thread could not be started, or Ctrl-C: the others must not wait for it
        all_there.abort()
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(before)  # the setting for new threads is global
    return pool


def _joined(parts: list[Features]) -> Features:
    import torch

    from bigr_repr.features.extractor import Features

    layers = {layer: torch.cat([part.layers[layer] for part in parts]) for layer in parts[0].layers}
    return Features(layers, torch.cat([part.codes for part in parts]), torch.cat([part.finite for part in parts]))
