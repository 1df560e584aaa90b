"""Muon on stacks of equally shaped matrices: one batched product instead of dozens. Knows nothing of models.

Source: Muon (Jordan et al. 2024); the rate that matches AdamW's step, arXiv 2502.16982.
"""

# M matrices of one shape, (R, C) rows and columns of each

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


@cache
def _arithmetic(device: str) -> torch.dtype:
    """The number type in which matrix products are fastest, if few digits are enough."""
    built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    emulated = device == "cpu" and not (built_in and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.float32 if emulated else torch.bfloat16


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all about 1, by Newton-Schulz.

    (M, R, C) -> (M, R, C), bfloat16; on CPUs without arithmetic in it, which emulate it at a tenth of the speed,
    float32. Singular values end between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.to(_arithmetic(matrices.device.type))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalized before each step, at AdamW's learning rate.

    For matrices, and for convolution kernels as matrices of output channels by everything else. The same steps as
    torch.optim.Muon with adjust_lr_fn="match_rms_adamw", up to bfloat16 rounding, in a fraction of the calls.
    Raises ValueError for a parameter of fewer than two dimensions.
    """

    def __init__(
        self, matrices: Iterable[Tensor], *, lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim < 2]
        if shapes:
            raise ValueError(f"Muon needs matrices, not shape {shapes[0]}; use AdamW for such weights")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure: compute the gradients, then call step()")
        for group in self.param_groups:
            stacks: dict[tuple[Any, ...], list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    stacks.setdefault((tuple(matrix.shape), matrix.dtype, matrix.device), []).append(matrix)
            for matrices in stacks.values():
                self._descend(matrices, group)

    def _descend(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        momentum = group["momentum"]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov's
        stack = torch.stack([step.flatten(1) for step in ahead])
        steps = orthogonalize(stack).to(matrices[0].dtype).view(-1, *matrices[0].shape).unbind()
        rate = group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
        torch._foreach_add_(matrices, list(steps), alpha=-0.2 * rate * max(stack.shape[1:]) ** 0.5)
