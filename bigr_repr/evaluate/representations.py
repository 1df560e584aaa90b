"""What can be benchmarked, by name: BiGR models and their bits, untrained ones, timm backbones, pixels.

A representation prepares one picture (in threads) and computes named arrays of a batch; it knows nothing of data sets,
labels or caches. Names:

    MODEL                   what bigr_repr.load takes: hidden states of blocks, and the tokenizer's bits
    tokenizer-bits[:MODEL]  only the bits, as numbers or by Hamming distance
    random[:MODEL]          the same network untrained, tokenizer and transformer
    random-generator[:MODEL]  untrained transformer on the trained tokenizer's codes
    timm:NAME[?random]      a timm backbone with its own preprocessing, its pooled features or those of a block
    pixels[:SIDE]           the pixels themselves, at 32 x 32 unless a side is given
"""

# B batch, S side in pixels, N tokens, D width

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bigr_repr import checkpoints
from bigr_repr._pixels import stack
from bigr_repr._placement import choose_device
from bigr_repr.catalog import DEFAULT_MODEL
from bigr_repr.checkpoints import Pretrained
from bigr_repr.codes import from_bytes, to_bytes
from bigr_repr.extractor import FeatureExtractor
from bigr_repr.images import center_crop
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder

__all__ = ["POOLS", "Representation", "View", "open_representation", "pooled"]

POOLS: Final = ("avg", "max", "avg+max")
_PIXELS: Final = 32


@dataclass(frozen=True, kw_only=True)
class View:
    """One array of features of a representation: the `item` that is stored, and how it is to be read.

    layer: the block it comes from, if any. n_bits: set for packed bits, (n, bytes) uint8. where: for people.
    """

    item: str
    layer: int | None = None
    n_bits: int | None = None

    @property
    def where(self) -> str:
        """For people: the block, or what else was read."""
        return f"layer {self.layer}" if self.layer is not None else self.item

    def numbers(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array as stored -> one number per feature, (n, D): packed bits are unpacked."""
        return array if self.n_bits is None else from_bytes(array, self.n_bits)


class Representation(ABC):
    """A way to turn pictures into features. `fingerprint` tells it from any other; `record` describes it for reports.

    layers: number of blocks; 0 if it has none. n_bits: of a code; None if it has none. along: items that cost nothing
    when others are computed, and are kept for later.
    """

    name: str
    fingerprint: str
    record: dict[str, Any]
    layers: int = 0
    n_bits: int | None = None
    along: tuple[str, ...] = ()

    def layer_index(self, layer: int | str) -> int:
        """Resolve 0-based, negative or "mid". Raises ValueError for a layer out of range or if there are none."""
        if not self.layers:
            raise ValueError(f"{self.name} has no layers; leave layer out")
        if layer == "mid":
            return self.layers // 2
        if not isinstance(layer, int) or not -self.layers <= layer < self.layers:
            raise ValueError(
                f"layer={layer!r} is outside 0..{self.layers - 1} for {self.name} (or -{self.layers}..-1 from the end)"
            )
        return layer % self.layers

    @abstractmethod
    def views(self, layers: Sequence[int], pool: str, *, codes: bool) -> list[View]:
        """What is measured for these blocks; for none given, what the representation is by default."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> NDArray[Any]:
        """An RGB image as the array that a batch is made of. Thread-safe."""

    @abstractmethod
    def compute(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Named arrays (B, ...) of a batch. Raises ValueError for numbers that are not finite."""


def open_representation(name: str, *, device: str | None = None, seed: int = 0) -> Representation:
    """A representation by its name (see the module). seed: of untrained weights.

    Raises ValueError or FileNotFoundError, in one line, for a name or weights that are not there.
    """
    kind, _, rest = name.partition(":")
    if kind == "pixels":
        return Pixels(name, rest)
    if kind == "timm":
        from bigr_repr.evaluate.timm_backbones import TimmBackbone

        return TimmBackbone(rest, choose_device(device), seed)
    if kind in ("random", "random-generator"):
        pre = checkpoints.load(rest or DEFAULT_MODEL)
        return Hidden(name, untrained(pre, seed, tokenizer=kind == "random"), choose_device(device), seed=seed)
    if kind == "tokenizer-bits":
        return Hidden(name, checkpoints.load(rest or DEFAULT_MODEL), choose_device(device), bits_only=True)
    return Hidden(name, checkpoints.load(name), choose_device(device))


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


class Pixels(Representation):
    """The pixels of the middle square, as numbers 0..255."""

    def __init__(self, name: str, side: str) -> None:
        if side and not (side.isdecimal() and 1 <= int(side) <= 256):
            raise ValueError(f"model={name!r}: the side after pixels: is a whole number of 1..256, as pixels:32")
        self._side = int(side or _PIXELS)
        self.name = name
        self.fingerprint = hashlib.sha256(f"pixels {self._side}".encode()).hexdigest()
        self.record = {"model": name, "model_sha256": None, "image_size": self._side}

    def views(self, layers: Sequence[int], pool: str, *, codes: bool) -> list[View]:
        if codes:
            raise ValueError(f"{self.name} has no bits; leave codes out")
        if pool != "avg":
            raise ValueError(f"pool={pool!r} is for BiGR models; {self.name} has no tokens to pool")
        return [View(item="pixels")]

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        return center_crop(image, self._side)

    def compute(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {"pixels": np.stack(batch).reshape(len(batch), -1)}
