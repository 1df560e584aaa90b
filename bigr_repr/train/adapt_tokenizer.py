"""Adapts a tokenizer to the user's pictures, before the generator is adapted. Knows nothing of generators."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigr_repr.checkpoints.pretrained import load_tokenizer, save_tokenizer
from bigr_repr.datasets import ImageSet
from bigr_repr.datasets.subset import Subset
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train.adapt_folder import RUN
from bigr_repr.train.distributed import any_process, divisible_batch, on_main_process
from bigr_repr.train.ema import ExponentialAverage
from bigr_repr.train.reconstruction import reconstruction_db
from bigr_repr.train.settings import TrainSettings
from bigr_repr.train.tokenizer import TokenizerRecipe, train_tokenizer

_RATE, _BATCH, _EMA = 2e-4, 16, 0.99


def adapted_tokenizer(
    start: BinaryAutoencoder,
    images: ImageSet,
    kept: NDArray[np.int64],
    held_out: NDArray[np.int64],
    folder: Path,
    *,
    steps: int,
    seconds: float,
    seed: int,
    cpu: bool,
    on_progress: Callable[[int, int], None],
) -> tuple[BinaryAutoencoder, tuple[float, float]]:
    """The tokenizer trained for at most `steps` or `seconds`, and its held-out PSNR before and after, in dB.

    Returns `start` if training did not improve it. Its weights are stored in `folder`, for resuming.
    """
    before = on_main_process(lambda: reconstruction_db(start, images, held_out))
    if on_main_process((folder / "tokenizer").exists):
        made = load_tokenizer(folder / "tokenizer")
    else:
        until = time.monotonic() + seconds

        def finished(done: int, average: ExponentialAverage) -> bool:
            share = max(done / steps, 1 - (until - time.monotonic()) / seconds)
            on_progress(round(1000 * min(1.0, share)), 1000)
            return any_process(time.monotonic() >= until)

        settings = TrainSettings(
            out=str(folder / RUN), steps=steps, batch_size=divisible_batch(min(_BATCH, len(kept))), learning_rate=_RATE,
            seed=seed, ema=_EMA, cpu=cpu, keep=1, save_every=max(1, steps // 10), log_every=max(1, steps // 100),
            tracker="none",
        )  # fmt: skip
        recipe = TokenizerRecipe(pixel_loss="l2", perceptual=None, gan_start=None)
        chosen = Subset(images, kept, None)
        made = train_tokenizer(chosen, start.config, settings, recipe, initial=start, finished=finished)
        on_main_process(lambda: save_tokenizer(made, folder / "tokenizer"))
    after = on_main_process(lambda: reconstruction_db(made, images, held_out))
    return (made, (before, after)) if after > before else (start, (before, before))
