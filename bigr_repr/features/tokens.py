"""Views of single tokens: states as colors, and how certain their bits are. Knows nothing of files or drawing."""

# n images, N tokens, K bits per token, h w token grid, D width, S side in pixels

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import grid_to_tokens, tokens_to_grid
from bigr_repr.features.extract import check_finite
from bigr_repr.features.extractor import FeatureExtractor, Layer
from bigr_repr.images.inputs import Pictures, read_all, stack
from bigr_repr.models.bits import bit_entropy

__all__ = ["TokenViews", "token_pca", "token_views"]

_BATCH = 32
_CLIPPED = 1.0  # percent of tokens at either end of a color's range


class TokenViews(NamedTuple):
    """The result of `token_views`.

    bits: (n, N, K), bool. entropy: (n, N), float32 in [0, 1]: mean binary entropy of each token's bits in the
    tokenizer; 0: certain. states: {layer as given: (n, N, D)}, float32. reconstruction: images decoded from the bits,
    uint8 (n, S, S, 3), RGB.
    """

    bits: NDArray[np.bool_]
    entropy: NDArray[np.float32]
    states: dict[Layer, NDArray[np.float32]]
    reconstruction: NDArray[np.uint8]


def token_views(images: Pictures, pre: Pretrained, layers: Iterable[Layer] = (12,)) -> TokenViews:
    """The tokens of images, computed on the model's device and in its dtype.

    images: as for `extract_features`; everything is held in memory.  layers: blocks, as there; empty: only the bits.
    Raises as `extract_features` does.
    """
    extractor = FeatureExtractor(pre, layers, "none")
    found = list[TokenViews]()
    with closing(read_all(images, pre.config.image_size, workers=None, ahead=2 * _BATCH)) as pictures:
        while batch := list(islice(pictures, _BATCH)):
            found.append(_views(pre, extractor, stack(batch), len(found) * _BATCH))
    if not found:
        raise ValueError("no images to look at; give at least one")
    return TokenViews(
        bits=np.concatenate([each.bits for each in found]),
        entropy=np.concatenate([each.entropy for each in found]),
        states={layer: np.concatenate([each.states[layer] for each in found]) for layer in found[0].states},
        reconstruction=np.concatenate([each.reconstruction for each in found]),
    )


@torch.no_grad()
def _views(pre: Pretrained, extractor: FeatureExtractor, pixels: Tensor, first: int) -> TokenViews:
    """The views of a batch. first: the number of its first image."""
    features, weight = extractor(pixels), next(pre.tokenizer.parameters())
    check_finite(features, first, extractor.dtype)
    probabilities = pre.tokenizer.bit_probabilities((pixels.to(weight.device).float() / 255).to(weight.dtype))
    decoded = pre.tokenizer.decode(tokens_to_grid(features.codes).to(weight))
    shown = (decoded.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return TokenViews(
        bits=features.codes.cpu().numpy(),
        entropy=bit_entropy(grid_to_tokens(probabilities).float()).cpu().numpy(),
        states={layer: values.cpu().numpy() for layer, values in features.layers.items()},
        reconstruction=shown.cpu().numpy(),
    )


def token_pca(states: ArrayLike, grid: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Tokens as colors: states (n, N, D) -> uint8 (n, h, w, 3).

    The first three principal components of all n * N tokens together become red, green and blue, so similar tokens have
    similar colors, across images too; each is scaled from its 1st to its 99th percentile, with its sign chosen to make
    the largest weight positive. A component without spread is 128.

    grid: (h, w) with h * w = N; None: a square.  Raises ValueError for a wrong shape, or non-finite states.
    """
    values = np.asarray(states, np.float32)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"states has shape {values.shape}; expected (n, N, D), as extract_features(pool='none') gives")
    count, tokens, width = values.shape
    height, across = grid or (math.isqrt(tokens), math.isqrt(tokens))
    if height * across != tokens:
        raise ValueError(
            f"{tokens} tokens do not make a grid of {height} x {across}; give grid=(h, w) with h * w = {tokens}"
        )
    if not np.isfinite(values).all():
        raise ValueError("states are not all finite; compute them in float32")
    rows = values.reshape(-1, width).astype(np.float64)
    rows -= rows.mean(axis=0)
    _, axes = np.linalg.eigh(rows.T @ rows)
    axes = axes[:, ::-1][:, :3]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    scores = np.zeros((len(rows), 3))
    scores[:, : axes.shape[1]] = rows @ (axes * signs)
    low, high = np.percentile(scores, [_CLIPPED, 100 - _CLIPPED], axis=0)
    spread = high - low
    flat = spread <= 1e-6 * max(1e-30, float(spread.max()))
    shares = np.where(flat, 128 / 255, (scores - low) / np.where(flat, 1, spread))
    colors: NDArray[np.uint8] = np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)
    return colors.reshape(count, height, across, 3)
