"""Hidden states and bits of a BiGR model, trained or not, as a representation. Knows nothing of data sets or labels."""

# B batch, S side in pixels, N tokens, D width

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.checkpoints.classes import has_classes
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import to_bytes
from bigr_repr.evaluate.representations.base import TOKENS, Reading, Representation, View, block_and_pool
from bigr_repr.features.condition import NO_CONDITION, FeatureCondition
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.features.pools import POOLS, pool_tokens
from bigr_repr.images.decode import center_crop
from bigr_repr.images.inputs import stack
from bigr_repr.models.bigr import BiGR, usual_block
from bigr_repr.models.tokenizer import BinaryAutoencoder


def untrained(pre: Pretrained, seed: int, *, tokenizer: bool = True) -> Pretrained:
    """The same configuration with random weights, with an untrained tokenizer, or the given one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = BinaryAutoencoder(pre.config.tokenizer).eval()
        generator = BiGR(pre.config.generator).eval()
    return Pretrained(pre.config, fresh if tokenizer else pre.tokenizer, generator)


class Hidden(Representation):
    """Hidden states and bits of a BiGR model. condition: for computing the states."""

    def __init__(
        self,
        name: str,
        pre: Pretrained,
        device: torch.device,
        *,
        bits_only: bool = False,
        seed: int | None = None,
        condition: FeatureCondition = NO_CONDITION,
    ) -> None:
        self.name, self.fingerprint = name, pre.fingerprint
        self.layers, self.n_bits = 0 if bits_only else pre.config.generator.layers, pre.config.code_size
        self.along, self.pools = ("codes",), (*POOLS, TOKENS)
        self.training = json.dumps(pre.config.training)
        self.labels_seen = has_classes(pre.config)
        self.record = {"model": name, "model_sha256": pre.fingerprint, "image_size": pre.config.image_size}
        self.record["blocks"] = self.layers
        self._condition = condition.of(pre.config)
        if self._condition:
            self.record["condition"] = self._condition.record()
        if seed is not None:
            self.record["weights_seed"] = seed
            self.training = ""
        self.pretrained, self.device, self._side = pre, device, pre.config.image_size
        self._extractors: dict[tuple[tuple[int, ...], str], FeatureExtractor] = {}

    def default_view(self, reading: Reading) -> View:
        if not self.layers:
            return View(item="codes", n_bits=self.n_bits)
        return self._view(self.default_block, reading)

    @property
    def default_block(self) -> int:
        """The default block."""
        return usual_block(self.layers)

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        return center_crop(image, self._side)

    def compute(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        wanted = {item: block_and_pool(item) for item in items if item != "codes"}
        extractor = self._extractor(
            tuple(sorted({layer for layer, _ in wanted.values()})),
            "avg" if all(pool == "avg" for _, pool in wanted.values()) else "none",
        )
        found = extractor(stack(batch))
        if not bool(found.finite.all()):
            raise ValueError(f"{self.name}: the tokenizer's numbers are not finite; are the weights damaged?")
        arrays: dict[str, NDArray[Any]] = {}
        for item, (layer, pool) in wanted.items():
            arrays[item] = pooled(found.layers[layer], pool)
        if "codes" in items:
            arrays["codes"] = to_bytes(found.codes.flatten(1).cpu().numpy())
        return arrays

    def _extractor(self, layers: tuple[int, ...], pool: str) -> FeatureExtractor:
        if (layers, pool) not in self._extractors:
            self._extractors[layers, pool] = FeatureExtractor(
                self.pretrained, layers, pool, condition=self._condition, device=self.device
            )
        return self._extractors[layers, pool]


def pooled(states: torch.Tensor, pool: str) -> NDArray[Any]:
    """(B, N, D), or (B, D) if already pooled -> as in `pool_tokens`; tokens unchanged, in half precision."""
    if pool == TOKENS:
        return states.half().cpu().numpy()
    return (states if states.ndim == 2 else pool_tokens(states, pool)).cpu().numpy()
