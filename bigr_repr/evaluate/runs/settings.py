"""The settings of all benchmarks. Knows no data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bigr_repr._typing import PathLike
from bigr_repr.evaluate.probes.protocols import LOGREG, SgdProtocol, protocol_names, sgd_protocol
from bigr_repr.evaluate.representations.base import ALL_POOLS, Reading
from bigr_repr.evaluate.runs.cache import default_cache
from bigr_repr.features.condition import NO_CONDITION, FeatureCondition

__all__ = ["ALL", "BenchSettings", "Layers", "OnProgress", "every_block"]

ALL: Final = "all"  # blocks
MOST_SEED: Final = 2**31 - 1  # as all generators take
BOUNDS: Final = (1e-30, 1e38)  # of C and rates, which float32 holds
OnProgress = Callable[[str, int, int], None]
Layers = Sequence[int | str | tuple[int | str, ...]]


def every_block(layers: Layers | None) -> bool:
    """Whether all blocks are wanted: None, of whatever has any; "all", which is refused where a number would be."""
    return layers is None or list(layers) == [ALL]


def check_numbers(rates: Sequence[float], C: Sequence[float], batch: int | None) -> None:  # noqa: N803
    """Raises ValueError for numbers of a probe that are out of range."""
    for name, values in (("rates", rates), ("C", C)):
        if bad := [value for value in values if not BOUNDS[0] <= value <= BOUNDS[1]]:
            raise ValueError(f"{name}={bad[0]} must lie in {BOUNDS[0]:g}..{BOUNDS[1]:g}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How features are measured. protocol and seeds are the probe's, k, temperature and center the neighbors'
    (see `knn`). Raises ValueError for an unknown protocol or pool, no seeds, or numbers out of range.

    rates, batch: override the protocol's, if it trains by gradient descent; C: penalties instead of logreg's usual
    grid. A single rate or C needs no choice, so that one image per class is enough. pool: how the tokens of a block
    become one vector, as in `pool_tokens`. mirror: features are means over an image and its mirror image. condition:
    for a BiGR model's states. codes: the tokenizer's bits instead of hidden states. device: "cpu", "cuda" …; None: a
    GPU if there is one. cache: folder for features, the user's cache folder by default. batch_size, workers: of the
    extraction.
    """

    protocol: str = LOGREG
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = ()
    C: tuple[float, ...] = ()
    batch: int | None = None
    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    center: bool = False
    pool: str = "avg"
    mirror: bool = False
    condition: FeatureCondition = NO_CONDITION
    codes: bool = False
    device: str | None = None
    cache: PathLike = field(default_factory=default_cache)
    batch_size: int = 32
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in protocol_names():
            raise ValueError(f"protocol={self.protocol!r} is unknown; choose one of {', '.join(protocol_names())}")
        if self.pool not in ALL_POOLS:
            raise ValueError(f"pool={self.pool!r} is unknown; choose one of {', '.join(ALL_POOLS)}")
        if self.codes and self.condition:
            raise ValueError(f"codes take no condition ({self.condition.words}), only blocks do; leave one of them out")
        if self.codes and self.center:
            raise ValueError("codes have no mean to subtract (center=True), only numbers do; leave one of them out")
        if not self.seeds:
            raise ValueError("seeds=() is empty; pass at least one, such as (0,)")
        if min(self.seeds) < 0 or max(self.seeds) > MOST_SEED:
            raise ValueError(f"seeds={self.seeds[0]}..{self.seeds[-1]}: each must lie in 0..{MOST_SEED}")
        if not self.k or min(self.k) < 1 or not 0 < self.temperature < math.inf or self.batch_size < 1:
            raise ValueError(
                f"k={self.k}, temperature={self.temperature}, batch_size={self.batch_size}: each must be above 0"
            )
        if self.protocol == LOGREG and (self.rates or self.batch is not None):
            raise ValueError("rates and batch are for protocols by gradient descent; logreg takes C")
        if self.protocol != LOGREG and self.C:
            raise ValueError(f"C={self.C} is for protocol='logreg'; {self.protocol} takes rates")
        check_numbers(self.rates, self.C, self.batch)

    @property
    def pool_key(self) -> str:
        """The key under which the reading's best block is stored."""
        return ".".join(filter(None, (self.pool, "mirror" if self.mirror else "", self.condition.tag)))

    @property
    def reading(self) -> Reading:
        """How a representation is read."""
        return Reading(pool=self.pool, codes=self.codes, mirror=self.mirror)

    @property
    def probe_protocol(self) -> str | SgdProtocol:
        """The argument for `linear_probe`: the protocol, with the given rates and batch."""
        if self.protocol == LOGREG:
            return LOGREG
        given = sgd_protocol(self.protocol)
        return dataclasses.replace(given, rates=self.rates or given.rates, batch=self.batch or given.batch)
