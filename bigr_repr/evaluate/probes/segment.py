"""A linear head on token grids that predicts each token's class, measured by pixel mIoU. Knows no files or models."""

# n images, N tokens, h w token grid, D features, K classes, S side of masks in pixels

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bigr_repr.evaluate.data.labeled import Labeled, labeled, same_width
from bigr_repr.evaluate.data.segments import IGNORED
from bigr_repr.evaluate.metrics.interval import Interval
from bigr_repr.evaluate.probes.edges import edge_of
from bigr_repr.evaluate.probes.logistic_fit import LogisticFit, LogisticRegression
from bigr_repr.evaluate.probes.scaling import Scaling, scaling_of, standardize
from bigr_repr.system.devices import choose_device

__all__ = ["C_SEGMENT", "SegmentProbe", "intersection_over_union", "segment_probe"]

C_SEGMENT: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_TOKENS: Final = 200_000  # maximum for training
_HELD_OUT: Final = 0.2
_RESAMPLES: Final = 1000
_BATCH: Final = 16


@dataclass(frozen=True, kw_only=True)
class SegmentProbe:
    """Result of the head: mean intersection over union and pixel accuracy, in percent.

    interval: 95 % of miou, by resampling the test images. iou_by_class: {class: percent}, for classes in test masks or
    predictions. C: chosen by `held_out_miou` on a held-out fifth of the images; None: it was given. edge: a note if
    C is at an end of its grid.
    """

    miou: float
    interval: Interval
    pixel_accuracy: float
    iou_by_class: dict[int, float]
    C: float
    held_out_miou: float | None
    edge: str | None
    n_train: int
    n_test: int
    n_features: int
    grid: tuple[int, int]
    protocol: str


def segment_probe(
    train_tokens: NDArray[Any],
    train_masks: NDArray[np.uint8],
    test_tokens: NDArray[Any],
    test_masks: NDArray[np.uint8],
    *,
    grid: Sequence[float] = C_SEGMENT,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> SegmentProbe:
    """Train and test a head on tokens (n, N, D), a square grid, and masks (n, S, S), uint8, 255 for no class.

    In training, a token's class is the most frequent one of its pixels; the head is multinomial logistic regression on
    standardized tokens. In testing, its logits are upsampled bilinearly to the mask. grid: values of C; a single one is
    used as given. seed: of the held-out part, and of the token sample if there are too many.

    Raises ValueError for tokens that do not form a square or are not finite, other shapes, too few images to hold any
    out for a choice among several C, fewer than two training classes, or masks without any class.
    """
    side = _grid_side("train", train_tokens, train_masks)
    _grid_side("test", test_tokens, test_masks)
    same_width(_flat("train", train_tokens), _flat("test", test_tokens))
    fitter = _Fitter(side, seed, choose_device(device))
    values = sorted(set(grid))
    tried = fitter.tried(train_tokens, train_masks, values) if len(values) > 1 else {}
    chosen = max(tried, key=lambda each: tried[each], default=values[0])
    held = tried.get(chosen)
    counts = fitter.prepared(train_tokens, train_masks).counts(chosen, test_tokens, test_masks)
    miou, by_class = intersection_over_union(counts.sum(axis=0))
    choice = f"C={chosen:g} given" if held is None else f"C from {len(values)} values by mIoU on a held-out fifth"
    return SegmentProbe(
        miou=miou, interval=_interval(counts, seed), iou_by_class=by_class, C=chosen, held_out_miou=held,
        pixel_accuracy=float(100 * counts[:, 0].sum() / max(1, counts[:, 2].sum())),
        edge=edge_of("C", chosen, tried, values) if tried else None,
        n_train=len(train_tokens), n_test=len(test_tokens), n_features=train_tokens.shape[2], grid=(side, side),
        protocol=f"linear head on {side} x {side} standardized tokens: multinomial logistic regression of their most "
        f"frequent class, to its optimum, on at most {_TOKENS} tokens; {choice}; logits enlarged bilinearly to "
        f"{test_masks.shape[1]} x {test_masks.shape[2]} pixels of the middle square; mIoU in percent",
    )  # fmt: skip


def _grid_side(name: str, tokens: NDArray[Any], masks: NDArray[np.uint8]) -> int:
    side: int = round(tokens.shape[1] ** 0.5)
    if tokens.ndim != 3 or side**2 != tokens.shape[1] or len(tokens) != len(masks):
        shapes = f"{tokens.shape} and {masks.shape}"
        raise ValueError(f"{name} tokens and masks have shapes {shapes}; expected (n, h * h, D) and (n, S, S)")
    if (masks == IGNORED).all():
        raise ValueError(f"no pixel of the {len(masks)} {name} masks has a class (all are {IGNORED}); add other masks")
    return side


def _flat(name: str, tokens: NDArray[Any]) -> Labeled:
    """The tokens of an image side by side, without labels, after checking their numbers."""
    return labeled(name, tokens.reshape(len(tokens), -1), np.zeros(len(tokens), np.int64))


def intersection_over_union(counts: NDArray[np.int64]) -> tuple[float, dict[int, float]]:
    """Counts of agreeing, predicted and true pixels, (3, K) -> mean over predicted or true classes, and each."""
    agree, predicted, true = counts
    union = predicted + true - agree
    found = {int(name): float(100 * agree[name] / union[name]) for name in np.flatnonzero(union)}
    return float(np.mean(list(found.values()))) if found else 0.0, found


def _interval(counts: NDArray[np.int64], seed: int) -> Interval:
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=_RESAMPLES)
    found = [intersection_over_union(np.tensordot(draw, counts, axes=1))[0] for draw in draws]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class _Fitter:
    side: int
    seed: int
    device: torch.device

    def tried(self, tokens: NDArray[Any], masks: NDArray[np.uint8], values: Sequence[float]) -> dict[float, float]:
        """The mIoU of every C on a held-out fifth of the images. Raises ValueError if that leaves none to train on."""
        apart = np.random.default_rng(self.seed).permutation(len(tokens)) < max(1, round(_HELD_OUT * len(tokens)))
        if apart.all():
            raise ValueError(f"{len(tokens)} training images are too few to hold any out; pass a single C")
        head = self.prepared(tokens[~apart], masks[~apart])
        return {c: intersection_over_union(head.counts(c, tokens[apart], masks[apart]).sum(axis=0))[0] for c in values}

    def prepared(self, tokens: NDArray[Any], masks: NDArray[np.uint8]) -> _Head:
        """Tokens and their classes, ready for fitting with any C."""
        labels = _most_frequent(masks, self.side).reshape(-1)
        rows = np.flatnonzero(labels != IGNORED)
        if len(rows) > _TOKENS:
            rows = np.sort(np.random.default_rng(self.seed).choice(rows, _TOKENS, replace=False))
        classes = np.unique(labels[rows])
        if len(classes) < 2:
            raise ValueError(f"the training masks have {len(classes)} classes; a classifier needs at least 2")
        flat = tokens.reshape(-1, tokens.shape[2])[rows].astype(np.float32)
        scaling = scaling_of(flat)
        x = standardize(flat, scaling, self.device)
        y = torch.from_numpy(np.searchsorted(classes, labels[rows])).to(self.device)
        return _Head(LogisticRegression(x, y, len(classes)), classes, scaling, self)


