"""Computes features and codes of batches of pixels. Knows nothing of requests."""

# S side in pixels, D width

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import to_bytes
from bigr_repr.features.condition import NO_CONDITION, FeatureCondition
from bigr_repr.features.exported.model import ExportedModel
from bigr_repr.features.extractor import FeatureExtractor, Layer, blocks_of
from bigr_repr.features.network import Network
from bigr_repr.images.inputs import stack


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodeTask:
    """One picture, uint8 (S, S, 3), and the requested layers; the rest as in FeatureExtractor."""

    pixels: NDArray[np.uint8]
    layers: frozenset[Layer] = frozenset()
    pool: str = "avg"
    mirror: bool = False
    condition: FeatureCondition = NO_CONDITION

    @property
    def how(self) -> tuple[str, bool, FeatureCondition]:
        """Settings that pictures of one pass must share."""
        return self.pool, self.mirror, self.condition


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderOutput:
    """features: {layer: float32 (D,)}. tokens: the tokenizer's code, uint8 (bytes,)."""

    features: dict[Layer, NDArray[np.float32]]
    tokens: NDArray[np.uint8]


class Encoder:
    """The network, for one caller at a time, with at most `batch` pictures per call. Close it after use.

    A batch runs only up to the deepest block that any of its pictures needs.
    """

    def __init__(
        self, pre: Pretrained | ExportedModel, *, dtype: torch.dtype | None, device: torch.device | None, batch: int
    ) -> None:
        self._config = pre.config
        self._layers: Iterable[Layer] = range(pre.config.generator.layers)
        if isinstance(pre, ExportedModel):
            self._layers = pre.manifest.layers
        self._extractor = functools.partial(FeatureExtractor, pre, dtype=dtype, device=device)
        self._codes = self._extractor(())
        self._network = Network(self._codes, batch)
        self._pooled: dict[tuple[str, bool, FeatureCondition], FeatureExtractor] = {}

    def close(self) -> None:
        """End the network's threads."""
        self._network.close()

    def __call__(self, tasks: list[EncodeTask]) -> list[EncoderOutput]:
        """Features and codes of pictures.  Raises RuntimeError for features that are not finite."""
        found: dict[int, EncoderOutput] = {}
        for how in dict.fromkeys(task.how for task in tasks):
            places = [place for place, task in enumerate(tasks) if task.how == how]
            found |= zip(places, self._alike([tasks[place] for place in places]), strict=True)
        return [found[place] for place in range(len(tasks))]

    def _alike(self, tasks: list[EncodeTask]) -> list[EncoderOutput]:
        """Outputs of tasks with the same settings."""
        wanted = frozenset[Layer]().union(*(task.layers for task in tasks))
        extractor = self._codes
        if wanted:
            how = pool, mirror, condition = tasks[0].how
            if how not in self._pooled:
                self._pooled[how] = self._extractor(self._layers, pool, mirror=mirror, condition=condition)
            extractor = self._pooled[how]
            extractor.layers = {layer: blocks_of(layer, self._config) for layer in wanted}
        images = stack([task.pixels for task in tasks])
        few = len(images) < self._network.full  # then all threads share them, to reduce latency
        found = extractor(images) if few else self._network.start(images, extractor)()
        if not bool(found.finite.all()):
            raise RuntimeError(
                "the features are not finite: the model's weights are damaged, or its precision is too low"
            )
        tokens = to_bytes(found.codes.flatten(1).cpu().numpy())
        layers = {layer: values.cpu().numpy() for layer, values in found.layers.items()}
        return [
            EncoderOutput(features={layer: layers[layer][i] for layer in task.layers}, tokens=tokens[i])
            for i, task in enumerate(tasks)
        ]
