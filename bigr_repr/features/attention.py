"""What a token attends to, and which tokens are similar to it. Knows nothing of files or drawing."""

# n images, N tokens, K bits per token, D width, M heads

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.models.blocks import Attention

__all__ = ["NearTokens", "near_tokens", "token_attention"]

_BATCH = 32


class NearTokens(NamedTuple):
    """Tokens similar to a given one. similarity: (n, N), float32 in [-1, 1], of all; nearest: (k, 2), int64, image and
    token of the most similar ones in other images, best first.
    """

    similarity: NDArray[np.float32]
    nearest: NDArray[np.int64]


@torch.no_grad()
def token_attention(bits: ArrayLike, pre: Pretrained, layer: int | str, token: int) -> NDArray[np.float32]:
    """How much a token attends to each position in a block: bits (n, N, K), from `token_views` -> (n, M, 1 + N), rows
    sum to 1.

    The condition, "no class", comes first. token: 0..N-1, in raster order. In a causal model later tokens get 0.
    Raises ValueError for an unknown layer or token, or bits of a wrong shape.
    """
    transformer, config = pre.generator.transformer, pre.config.generator
    block, codes = config.layer_index(layer, pre.config.name), np.asarray(bits)
    _in_range("token", token, config.tokens)
    heard: list[tuple[Any, ...]] = []
    attention = transformer.layers[block].attention
    assert isinstance(attention, Attention)
    hook = attention.register_forward_pre_hook(lambda module, inputs: heard.append(inputs))
    found = []
    weight = next(transformer.parameters())
    try:
        for start in range(0, len(codes), _BATCH):
            part = torch.from_numpy(np.ascontiguousarray(codes[start : start + _BATCH])).to(weight)
            condition = transformer.condition_embedding(None, len(part))
            transformer(part, condition, layers=(block,))
            x, table, _ = heard.pop()
            found.append(attention.weights(x, table, 1 + token).cpu().numpy())
    finally:
        hook.remove()
    if not found:
        raise ValueError("no images to look at; give at least one")
    return np.concatenate(found)


def near_tokens(states: ArrayLike, image: int, token: int, *, k: int = 8) -> NearTokens:
    """Tokens similar to one of an image, by the cosine of states (n, N, D) minus their mean over all tokens.

    Without subtracting it, what all tokens share would make all of them similar. Raises ValueError for an image or
    token out of range, or states that are not finite or of a wrong shape.
    """
    values = np.asarray(states, np.float32)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"states has shape {values.shape}; expected (n, N, D), as extract_features(pool='none') gives")
    _in_range("image", image, values.shape[0])
    _in_range("token", token, values.shape[1])
    if not np.isfinite(values).all():
        raise ValueError("states are not all finite; compute them in float32")
    values = values - values.mean(axis=(0, 1))
    values /= np.maximum(np.linalg.norm(values, axis=2, keepdims=True), 1e-12)
    similarity = values @ values[image, token]
    others = np.flatnonzero(np.arange(len(values)) != image)
    order = np.argsort(-similarity[others].ravel(), kind="stable")[:k]
    rows, tokens = np.divmod(order, values.shape[1])
    return NearTokens(similarity, np.stack([others[rows], tokens], axis=1))


def _in_range(name: str, value: int, count: int) -> None:
    if not 0 <= value < count:
        raise ValueError(f"{name}={value} is outside 0..{count - 1}")
