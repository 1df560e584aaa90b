"""Linear-probe protocols as data: optimizer, rates, length and head of MAE, MAGE and DINOv2. Knows nothing of tensors.

The published protocols augment the images; these use features extracted once, without augmentation.
Sources: MAE (arXiv 2111.06377), table 10; MAGE (arXiv 2211.09117), table 9; DINOv2 (arXiv 2304.07193), appendix B.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

__all__ = ["DINOV2", "LOGREG", "PROTOCOLS", "SgdProtocol", "protocol_names", "sgd_protocol"]

DINOV2: Final = "dinov2"
LOGREG: Final = "logreg"  # multinomial logistic regression to its optimum; see linear_probe


@dataclass(frozen=True, kw_only=True)
class SgdProtocol:
    """How heads are trained by gradient descent. Every rate has a head; all train together.

    optimizer: "sgd" or "lars", with `momentum`. rates: base rates, multiplied by batch / 256; they follow half a
    cosine after a linear `warmup`. Exactly one of `epochs` and `iterations` sets the length; warmup is in epochs.
    batch: images per step; the whole training set if that is smaller. batch_norm: features first pass a BatchNorm
    without affine parameters (eps 1e-6). init_std: of the initial weights; biases start at 0.
    """

    name: str
    optimizer: str
    rates: tuple[float, ...]
    batch: int
    epochs: int = 0
    iterations: int = 0
    warmup: int = 0
    momentum: float = 0.9
    batch_norm: bool = False
    init_std: float = 0.01

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "lars"):
            raise ValueError(f"optimizer={self.optimizer!r} is unknown; choose sgd or lars")
        if not self.rates or not min(self.rates) > 0:
            raise ValueError(f"rates={self.rates} must hold at least one rate, each above 0")
        if self.batch < 1 or (self.epochs > 0) == (self.iterations > 0):
            raise ValueError(
                f"batch={self.batch}, epochs={self.epochs}, iterations={self.iterations}: "
                "batch must be at least 1, and exactly one of epochs and iterations above 0"
            )

    def steps(self, rows: int) -> tuple[int, int]:
        """Total optimizer steps, and those of the warm-up, for a training set of so many rows."""
        an_epoch = math.ceil(rows / min(self.batch, rows))
        return self.iterations or self.epochs * an_epoch, self.warmup * an_epoch

    def factor(self, step: int, rows: int) -> float:
        """The factor of a base rate at a step: batch / 256, warm-up and cosine."""
        total, warmup = self.steps(rows)
        scale = min(self.batch, rows) / 256
        if step < warmup:
            return scale * step / warmup
        return scale * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _around(rate: float) -> tuple[float, ...]:
    """13 rates, each twice the previous one, with the published one in the middle."""
    return tuple(rate * 2.0**power for power in range(-6, 7))


_DINOV2_RATES: Final = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)

PROTOCOLS: Final = {
    each.name: each
    for each in (
        SgdProtocol(
            name="mae", optimizer="lars", rates=_around(0.1), batch=16384, epochs=90, warmup=10, batch_norm=True
        ),
        SgdProtocol(
            name="mage", optimizer="lars", rates=_around(0.1), batch=4096, epochs=90, warmup=10, batch_norm=True
        ),
        # The published run: 128 images on each of 8 GPUs, with rates scaled by 1024 / 256.
        SgdProtocol(name="dinov2", optimizer="sgd", rates=_DINOV2_RATES, batch=1024, iterations=12500),
    )
}


def protocol_names() -> tuple[str, ...]:
    """Names for a probe's `protocol`."""
    return (LOGREG, *PROTOCOLS)


def sgd_protocol(name: str) -> SgdProtocol:
    """A protocol by name. Raises ValueError for an unknown one."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol={name!r} is unknown; choose one of {', '.join(protocol_names())}")
    return PROTOCOLS[name]
