"""Common base of other libraries' networks as representations. Knows no library and no data.

A network returns the states of its blocks (positions on a grid, possibly a class token) and its final pooled features
("pooled").
"""

# B batch, N tokens, h w grid, C channels, D width

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bigr_repr.evaluate.representations.base import (
    MIRROR,
    NORMED,
    TOKENS,
    Reading,
    Representation,
    View,
    block_and_pool,
)
from bigr_repr.features.pools import POOLS, pool_tokens

__all__ = ["Backbone", "States", "final_norm", "states_of"]

_CLASS: Final = "cls"
_POOLED: Final = "pooled"
_NORMS: Final = ("norm", "layernorm", "post_layernorm", "ln_post")  # of a transformer's last block, by library


class States(NamedTuple):
    """States of one block: positions (B, C, h, w), and the class token (B, C) if there is one."""

    positions: Tensor
    token: Tensor | None


def states_of(states: Tensor) -> States:
    """A block's output, (B, C, h, w) or tokens (B, N, D): extra tokens before a square grid include the class token.

    Raises ValueError for another shape.
    """
    if states.ndim == 4:
        return States(states, None)
    if states.ndim != 3:
        raise ValueError(f"states have shape {tuple(states.shape)}; expected (B, N, D) or (B, C, h, w)")
    side = math.isqrt(states.shape[1])
    first = states.shape[1] - side**2
    grid = states[:, first:].transpose(1, 2).reshape(len(states), -1, side, side)
    return States(grid, states[:, 0] if first else None)


def final_norm(network: Any, widths: Collection[int]) -> Callable[[Tensor], Tensor] | None:
    """A transformer's norm after its last block, of tokens (..., D); None if it has none of each token by itself, or
    blocks differ in width.
    """
    for norm in (getattr(network, name, None) for name in _NORMS):
        weight, kind = getattr(norm, "weight", None), type(norm).__name__.lower()
        of_tokens = ("layernorm" in kind or "rmsnorm" in kind) and not kind.endswith("2d")
        if of_tokens and isinstance(weight, Tensor) and {weight.numel()} == set(widths):
            return norm
    return None


class Backbone(Representation):
    """Pooled features before the classifier ("pooled"), or those of a block, pooled over its positions.

    transform: an RGB picture to a tensor (3, H, W). Networks with a class token also have the pools "cls" and
    "cls+avg". Subclasses set name, layers, fingerprint, record and `has_class_token`, and read states; `norm` is their
    network's final norm.
    """

    has_class_token = False
    norm: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self, model: torch.nn.Module, transform: Callable[[Image.Image], Tensor], device: torch.device
    ) -> None:
        self.network = model.eval().to(device)
        self._transform, self.device = transform, device

    def _with_pools(self) -> None:
        """Set the pools, after `has_class_token` is known."""
        self.pools = (*POOLS, TOKENS, *((_CLASS, f"{_CLASS}+avg") if self.has_class_token else ()))

    def default_view(self, reading: Reading) -> View:
        if reading.pool != "avg":
            raise ValueError(f"pool={reading.pool!r} is for blocks; name a layer of {self.name}")
        return View(item=f"{_POOLED}{MIRROR if reading.mirror else ''}")

    def official_views(self, reading: Reading) -> list[View]:
        """The same after the network's final norm, if it has one; with a class token, that of each block, alone or
        beside the mean of the last.
        """
        reading = dataclasses.replace(reading, normed=self.norm is not None)
        if not self.has_class_token or reading.pool != "avg" or self.layers < 4:
            return super().official_views(reading)
        last, classes = self.layers - 1, dataclasses.replace(reading, pool=_CLASS)
        found = []
        for depth in (1, 4):
            items = tuple(classes.item(block) for block in range(last + 1 - depth, last + 1))
            for parts in (items, (*items, reading.item(last))):
                found.append(View(item="+".join(parts), parts=parts))
        return found

    def mirrored(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(pixels[:, :, ::-1])

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        return self._transform(image).numpy()

    @torch.no_grad()
    def compute(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        x = torch.from_numpy(np.stack(batch)).to(self.device)
        wanted = {item: block_and_pool(item.removesuffix(NORMED)) for item in items if item != _POOLED}
        states, pooled = self.read(x, sorted({layer for layer, _ in wanted.values()}), pooled=_POOLED in items)
        after = {layer: self._normed(states[layer]) for item, (layer, _) in wanted.items() if item.endswith(NORMED)}
        arrays = {
            item: _pooled(*(after if item.endswith(NORMED) else states)[layer], pool)
            for item, (layer, pool) in wanted.items()
        }
        if pooled is not None:
            arrays[_POOLED] = pooled.float().cpu().numpy()
        for item, values in arrays.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{self.name}: features of {item} are not finite; are the weights damaged?")
        return arrays

    def _normed(self, states: States) -> States:
        assert self.norm is not None
        positions = self.norm(states.positions.movedim(1, -1)).movedim(-1, 1)
        return States(positions, None if states.token is None else self.norm(states.token))

    @abstractmethod
    def read(self, x: Tensor, layers: list[int], *, pooled: bool) -> tuple[dict[int, States], Tensor | None]:
        """States of blocks, and pooled features (B, D) if requested, of prepared pictures (B, 3, H, W)."""


def _pooled(state: Tensor, token: Tensor | None, pool: str) -> NDArray[Any]:
    """Positions (B, C, h, w) and the class token -> (B, D)."""
    tokens = state.flatten(2).transpose(1, 2).float()
    if pool == TOKENS:
        return tokens.half().cpu().numpy()
    if pool.startswith(_CLASS):
        assert token is not None
        parts = [token.float()] + ([tokens.mean(dim=1)] if pool != _CLASS else [])
        return torch.cat(parts, dim=1).cpu().numpy()
    return pool_tokens(tokens, pool, (state.shape[2], state.shape[3])).cpu().numpy()
