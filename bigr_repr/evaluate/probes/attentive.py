"""The attentive probe: learned queries attend to a layer's tokens, followed by a linear classifier.

Every query has a share of the values' width, so that the classifier has as many inputs as a linear probe on the mean.
Keys are the tokens themselves, as in efficient probing (arXiv 2506.10178). Every layer and rate has a head of its own,
and all train in one run. Knows no images, splits or files.
"""

# L layers, H rates, n rows (images), B batch, N tokens, D width, Q queries, K classes

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bigr_repr.evaluate.data.labeled import Labeled, accuracy, class_indices, labeled, shared_classes
from bigr_repr.evaluate.metrics.interval import bootstrap
from bigr_repr.evaluate.probes.edges import edge_of
from bigr_repr.evaluate.probes.heads import diverged
from bigr_repr.evaluate.probes.linear_probe import LinearProbe, mean_per_class
from bigr_repr.evaluate.probes.logreg import hold_out
from bigr_repr.system.devices import choose_device

__all__ = ["AttentiveProbe", "attentive_probe"]

_ROWS: Final = 512  # rows ranked at a time


@dataclass(frozen=True, kw_only=True)
class AttentiveProbe:
    """How attentive heads are trained: AdamW, rates following half a cosine after a tenth of warm-up.

    queries: must divide the tokens' width. rates: candidates, chosen on a held-out fifth.
    """

    queries: int = 8
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    epochs: int = 30
    batch: int = 256
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if min(self.queries, self.epochs, self.batch) < 1 or not self.rates or min(self.rates) <= 0:
            raise ValueError(f"{self}: every number must be above 0, and at least one rate is needed")