@dataclass(frozen=True)
class _Head:
    regression: LogisticRegression
    classes: NDArray[np.uint8]
    scaling: Scaling
    fitter: _Fitter

    def counts(self, c: float, tokens: NDArray[Any], masks: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Per image, counts of agreeing, predicted and true pixels of each class: int64 (n, 3, 255)."""
        fit = self.regression.fit(c)
        found = [
            self._batch(fit, tokens[start : start + _BATCH], masks[start : start + _BATCH])
            for start in range(0, len(tokens), _BATCH)
        ]
        return np.concatenate(found)

    def _batch(self, fit: LogisticFit, tokens: NDArray[Any], masks: NDArray[np.uint8]) -> NDArray[np.int64]:
        flat = tokens.reshape(-1, tokens.shape[2]).astype(np.float32)
        logits = fit.logits(standardize(flat, self.scaling, self.fitter.device)).reshape(
            len(tokens), -1, fit.bias.numel()
        )
        side = self.fitter.side
        planes = logits.transpose(1, 2).reshape(len(tokens), -1, side, side)
        large = F.interpolate(planes, masks.shape[1:], mode="bilinear", align_corners=False)
        predicted = self.classes[large.argmax(dim=1).cpu().numpy()]
        counts = []
        for guess, mask in zip(predicted, masks, strict=True):
            known = mask != IGNORED
            kinds = (mask[known & (guess == mask)], guess[known], mask[known])
            counts.append([np.bincount(kind, minlength=IGNORED) for kind in kinds])
        return np.array(counts, np.int64)


def _most_frequent(masks: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The most frequent class in each cell of a grid: (n, S, S) -> (n, side, side).

    255 where most pixels have no class, and in cells without a pixel, when the grid is finer than the masks.
    """
    found = np.full((len(masks), side, side), IGNORED, np.uint8)
    places = np.arange(masks.shape[1]) * side // masks.shape[1]
    cells = (places[:, None] * side + places[None, :]).reshape(-1)
    for image, mask in enumerate(masks.reshape(len(masks), -1)):
        votes = np.zeros((side * side, IGNORED + 1), np.int64)
        np.add.at(votes, (cells, mask), 1)
        common = np.where(votes.any(axis=1), votes.argmax(axis=1), IGNORED)
        found[image] = common.reshape(side, side)
    return found
