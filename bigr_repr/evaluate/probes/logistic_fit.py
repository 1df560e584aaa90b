"""Multinomial logistic regression to its optimum, by preconditioned L-BFGS. Knows nothing of images, splits or files.

The objective is scikit-learn's: mean cross-entropy + ||W||^2 / (2 C n), with a free intercept. (Its two-class case is
parametrized differently there: our C is its 2 C.) The difference is the method: at W = 0 the Hessian is the features'
covariance times a known K x K matrix, so its inverse starts every L-BFGS direction. This takes tens of passes over the
data instead of hundreds; the principal axes for the inverse are computed once for all penalties. Where float32 cannot
tell the way down, as with hardly any penalty, the fit is repeated in float64.
"""

# n rows, D features, K classes; parameters are (D + 1, K), the intercept last

from __future__ import annotations

import logging
import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 22  # maximum logits held at a time
_HISTORY = 12
_PASSES = 500  # maximum in each precision
_TRIES = 30  # maximum lengths of a step
_FLOOR = 1e-5  # nats; of a smaller loss, float32 holds too few digits

_log = logging.getLogger(__name__)


class LogisticFit(NamedTuple):
    """A fitted classifier: logits are x @ weight + bias.

    weight (D, K), bias (K,); `loss` is the objective, `gap` a rough estimate of its distance from the optimum, both in
    nats; `passes`: number of passes over the data. `converged`: whether the tolerance was met.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    gap: float
    passes: int
    converged: bool

    def logits(self, x: Tensor) -> Tensor:
        """(n, D) -> (n, K)."""
        return torch.addmm(self.bias, x, self.weight)


class _Inverse(NamedTuple):
    """The inverse Hessian of the weights at W = 0: `along` each of the axes (r,), and `anywhere` outside their span.

    mean (D,), axes (D, r). apart: whether the two differ so much that rounding errors of one would hide the other.
    """

    mean: Tensor
    axes: Tensor
    along: Tensor
    anywhere: float
    apart: bool


class _Step(NamedTuple):
    """A step, with the objective's value and gradient after it; None if none was found in these passes."""

    moved: Tensor | None
    value: float
    gradient: Tensor
    passes: int