def attentive_probe(
    train: Sequence[NDArray[Any]],
    train_labels: NDArray[np.int64],
    test: Sequence[NDArray[Any]],
    test_labels: NDArray[np.int64],
    *,
    probe: AttentiveProbe | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> list[LinearProbe]:
    """Train attentive heads on tokens and measure them: one result per layer.

    train, test: tokens (n, N, D) of each layer, floats; labels integers (n,). Rates are chosen on a held-out fifth
    of the training images, and the chosen heads retrained on all. seed: of initialization, batches and split.

    Raises ValueError for tokens of another shape or that are not finite, queries that do not divide D, too few images
    to hold any out for a choice among several rates, and a layer whose heads all diverged.
    """
    options, target = probe or AttentiveProbe(), choose_device(device)
    _check(train, options.queries)
    sides = [_checked(*side) for side in (("train", train, train_labels), ("test", test, test_labels))]
    classes = shared_classes(*sides)
    y = class_indices(train_labels, classes, target)
    x = torch.stack([torch.from_numpy(np.ascontiguousarray(each)) for each in train])
    rates = torch.tensor(options.rates).repeat(len(x), 1)
    right = _held_out_accuracy(x, y, sides[0], classes, options, rates, seed)
    chosen = right.argmax(dim=1)
    final = _train(x, y, len(classes), options, rates.gather(1, chosen[:, None]), seed)
    tests = torch.stack([torch.from_numpy(np.ascontiguousarray(each)) for each in test])
    order, finite = final.ranked(tests, min(5, len(classes)))
    if not finite.all():
        raise diverged(options.rates)
    ranked = classes[order[:, 0].cpu().numpy()]
    scores = [dict(zip(options.rates, (100 * row.clamp_min(0)).tolist(), strict=True)) for row in right]
    return [
        _result(each, scores[i], options, int(chosen[i]), x.shape, test_labels, seed) for i, each in enumerate(ranked)
    ]


def _check(train: Sequence[NDArray[Any]], queries: int) -> None:
    if not train or any(each.ndim != 3 for each in train):
        raise ValueError("an attentive probe needs tokens (n, N, D); store them unpooled")
    if train[0].shape[2] % queries:
        raise ValueError(f"queries={queries} does not divide the tokens' width {train[0].shape[2]}; choose a divisor")


def _checked(name: str, layers: Sequence[NDArray[Any]], labels: NDArray[np.int64]) -> Labeled:
    """The first layer's tokens side by side, with labels, after checking the rows of all layers."""
    first, *_ = [labeled(name, each.reshape(len(each), -1), labels) for each in layers]
    return first


def _held_out_accuracy(
    x: Tensor,
    y: Tensor,
    train: Labeled,
    classes: NDArray[np.int64],
    options: AttentiveProbe,
    rates: Tensor,
    seed: int,
) -> Tensor:
    """Accuracy (L, H) of the heads on a held-out fifth, -1 for those that diverged; NaN for a single rate if nothing
    can be held out.
    """
    try:
        split = hold_out(train, classes, np.arange(len(y)), np.random.default_rng(seed))
    except ValueError:
        if len(options.rates) > 1:
            raise
        return torch.full(rates.shape, math.nan)
    kept, held = (torch.from_numpy(rows) for rows in split)
    heads = _train(x[:, kept], y[kept], len(classes), options, rates, seed)
    ranked, finite = heads.ranked(x[:, held], 1)
    right = (ranked[..., 0].cpu() == y[held].cpu()).double().mean(dim=-1)
    right = torch.where(finite.cpu(), right, -1.0)
    if (right < 0).all(dim=1).any():
        raise diverged(options.rates)
    return right


class _AttentiveHeads:
    """Heads of all layers and rates, as leading axes (L, H) of every parameter."""

    def __init__(self, x: Tensor, classes: int, queries: int, heads: int, seed: int, device: torch.device) -> None:
        layers, _, _, width = x.shape
        draw = torch.Generator().manual_seed(seed)
        share = width // queries
        sample = x[:, :: max(1, x.shape[1] // 512)].float().flatten(1, 2)
        self.mean, self.scale = (
            each.to(device)[:, None, None] for each in (sample.mean(dim=1), sample.std(dim=1).clamp_min(1e-6))
        )

        def start(*shape: int, std: float) -> Tensor:
            one = torch.randn(*shape, generator=draw) * std
            return one.expand(layers, heads, *shape).clone().to(device).requires_grad_()

        self.query = start(queries, width, std=width**-0.5)
        self.value = start(queries, width, share, std=width**-0.5)
        self.weight = start(width, classes, std=0.01)
        self.bias = start(1, classes, std=0.0)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.query, self.value, self.weight, self.bias]

    def logits(self, tokens: Tensor) -> Tensor:
        """Tokens (L, B, N, D) -> (L, H, B, K)."""
        x = (tokens.to(self.mean) - self.mean) / self.scale
        attention = torch.einsum("lbnd,lhqd->lhbqn", x, self.query).softmax(dim=-1)
        seen = torch.einsum("lhbqn,lbnd->lhbqd", attention, x)
        values = torch.einsum("lhbqd,lhqds->lhbqs", seen, self.value).flatten(3)
        values = F.layer_norm(values, values.shape[-1:])
        return torch.einsum("lhbd,lhdk->lhbk", values, self.weight) + self.bias

    @torch.no_grad()
    def ranked(self, tokens: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """The classes with the largest logits, best first (L, H, n, top), and whether all are finite: bool (L, H)."""
        parts, finite = [], torch.ones(self.weight.shape[:2], dtype=torch.bool, device=self.weight.device)
        for part in torch.split(tokens, _ROWS, dim=1):
            logits = self.logits(part)
            finite &= logits.isfinite().all(dim=-1).all(dim=-1)
            parts.append(logits.topk(top, dim=-1).indices)
        return torch.cat(parts, dim=2), finite


def _train(x: Tensor, y: Tensor, classes: int, options: AttentiveProbe, rates: Tensor, seed: int) -> _AttentiveHeads:
    """Heads at rates (L, H), trained on tokens x (L, n, N, D)."""
    heads = _AttentiveHeads(x, classes, options.queries, rates.shape[1], seed, y.device)
    # One optimizer at rate 1, with steps scaled by each head's rate: Adam's step is proportional to its rate.
    optimizer = torch.optim.AdamW(heads.parameters, lr=1.0, weight_decay=0.0)
    scale = rates.to(y.device)
    draw = torch.Generator().manual_seed(seed)
    batch = min(options.batch, len(y))
    an_epoch = len(y) // batch
    total = options.epochs * an_epoch
    for step in range(total):
        if step % an_epoch == 0:
            order = torch.randperm(len(y), generator=draw)
        rows = order[step % an_epoch * batch :][:batch]
        logits = heads.logits(x[:, rows])
        truth = y[rows.to(y.device)].expand(*logits.shape[:2], -1)
        loss = F.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="sum") / batch
        torch.autograd.backward(loss)
        _step(heads, optimizer, scale * _factor(step, total), options.weight_decay)
    return heads


def _step(heads: _AttentiveHeads, optimizer: torch.optim.Optimizer, rates: Tensor, weight_decay: float) -> None:
    before = [parameter.detach().clone() for parameter in heads.parameters]
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for parameter, old in zip(heads.parameters, before, strict=True):
            rate = rates.reshape(*rates.shape, *([1] * (parameter.ndim - 2)))
            parameter.copy_(old * (1 - rate * weight_decay) + rate * (parameter - old))


def _factor(step: int, total: int) -> float:
    """A tenth of linear warm-up, then half a cosine."""
    warmup = max(1, total // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _result(
    ranked: NDArray[np.int64],
    scores: dict[float, float],
    options: AttentiveProbe,
    chosen: int,
    shape: tuple[int, ...],
    truth: NDArray[np.int64],
    seed: int,
) -> LinearProbe:
    rate = options.rates[chosen]
    edge = edge_of("rate", rate, scores, options.rates)
    held_out = None if math.isnan(scores[rate]) else scores[rate]
    return LinearProbe(
        top1=accuracy(ranked, truth, 1), top5=accuracy(ranked, truth, 5), interval=bootstrap(ranked[:, 0] == truth),
        seed_interval=None, top1_by_seed=(accuracy(ranked, truth, 1),), held_out_top1=held_out,
        settings=({"rate": rate},), n_train=shape[1], n_test=len(truth), n_features=shape[3],
        n_classes=len(np.unique(truth)), seeds=(seed,), edges=() if edge is None else (edge,),
        mean_per_class=mean_per_class(ranked[:, 0], truth), predicted=ranked[:, 0],
        protocol=_words(options, shape[1], shape[2]),
    )  # fmt: skip


def _words(options: AttentiveProbe, images: int, tokens: int) -> str:
    """The method in words, as of its training on so many images."""
    epochs = f"{options.epochs} epoch{'' if options.epochs == 1 else 's'}"
    choice = f"{len(options.rates)} rates, chosen on a held-out fifth (stratified), retrained"
    if len(options.rates) == 1:
        choice = f"rate {options.rates[0]:g} given, trained"
    return (
        f"attentive: {options.queries} quer{'y' if options.queries == 1 else 'ies'} over {tokens} tokens, then linear, "
        f"by AdamW, batch {min(options.batch, images)}, {epochs}, cosine; {choice} on all {images} training images"
    )
