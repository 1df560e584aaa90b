"""Batches of pixels to features and codes. Knows nothing of requests."""

# S side in pixels, D width

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import to_bytes
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.images.inputs import stack


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodeTask:
    """One picture, uint8 (S, S, 3), and the blocks whose features are wanted."""

    pixels: NDArray[np.uint8]
    blocks: frozenset[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderOutput:
    """features: {block: float32 (D,)}, averaged over the tokens. tokens: the tokenizer's code, uint8 (bytes,)."""

    features: dict[int, NDArray[np.float32]]
    tokens: NDArray[np.uint8]


class Encoder:
    """The network, for one thread: a batch runs only up to the deepest block that one of its pictures asks for."""

    def __init__(self, pre: Pretrained, *, dtype: torch.dtype | None, device: torch.device | None) -> None:
        self._codes = FeatureExtractor(pre, (), dtype=dtype, device=device)
        self._layers = FeatureExtractor(pre, range(pre.config.generator.layers), dtype=dtype, device=device)

    def __call__(self, tasks: list[EncodeTask]) -> list[EncoderOutput]:
        """Features and codes of pictures.  Raises RuntimeError for features that are not finite."""
        wanted = sorted(frozenset[int]().union(*(task.blocks for task in tasks)))
        self._layers.layers = {block: block for block in wanted}
        found = (self._layers if wanted else self._codes)(stack([task.pixels for task in tasks]))
        if not bool(found.finite.all()):
            raise RuntimeError(
                "the features are not finite: the model's weights are damaged, or its precision too narrow"
            )
        tokens = to_bytes(found.codes.flatten(1).cpu().numpy())
        layers = {block: values.cpu().numpy() for block, values in found.layers.items() if isinstance(block, int)}
        return [
            EncoderOutput(features={block: layers[block][i] for block in task.blocks}, tokens=tokens[i])
            for i, task in enumerate(tasks)
        ]