class LogisticRegression:
    """One data set, to be fitted with any number of penalties: x (n, D) floats, y (n,) int64 in 0..K-1.

    Columns of x should be standardized; they may be dependent or outnumber the rows. Works on x's device and in its
    dtype (float32 or float64). Memory besides x: initially a centered sample of max(8192, 4 D) rows, a few D x D
    matrices, 30 times the parameters, and 16 MB of logits; three times as much while a fit goes on in float64.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int) -> None:
        self.x, self.y, self.classes = x, y, classes
        self._axes: dict[torch.dtype, tuple[Tensor, Tensor, Tensor]] = {}

    def fit(self, C: float, start: LogisticFit | None = None, *, tolerance: float = 1e-7) -> LogisticFit:  # noqa: N803
        """The optimum for inverse penalty `C`, in about 500 passes over the data at most, and as many in float64 if
        float32 does not suffice; logs a warning if these do not either.

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
        found = self._minimize(point, penalty, tolerance)
        if not found.converged and point.dtype != torch.float64:
            # From the start, as the first may have strayed; closer, as so small a loss says little of the classes.
            finer = self._minimize(point.double(), penalty, tolerance / 100)
            weight, bias = finer.weight.to(point), finer.bias.to(point)
            found = finer._replace(weight=weight, bias=bias, passes=found.passes + finer.passes)
        if not found.converged:
            remedy = "its accuracy may be a little off; use a smaller C"
            _log.warning("C=%g: no optimum after %d passes over the data, %s", C, found.passes, remedy)
        return found

    def _objective(self, point: Tensor, penalty: float) -> tuple[float, Tensor]:
        """Value (summed in double precision) and gradient, computed in the point's dtype."""
        weight, bias = point[:-1], point[-1]
        gradient = torch.zeros_like(point)
        total = point.new_zeros((), dtype=torch.float64)
        # Rows are converted in blocks: no copy of all of them is made.
        step = max(1, _CHUNK // (self.classes if point.dtype == self.x.dtype else max(point.shape)))
        for start in range(0, len(self.x), step):
            x, y = self.x[start : start + step].to(point), self.y[start : start + step]
            log_p = torch.addmm(bias, x, weight).log_softmax(dim=1)
            total -= log_p.gather(1, y[:, None]).sum(dtype=torch.float64)
            residual = log_p.exp_()
            residual[torch.arange(len(y), device=y.device), y] -= 1
            gradient[:-1].addmm_(x.T, residual)
            gradient[-1] += residual.sum(dim=0)
        gradient /= len(self.x)
        gradient[:-1].add_(weight, alpha=penalty)
        return float(total) / len(self.x) + 0.5 * penalty * float(weight.square().sum(dtype=torch.float64)), gradient

    def _inverse(self, penalty: float, dtype: torch.dtype) -> _Inverse:
        """The inverse Hessian at W = 0. A small multiple of the identity keeps it bounded."""
        if dtype not in self._axes:
            # The preconditioner affects only the speed of convergence: a sample of the rows is enough.
            sample = self.x[:: max(1, len(self.x) // max(8192, 4 * self.x.shape[1]))].to(dtype)
            mean = sample.mean(dim=0)
            self._axes[dtype] = mean, *_principal_axes(sample - mean)
        mean, variances, axes = self._axes[dtype]
        hessian = variances / self.classes
        base = penalty + 1e-6 * float(hessian.sum()) / self.x.shape[1]
        anywhere = 1 / base if axes.shape[1] < axes.shape[0] else 0.0  # all directions lie in the axes' span
        apart = anywhere * (float(hessian.max()) + base) * torch.finfo(dtype).eps > 1e-3
        return _Inverse(mean, axes, 1 / (hessian + base), anywhere, apart)

    def _minimize(self, point: Tensor, penalty: float, tolerance: float) -> LogisticFit:
        inverse = self._inverse(penalty, point.dtype)
        floor = 0 if point.dtype == torch.float64 else _FLOOR
        value, gradient = self._objective(point, penalty)
        history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_HISTORY)
        scale, gap, passes, guessing, converged = 1.0, math.inf, 1, math.log(self.classes), False
        while passes < _PASSES and value >= floor:
            direction = _direction(gradient, history, scale, inverse)
            slope = float((gradient * direction).sum(dtype=torch.float64))
            gap = -slope / 2  # Newton's decrement
            if 0 <= gap <= tolerance * min(value, max(guessing - value, 1e-6)):
                converged = True
                break
            step = self._search(point, value, slope, direction, penalty) if slope < 0 else None
            passes += step.passes if step else 0
            if step is None or step.moved is None:
                if not history:
                    break  # rounding errors hide the way down
                history.clear()  # it no longer describes the curvature; the preconditioner does, roughly
                scale = 1.0
                continue
            change = step.gradient - gradient
            curvature = (step.moved * change).sum()
            if curvature > 0:
                history.append((step.moved, change, curvature))
                scale = float(curvature / (change * _precondition(change, inverse)).sum())
            point, value, gradient = point + step.moved, step.value, step.gradient
        return LogisticFit(point[:-1], point[-1], value, gap, passes, converged)

    def _search(self, point: Tensor, value: float, slope: float, direction: Tensor, penalty: float) -> _Step:
        """A step along `direction` that lowers the objective enough, or none."""
        step = 1.0
        for passes in range(1, _TRIES + 1):
            moved = step * direction
            new_value, gradient = self._objective(point + moved, penalty)
            if new_value <= value + 1e-4 * step * slope:
                return _Step(moved, new_value, gradient, passes)
            if -step * slope / 2 < 1e-8 * abs(value):  # below the sums' rounding errors
                break
            # The minimum of the interpolating parabola, clamped to sensible bounds.
            step *= min(0.5, max(0.1, -slope * step / (2 * (new_value - value - slope * step))))
        return _Step(None, value, gradient, passes)


def _direction(
    gradient: Tensor, history: deque[tuple[Tensor, Tensor, Tensor]], scale: float, inverse: _Inverse
) -> Tensor:
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4) around the preconditioner."""
    q = -gradient
    weights = []
    for moved, change, curvature in reversed(history):
        alpha = (moved * q).sum() / curvature
        weights.append(alpha)
        q = q - alpha * change
    r = scale * _precondition(q, inverse)
    for (moved, change, curvature), alpha in zip(history, reversed(weights), strict=True):
        r = r + (alpha - (change * r).sum() / curvature) * moved
    return r


def _precondition(direction: Tensor, inverse: _Inverse) -> Tensor:
    """The inverse Hessian at W = 0 times `direction`, both (D + 1, K), on directions that sum to 0 over classes."""
    # Block elimination of the intercept, for columns whose mean is not 0.
    weight = direction[:-1] - inverse.mean[:, None] * direction[-1]
    inside = inverse.axes.T @ weight
    if inverse.apart:
        outside = weight - inverse.axes @ inside
        outside = outside - inverse.axes @ (inverse.axes.T @ outside)  # again, or rounding could turn it uphill
        weight = inverse.axes @ (inverse.along[:, None] * inside) + inverse.anywhere * outside
    else:
        inside = (inverse.along - inverse.anywhere)[:, None] * inside
        weight = torch.addmm(weight, inverse.axes, inside, beta=inverse.anywhere)
    bias = direction[-1] * direction.shape[1] - inverse.mean @ weight
    return torch.cat([weight, bias[None]])


def _principal_axes(centered: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (r,) along orthonormal axes (D, r) of centered rows (m, D), r = min(m, D)."""
    rows, width = centered.shape
    if rows < width:
        _, spread, axes = torch.linalg.svd(centered, full_matrices=False)
        return spread.square() / rows, axes.T.contiguous()
    variances, axes = torch.linalg.eigh((centered.T @ centered) / rows)
    return variances.clamp_min(0), axes
