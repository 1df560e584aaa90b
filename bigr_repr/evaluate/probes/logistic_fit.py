"""Multinomial logistic regression to its optimum, by preconditioned L-BFGS. Knows nothing of images, splits or files.

The objective is scikit-learn's: mean cross-entropy + ||W||^2 / (2 C n), with a free intercept. (Its two-class case is
parametrized differently there: our C is its 2 C.) The difference is the method: at W = 0 the Hessian is the features'
covariance times a known K x K matrix, so its inverse starts every L-BFGS direction. This takes tens of passes over the
data instead of hundreds; the principal axes for the inverse are computed once for all penalties.
"""

# n rows, D features, K classes; parameters are (D + 1, K), the intercept last

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 22  # maximum logits held at a time
_HISTORY = 12


class LogisticFit(NamedTuple):
    """A fitted classifier: logits are x @ weight + bias.

    weight (D, K), bias (K,); `loss` is the objective, `gap` a rough estimate of its distance from the optimum, both in
    nats; `passes`: number of passes over the data.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    gap: float
    passes: int

    def logits(self, x: Tensor) -> Tensor:
        """(n, D) -> (n, K)."""
        return torch.addmm(self.bias, x, self.weight)


class LogisticRegression:
    """One data set, to be fitted with any number of penalties: x (n, D) floats, y (n,) int64 in 0..K-1.

    Columns of x should be standardized; they may be dependent or outnumber the rows. Works on x's device and in its
    dtype (float32 or float64). Memory besides x: initially a centered sample of max(8192, 4 D) rows, a few D x D
    matrices, 30 times the parameters, and 16 MB of logits.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int) -> None:
        self.x, self.y, self.classes = x, y, classes
        # The preconditioner affects only the speed of convergence: a sample of the rows is enough.
        sample = x[:: max(1, len(x) // max(8192, 4 * x.shape[1]))]
        self._mean = sample.mean(dim=0)
        self._variances, self._axes = _principal_axes(sample - self._mean)

    def fit(self, C: float, start: LogisticFit | None = None, *, tolerance: float = 1e-7) -> LogisticFit:  # noqa: N803
        """The optimum for inverse penalty `C`, in at most 500 passes over the data.

        tolerance: stop when Newton's decrement falls below this fraction of the loss, or of its difference from the
        loss of guessing, whichever is smaller. start: an initial fit, such as that of the previous penalty on a path.

        Raises ValueError unless C is positive.
        """
        if not C > 0:
            raise ValueError(f"C={C} must be above 0; a large C means a small penalty")
        penalty = 1 / (C * len(self.x))
        if start is None:
            point = self.x.new_zeros(self.x.shape[1] + 1, self.classes)
        else:
            point = torch.cat([start.weight, start.bias[None]])
        point, loss, gap, passes = self._minimize(point, penalty, self._inverse(penalty), tolerance)
        return LogisticFit(point[:-1], point[-1], loss, gap, passes)

    def _objective(self, point: Tensor, penalty: float) -> tuple[float, Tensor]:
        """Value (summed in double precision) and gradient."""
        weight, bias = point[:-1], point[-1]
        gradient = torch.zeros_like(point)
        total = point.new_zeros((), dtype=torch.float64)
        step = max(1, _CHUNK // self.classes)
        for start in range(0, len(self.x), step):
            x, y = self.x[start : start + step], self.y[start : start + step]
            log_p = torch.addmm(bias, x, weight).log_softmax(dim=1)
            total -= log_p.gather(1, y[:, None]).sum(dtype=torch.float64)
            residual = log_p.exp_()
            residual[torch.arange(len(y), device=y.device), y] -= 1
            gradient[:-1].addmm_(x.T, residual)
            gradient[-1] += residual.sum(dim=0)
        gradient /= len(self.x)
        gradient[:-1].add_(weight, alpha=penalty)
        return float(total) / len(self.x) + 0.5 * penalty * float(weight.square().sum(dtype=torch.float64)), gradient

    def _inverse(self, penalty: float) -> tuple[Tensor, float]:
        """The inverse Hessian of the weights at W = 0: its extra value along each axis, and its value in any direction.

        A small multiple of the identity keeps it bounded.
        """
        hessian = self._variances / self.classes
        base = penalty + 1e-6 * float(hessian.sum()) / self.x.shape[1]
        return 1 / (hessian + base) - 1 / base, 1 / base

    def _precondition(self, direction: Tensor, inverse: tuple[Tensor, float]) -> Tensor:
        """The inverse Hessian at W = 0 times `direction`, both (D + 1, K), on directions that sum to 0 over classes."""
        # Block elimination of the intercept, for columns whose mean is not 0.
        along, anywhere = inverse
        weight = direction[:-1] - self._mean[:, None] * direction[-1]
        weight = torch.addmm(weight, self._axes, along[:, None] * (self._axes.T @ weight), beta=anywhere)
        bias = direction[-1] * self.classes - self._mean @ weight
        return torch.cat([weight, bias[None]])

    def _minimize(
        self, point: Tensor, penalty: float, inverse: tuple[Tensor, float], tolerance: float
    ) -> tuple[Tensor, float, float, int]:
        value, gradient = self._objective(point, penalty)
        history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_HISTORY)
        scale, gap, passes, guessing = 1.0, math.inf, 1, math.log(self.classes)
        while passes < 500:
            direction = self._direction(gradient, history, scale, inverse)
            slope = float((gradient * direction).sum(dtype=torch.float64))
            gap = -slope / 2  # Newton's decrement
            if gap < tolerance * min(value, max(guessing - value, 1e-6)):
                break
            step = 1.0
            while True:
                candidate = point + step * direction
                new_value, new_gradient = self._objective(candidate, penalty)
                passes += 1
                if new_value <= value + 1e-4 * step * slope:
                    break
                if step * gap < 1e-8 * abs(value) or passes >= 500:  # below the sums' rounding errors
                    return point, value, gap, passes
                # The minimum of the interpolating parabola, clamped to sensible bounds.
                step *= min(0.5, max(0.1, -slope * step / (2 * (new_value - value - slope * step))))
            moved, change = step * direction, new_gradient - gradient
            curvature = (moved * change).sum()
            if curvature > 0:
                history.append((moved, change, curvature))
                scale = float(curvature / (change * self._precondition(change, inverse)).sum())
            point, value, gradient = candidate, new_value, new_gradient
        return point, value, gap, passes

    def _direction(
        self,
        gradient: Tensor,
        history: deque[tuple[Tensor, Tensor, Tensor]],
        scale: float,
        inverse: tuple[Tensor, float],
    ) -> Tensor:
        """The two-loop recursion (Nocedal and Wright, algorithm 7.4) around the preconditioner."""
        q = -gradient
        weights = []
        for moved, change, curvature in reversed(history):
            alpha = (moved * q).sum() / curvature
            weights.append(alpha)
            q = q - alpha * change
        r = scale * self._precondition(q, inverse)
        for (moved, change, curvature), alpha in zip(history, reversed(weights), strict=True):
            r = r + (alpha - (change * r).sum() / curvature) * moved
        return r


def _principal_axes(centered: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (r,) along orthonormal axes (D, r) of centered rows (m, D), r = min(m, D)."""
    rows, width = centered.shape
    if rows < width:
        _, spread, axes = torch.linalg.svd(centered, full_matrices=False)
        return spread.square() / rows, axes.T.contiguous()
    variances, axes = torch.linalg.eigh((centered.T @ centered) / rows)
    return variances.clamp_min(0), axes
