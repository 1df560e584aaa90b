"""What every representation can do: prepare one picture, in threads, and compute named arrays of a batch.

Knows nothing of data sets, labels or caches.
"""

# B batch, D width

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from bigr_repr.codes import from_bytes


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
