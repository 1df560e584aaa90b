"""Linear heads trained by gradient descent, all settings at once. Knows no images, splits or files.

Every layer, seed and rate has a head of its own, and one batched product trains all of them: the heads of
a layer and seed use the same batch. A head does not depend on which others are trained with it.
"""

# L layers, S seeds, G = L x S groups, H heads per group (rates), n rows, B batch, D features, K classes

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigr_repr.evaluate.probes.protocols import SgdProtocol

__all__ = ["Heads", "diverged", "train_heads", "train_renewed"]

_TRUST = 0.001  # LARS's coefficient in the code of MAE
_BN_MOMENTUM, _BN_EPS = 0.1, 1e-6
_LOGITS = 1 << 24  # maximum numbers held at a time


@dataclass(frozen=True, eq=False)
class Heads:
    """Trained heads: weight (L, S, H, D, K), bias (L, S, H, K), and statistics that normalize features, (L, S, D)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    @property
    def finite(self) -> Tensor:
        """Whether all weights of a head are finite: bool (L, S, H)."""
        return self.weight.isfinite().all(dim=(-2, -1)) & self.bias.isfinite().all(dim=-1)

    def logits(self, x: Tensor, layer: int, seed: int) -> Tensor:
        """Features of a layer (n, D) -> logits of its heads of a seed (number), (H, n, K)."""
        weight, bias = self.weight[layer, seed], self.bias[layer, seed]
        return torch.baddbmm(
            bias[:, None],
            ((x - self.mean[layer, seed]) / self.deviation[layer, seed]).expand(len(weight), -1, -1),
            weight,
        )

    def ranked(self, x: Tensor, layer: int, seed: int, top: int) -> Tensor:
        """The classes with the largest logits, best first: (H, n, top)."""
        step = max(1, _LOGITS // max(1, self.bias[layer, seed].numel()))
        parts = [
            self.logits(x[start : start + step], layer, seed).topk(top).indices for start in range(0, len(x), step)
        ]
        return torch.cat(parts, dim=1)


def diverged(rates: Sequence[float]) -> ValueError:
    """The error for heads whose weights or logits are not finite."""
    said = ", ".join(f"{rate:g}" for rate in rates)
    return ValueError(f"rates={said}: training diverged; give smaller rates, or features of ordinary size")


def train_heads(
    x: Tensor,
    y: Tensor,
    classes: int,
    protocol: SgdProtocol,
    seeds: Sequence[int],
    choice: Tensor | None = None,
) -> Heads:
    """Train heads on features x (L, n, D) floats with labels y (n,) int64 in 0..K-1, on x's device.

    seeds: a head's initial weights and batch order depend only on its seed. choice: int64 (L, S), the index of the rate
    to train in each group, instead of all of them.
    """
    rates = torch.tensor(protocol.rates, device=x.device)
    groups = len(x) * len(seeds)
    chosen = rates.expand(groups, -1) if choice is None else rates[choice.to(x.device).reshape(groups, 1)]
    trainer = _Trainer(x, y, classes, protocol, seeds, chosen)
    total, _ = protocol.steps(x.shape[1])
    for step in range(total):
        trainer.step(protocol.factor(step, x.shape[1]))
    return trainer.heads()


def train_renewed(
    features: Callable[[int], Tensor],
    y: Tensor,
    classes: int,
    protocol: SgdProtocol,
    seeds: Sequence[int],
    parts: Sequence[Tensor],
) -> list[Heads]:
    """Heads on each of several parts of the rows, with new features in every epoch, such as of augmented images.

    features(epoch): (L, n, D) of all rows, called once per epoch. y (n,); parts: row numbers, int64. If features are
    the same in every epoch, the heads equal those of `train_heads` on the part's rows.
    """
    x = features(0)
    rates = torch.tensor(protocol.rates, device=x.device).expand(len(x) * len(seeds), -1)
    trainers = [_Trainer(x[:, part], y[part], classes, protocol, seeds, rates) for part in parts]
    epoch, done = 0, [0] * len(parts)
    while True:
        for number, (trainer, part) in enumerate(zip(trainers, parts, strict=True)):
            trainer.renew(x[:, part])
            total, _ = protocol.steps(len(part))
            until = min(total, done[number] + -(-len(part) // protocol.batch))
            for step in range(done[number], until):
                trainer.step(protocol.factor(step, len(part)))
            done[number] = until
        if all(count == protocol.steps(len(part))[0] for count, part in zip(done, parts, strict=True)):
            return [trainer.heads() for trainer in trainers]
        epoch += 1
        x = features(epoch)


class _Trainer:
    """The state of all heads: weight (G, D, H, K), bias (G, 1, H, K), their momenta, and running statistics (G, D)."""

    def __init__(
        self, x: Tensor, y: Tensor, classes: int, protocol: SgdProtocol, seeds: Sequence[int], rates: Tensor
    ) -> None:
        self._x, self._y, self._protocol = x, y, protocol
        self._layers, self._rows, width = x.shape
        self._seeds, heads = len(seeds), rates.shape[1]
        groups = self._layers * self._seeds
        self._draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        starts = [torch.randn(width, classes, generator=draw) * protocol.init_std for draw in self._draws]
        start = torch.stack(starts).to(x)[None, :, :, None].expand(self._layers, -1, -1, heads, -1)
        self._weight = start.reshape(groups, width, heads, classes).contiguous()
        self._bias = x.new_zeros(groups, 1, heads, classes)
        self._weight_momentum, self._bias_momentum = torch.zeros_like(self._weight), torch.zeros_like(self._bias)
        self._mean, self._variance = x.new_zeros(groups, width), x.new_ones(groups, width)
        self._rate = rates.to(x)[:, None, :, None]
        self._batch = min(protocol.batch, self._rows)
        self._order = [torch.empty(0, dtype=torch.int64)] * self._seeds

    def renew(self, x: Tensor) -> None:
        """Use other features (L, n, D) of the same rows from the next step on."""
        self._x = x

    def _rows_of(self, seed: int) -> Tensor:
        """Row numbers of a seed's next batch: each row once per epoch, in random order; the last may be smaller."""
        if not len(self._order[seed]):
            self._order[seed] = torch.randperm(self._rows, generator=self._draws[seed])
        rows, self._order[seed] = self._order[seed][: self._batch], self._order[seed][self._batch :]
        return rows.to(self._x.device)

    def step(self, factor: float) -> None:
        """One step of all heads, at `factor` times their base rates."""
        rows = torch.stack([self._rows_of(seed) for seed in range(self._seeds)])
        groups, width, heads, classes = self._weight.shape
        x = self._x[:, rows].reshape(groups, rows.shape[1], width)
        if self._protocol.batch_norm:
            x = self._normalized(x)
        logits = torch.bmm(x, self._weight.flatten(2)).view(groups, -1, heads, classes).add_(self._bias)
        residual = logits.softmax(dim=-1)
        truth = self._y[rows].repeat(self._layers, 1)[:, :, None, None].expand(-1, -1, heads, 1)
        residual.scatter_add_(3, truth, residual.new_full((), -1.0).expand_as(truth))
        residual /= rows.shape[1]
        gradient = torch.bmm(x.transpose(1, 2), residual.flatten(2)).view_as(self._weight)
        self._update(gradient, residual.sum(dim=1, keepdim=True), factor)

    def _normalized(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, correction=0)
        unbiased = variance * (x.shape[1] / max(1, x.shape[1] - 1))
        self._mean.lerp_(mean, _BN_MOMENTUM)
        self._variance.lerp_(unbiased, _BN_MOMENTUM)
        return (x - mean[:, None]) * (variance[:, None] + _BN_EPS).rsqrt()

    def _update(self, gradient: Tensor, bias_gradient: Tensor, factor: float) -> None:
        if self._protocol.optimizer == "lars":  # which leaves biases to plain momentum
            norms = [each.square().sum(dim=(1, 3), keepdim=True).sqrt() for each in (self._weight, gradient)]
            trust = torch.where((norms[0] > 0) & (norms[1] > 0), _TRUST * norms[0] / norms[1].clamp_min(1e-30), 1.0)
            gradient.mul_(trust)
        for momentum, change, value in (
            (self._weight_momentum, gradient, self._weight),
            (self._bias_momentum, bias_gradient, self._bias),
        ):
            momentum.mul_(self._protocol.momentum).add_(change)
            value.sub_(momentum * (factor * self._rate))

    def heads(self) -> Heads:
        """The heads as trained so far, with BatchNorm at its running statistics."""
        _, width, heads, classes = self._weight.shape
        shape = (self._layers, self._seeds)
        deviation = (self._variance + _BN_EPS).sqrt() if self._protocol.batch_norm else torch.ones_like(self._variance)
        return Heads(
            self._weight.permute(0, 2, 1, 3).reshape(*shape, heads, width, classes),
            self._bias.reshape(*shape, heads, classes),
            self._mean.reshape(*shape, width),
            deviation.reshape(*shape, width),
        )
