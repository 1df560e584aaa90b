"""Exponential moving average of a module's weights, sharded or not. Knows nothing of losses or checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _full(tensor: Tensor) -> Tensor:
    gather = getattr(tensor, "full_tensor", None)  # FSDP2 shards are DTensors
    return tensor if gather is None else gather()


class ExponentialAverage:
    """Keeps `average = decay * average + (1 - decay) * weight` in float32 for every parameter and buffer of a module.

    During warm-up the decay is min(decay, (1 + n) / (10 + n)) after n updates, so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema={decay} is outside [0, 1)")
        self.decay = decay
        self.updates = 0
        self._module = module
        self._average = {name: self._start(value) for name, value in module.state_dict().items()}

    @staticmethod
    def _start(value: Tensor) -> Tensor:
        return value.detach().clone().float() if value.is_floating_point() else value.detach().clone()

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the module's current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, value in self._module.state_dict().items():
            if value.is_floating_point():
                averages.append(self._average[name])
                values.append(value.detach().float())
            else:
                self._average[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights, whole and on the CPU: {name: tensor}. Every process must call it."""
        return {name.removeprefix("module."): _full(value).cpu() for name, value in self._average.items()}

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """The inverse of `state`."""
        self.updates = updates
        for name, own in self._average.items():
            value: Any = state[name.removeprefix("module.")].to(own.device)
            if hasattr(own, "full_tensor"):
                from torch.distributed.tensor import distribute_tensor

                value = distribute_tensor(value, own.device_mesh, own.placements)  # type: ignore[attr-defined]
            own.copy_(value)
