"""Hidden states and bits of a BiGR model, trained or not, as a representation. Knows nothing of data sets or labels."""

# B batch, S side in pixels, N tokens, D width

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import to_bytes
from bigr_repr.evaluate.representations.base import Representation, View
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.images.decode import center_crop
from bigr_repr.images.inputs import stack
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder

POOLS: Final = ("avg", "max", "avg+max")


def untrained(pre: Pretrained, seed: int, *, tokenizer: bool = True) -> Pretrained:
    """The same configuration with random weights, behind a tokenizer that is untrained too, or the given one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = BinaryAutoencoder(pre.config.tokenizer).eval()
        generator = BiGR(pre.config.generator).eval()
    return Pretrained(pre.config, fresh if tokenizer else pre.tokenizer, generator)


class Hidden(Representation):
    """Hidden states and bits of a BiGR model."""

    def __init__(
        self, name: str, pre: Pretrained, device: torch.device, *, bits_only: bool = False, seed: int | None = None
    ) -> None:
        self.name, self.fingerprint = name, pre.fingerprint
        self.layers, self.n_bits = 0 if bits_only else pre.config.generator.layers, pre.config.code_size
        self.along = ("codes",)
        self.record = {"model": name, "model_sha256": pre.fingerprint, "image_size": pre.config.image_size}
        if seed is not None:
            self.record["weights_seed"] = seed
        self._pre, self._device, self._side = pre, device, pre.config.image_size
        self._extractors: dict[tuple[tuple[int, ...], str], FeatureExtractor] = {}

    def views(self, layers: Sequence[int], pool: str, *, codes: bool) -> list[View]:
        if codes or not self.layers:
            return [View(item="codes", n_bits=self.n_bits)]
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; choose one of {', '.join(POOLS)}")
        suffix = "" if pool == "avg" else f".{pool}"
        return [View(item=f"layer-{layer}{suffix}", layer=layer) for layer in layers or [min(12, self.layers - 1)]]

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        return center_crop(image, self._side)

    def compute(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        wanted = {item: _parse(item) for item in items if item != "codes"}
        extractor = self._extractor(
            tuple(sorted({layer for layer, _ in wanted.values()})),
            "avg" if all(pool == "avg" for _, pool in wanted.values()) else "none",
        )
        found = extractor(stack(batch))
        if not bool(found.finite.all()):
            raise ValueError(f"{self.name}: the tokenizer's numbers are not finite; are the weights damaged?")
        arrays: dict[str, NDArray[Any]] = {}
        for item, (layer, pool) in wanted.items():
            arrays[item] = pooled(found.layers[layer], pool).cpu().numpy()
        if "codes" in items:
            arrays["codes"] = to_bytes(found.codes.flatten(1).cpu().numpy())
        return arrays

    def _extractor(self, layers: tuple[int, ...], pool: str) -> FeatureExtractor:
        if (layers, pool) not in self._extractors:
            self._extractors[layers, pool] = FeatureExtractor(self._pre, layers, pool, device=self._device)
        return self._extractors[layers, pool]


def _parse(item: str) -> tuple[int, str]:
    """ "layer-12.max" -> (12, "max")."""
    layer, _, pool = item.removeprefix("layer-").partition(".")
    return int(layer), pool or "avg"


def pooled(states: torch.Tensor, pool: str) -> torch.Tensor:
    """(B, N, D), or (B, D) that is pooled already -> (B, D), or (B, 2 D) for "avg+max"."""
    if states.ndim == 2:
        return states
    parts = {"avg": states.mean(dim=1), "max": states.amax(dim=1)}
    return torch.cat([parts[name] for name in pool.split("+")], dim=1)
