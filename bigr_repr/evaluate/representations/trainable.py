"""Networks that can be fine-tuned: BiGR's transformer and timm's backbones. Knows no data and no losses."""

# B batch, N tokens, K bits per token, D width

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import grid_to_tokens
from bigr_repr.evaluate.representations.base import Representation
from bigr_repr.evaluate.representations.hidden import Hidden
from bigr_repr.evaluate.representations.timm_backbones import TimmBackbone
from bigr_repr.features.pools import POOLS, pool_tokens
from bigr_repr.images.inputs import stack
from bigr_repr.models.transformer import up_to_block

__all__ = ["Trainable", "trainable"]


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """A network with gradients. forward: prepared pictures to features (B, D). modules: those to be trained.

    groups(weight_decay, layer_decay): parameters for an optimizer, with `lr_scale`, which falls by layer_decay from
    each block to the previous one, starting from 1 for a head; vectors have no weight decay.
    """

    forward: Callable[[list[NDArray[Any]]], Tensor]
    modules: nn.Module
    groups: Callable[[float, float], list[dict[str, Any]]]


def trainable(representation: Representation, layer: int | None, pool: str) -> Trainable:
    """The network of a representation, not a copy: training changes the representation, but it keeps all its blocks.

    layer: the last block that runs; None: the representation's default. pool: as in `pool_tokens`.
    Raises ValueError for a representation without such a network, a layer of a timm backbone, or an unsupported pool.
    """
    if isinstance(representation, Hidden) and representation.layers:
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is not for fine-tuning; choose one of {', '.join(POOLS)}")
        block = representation.default_block if layer is None else layer
        return _of_bigr(representation.pretrained, representation.device, block, pool)
    if isinstance(representation, TimmBackbone):
        if layer is not None or pool != "avg":
            raise ValueError(
                f"{representation.name} is fine-tuned whole, with its own pooling; leave layer and pool out"
            )
        return _of_timm(representation)
    raise ValueError(f"{representation.name} cannot be fine-tuned; BiGR models and timm backbones can")


def _of_bigr(pre: Pretrained, device: torch.device, block: int, pool: str) -> Trainable:
    """The transformer up to a block on codes of the frozen (because rounding) tokenizer, as in FeatureExtractor."""
    tokenizer, transformer = pre.tokenizer.to(device), up_to_block(pre.generator.transformer.to(device), block)

    def forward(batch: list[NDArray[Any]]) -> Tensor:
        pixels = stack(batch).to(device).float() / 255
        with torch.no_grad():
            codes = grid_to_tokens(tokenizer.encode(pixels))
        condition = transformer.condition_embedding(None, len(codes))
        return pool_tokens(transformer(codes, condition, layers=(block,))[block], pool)

    def groups(weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        inside = {id(value) for value in transformer.layers.parameters()}
        unused = {id(value) for value in transformer.norm.parameters()} | {id(transformer.diffusion_pos_embed_learned)}
        first = [each for each in transformer.parameters() if id(each) not in inside | unused]
        found = []
        for depth, values in enumerate([first, *(list(layer.parameters()) for layer in transformer.layers)]):
            scale = layer_decay ** (block + 2 - depth)
            for few, decay in ((False, weight_decay), (True, 0.0)):
                part = [value for value in values if (value.squeeze().ndim < 2) == few]
                found.append({"params": part, "weight_decay": decay, "lr_scale": scale})
        return [group for group in found if group["params"]]

    return Trainable(forward=forward, modules=transformer, groups=groups)


def _of_timm(backbone: TimmBackbone) -> Trainable:
    from timm import optim

    by_depth: Any = vars(optim)["param_groups_layer_decay"]
    network = backbone.network

    def forward(batch: list[NDArray[Any]]) -> Tensor:
        found: Tensor = network(torch.from_numpy(np.stack(batch)).to(backbone.device))
        return found

    def groups(weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        return list(by_depth(network, weight_decay, layer_decay=layer_decay))

    return Trainable(forward=forward, modules=network, groups=groups)
