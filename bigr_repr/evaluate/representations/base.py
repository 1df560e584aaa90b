"""Base of every representation: prepares single pictures, in threads, and computes named arrays of a batch.

Knows nothing of data sets, labels or caches.
"""

# B batch, D width

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr.codes import from_bytes
from bigr_repr.config import block_index
from bigr_repr.features.pools import POOLS

MIRROR: Final = ".mirror"  # ending of an item: the mean over a picture and its mirror image
NORMED: Final = ".normed"  # ending of an item, before `MIRROR`: states after the network's final norm
TOKENS: Final = "tokens"  # the pool that keeps every token, for heads that read them
VECTOR_POOLS: Final = (*POOLS, "cls", "cls+avg")  # of any representation
ALL_POOLS: Final = (*VECTOR_POOLS, TOKENS)

BlockChoice = int | tuple[int, ...]  # a block, or several whose features are concatenated


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How features are extracted: by `pool` of a block's tokens, or the tokenizer's bits instead (`codes`).

    mirror: averaged with the features of the mirror image. normed: of states after the network's final norm.
    """

    pool: str = "avg"
    codes: bool = False
    mirror: bool = False
    normed: bool = False

    def item(self, layer: int) -> str:
        """The name of a block's features in a cache."""
        pool = "" if self.pool == "avg" else f".{self.pool}"
        return f"layer-{layer}{pool}{NORMED if self.normed else ''}{MIRROR if self.mirror else ''}"


@dataclass(frozen=True, kw_only=True)
class View:
    """One array of features of a representation: the stored `item`, and how to interpret it.

    layer: its block, if there is a single one. n_bits: set for packed bits, (n, bytes) uint8. parts: the items that are
    concatenated; empty: `item` itself.
    """

    item: str
    layer: int | None = None
    n_bits: int | None = None
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.where

    @property
    def where(self) -> str:
        """Display text: the block, the concatenated blocks, or the item."""
        if self.layer is not None:
            return f"layer {self.layer}"
        found = [re.fullmatch(r"layer-(\d+)(.*)", item) for item in self.parts]
        blocks = [each for each in found if each]
        alike = len({each[2] for each in blocks}) == 1 and len(blocks) == len(found)
        return f"layers {'+'.join(each[1] for each in blocks)}" if alike else self.item

    @property
    def items(self) -> tuple[str, ...]:
        """The stored items."""
        return self.parts or (self.item,)

    @property
    def words(self) -> str:
        """What it adds to a protocol in words."""
        return "; states after the network's final norm" if any(NORMED in item for item in self.items) else ""

    def read(self, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """Its features from stored arrays by item."""
        return np.concatenate([arrays[item] for item in self.parts], axis=-1) if self.parts else arrays[self.item]

    def numbers(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array as stored -> one number per feature, (n, D): packed bits are unpacked."""
        return array if self.n_bits is None else from_bytes(array, self.n_bits)


def block_and_pool(item: str) -> tuple[int, str]:
    """The inverse of `Reading.item`, without final norm or mirror image: "layer-12.max" -> (12, "max")."""
    layer, _, pool = item.removeprefix("layer-").partition(".")
    return int(layer), pool or "avg"


class Representation(ABC):
    """A way to turn pictures into features. `fingerprint` identifies it; `record` describes it for reports, with
    `crop`, the fraction of a square image's side that it sees, unless it sees all.

    layers: number of blocks; 0 if it has none. n_bits: of a code; None if it has none. pools: supported poolings of
    tokens to one vector. along: items that come for free with others, and are cached too. training: description of its
    training images, if known. labels_seen: whether their labels were used.
    """

    name: str
    fingerprint: str
    record: dict[str, Any]
    layers: int = 0
    n_bits: int | None = None
    pools: tuple[str, ...] = ("avg",)
    along: tuple[str, ...] = ()
    training: str = ""
    labels_seen: bool = False

    def layer_index(self, layer: SupportsIndex | str) -> int:
        """Resolve 0-based, negative or "mid". Raises ValueError for a layer out of range or if there are none."""
        if not self.layers:
            raise ValueError(f"{self.name} has no layers; leave layer out")
        return block_index(layer, self.layers, self.name)

    def views(self, layers: Sequence[BlockChoice], reading: Reading) -> list[View]:
        """The views of these blocks; without blocks, the default view.

        Raises ValueError for bits or a pool that the representation lacks.
        """
        if reading.codes:
            if self.n_bits is None:
                raise ValueError(f"{self.name} has no bits; leave codes out")
            return [View(item="codes", n_bits=self.n_bits)]
        if reading.pool not in self.pools:
            raise ValueError(f"pool={reading.pool!r} is not for {self.name}, which supports {', '.join(self.pools)}")
        return [self._view(layer, reading) for layer in layers] or [self.default_view(reading)]

    def official_views(self, reading: Reading) -> list[View]:
        """The grid of DINOv2's linear probe: the last block, and the last four concatenated."""
        depths = [n for n in (1, 4) if n <= self.layers]
        if not depths or reading.codes:
            return self.views((), reading)
        return self.views([tuple(range(self.layers - n, self.layers)) for n in depths], reading)

    @staticmethod
    def _view(layer: BlockChoice, reading: Reading) -> View:
        blocks = layer if isinstance(layer, tuple) else (layer,)
        items = tuple(reading.item(block) for block in blocks)
        if len(items) == 1:
            return View(item=items[0], layer=blocks[0])
        return View(item="+".join(items), parts=items)

    def arrays(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        """`compute`, also of items that end in `MIRROR`."""
        mirrored = {item: item.removesuffix(MIRROR) for item in items if item.endswith(MIRROR)}
        plain = [item for item in items if item not in mirrored]
        found = self.compute(batch, list(dict.fromkeys([*plain, *mirrored.values()])))
        if mirrored:
            other = self.compute([self.mirrored(pixels) for pixels in batch], list(mirrored.values()))
            found |= {item: ((found[one] + other[one]) / 2).astype(found[one].dtype) for item, one in mirrored.items()}
        return {item: found[item] for item in items}

    def mirrored(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The result of `prepare` (H, W, C), mirrored."""
        return np.ascontiguousarray(pixels[:, ::-1])

    @abstractmethod
    def default_view(self, reading: Reading) -> View:
        """The view that is measured by default."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> NDArray[Any]:
        """An RGB image as an array for a batch. Thread-safe."""

    @abstractmethod
    def compute(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Named arrays (B, ...) of a batch. Raises ValueError for numbers that are not finite."""
