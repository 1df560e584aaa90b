"""When an adaptation ends: by the loss on held-out codes, or by the clock; and its best weights so far.

Knows nothing of what is trained, or how.
"""

# n held-out images

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bigr_repr.models.bigr import BiGR
from bigr_repr.system.files import replacing
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.ema import ExponentialAverage

_LOOKED_AT = 128  # images; enough to tell whether the loss still falls
_BATCH = 32
_SEED = 20_240


def held_out_loss(model: BiGR, codes: CodeSet, *, conditional: bool) -> float:
    """Mean loss per bit on the first images of a code set, with masks and noise that are always the same."""
    device, total, seen = next(model.parameters()).device, 0.0, min(len(codes), _LOOKED_AT)
    for start in range(0, seen, _BATCH):
        rows = np.arange(start, min(start + _BATCH, seen))
        bits = torch.from_numpy(codes.bits(rows, np.zeros_like(rows))).float().to(device)
        labels = None
        if conditional and codes.labels is not None:
            labels = torch.from_numpy(codes.labels[rows]).to(device)
        generator = torch.Generator(device).manual_seed(_SEED + start)
        masked = torch.rand(bits.shape[:2], generator=generator, device=device) < _shares(len(rows)).to(device)
        masked[:, 0] |= ~masked.any(1)
        with torch.inference_mode():
            loss = model.loss(bits, labels, generator=generator, masked=masked, class_dropout=0.0)
        total += float(loss) * len(rows)
    return total / seen


def _shares(count: int) -> Tensor:
    """Shares of masked tokens (count, 1), evenly over the cosine schedule."""
    return torch.cos(torch.pi / 2 * (torch.arange(count) + 0.5) / count)[:, None]


class BestWeights:
    """Asked after each step whether to end there; keeps the averaged weights that did best on held-out codes.

    They lie in `folder` as best.safetensors, with best.json, so that a run that goes on after a stop has them. `names`
    are the weights that are trained: no others are kept.
    """

    def __init__(
        self,
        module: Callable[[], nn.Module],
        codes: CodeSet,
        folder: Path,
        *,
        names: frozenset[str],
        conditional: bool,
        every: int,
        patience: int,
        seconds: float,
        on_look: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        self._module, self._codes, self._folder, self._names = module, codes, folder, names
        self._conditional, self._every, self._patience = conditional, every, patience
        self._until, self._on_look = time.monotonic() + seconds, on_look
        self.losses: dict[int, float] = {}
        self.ended = "all steps"
        if (folder / "best.json").exists():
            self.losses = {int(step): loss for step, loss in json.loads((folder / "best.json").read_text()).items()}

    def __call__(self, done: int, average: ExponentialAverage) -> bool:
        """Whether to end after `done` steps; the same on every process."""
        late = _anywhere(time.monotonic() >= self._until)
        if done not in self.losses and (done % self._every == 0 or late or not self.losses):
            self._look(done, average)
        if late:
            self.ended = "the time given"
            return True
        if done % self._every == 0 and sum(step > self.best_step for step in self.losses) >= self._patience:
            self.ended = "a held-out loss that fell no more"
            return True
        return False

    @property
    def best_step(self) -> int:
        """The step with the smallest held-out loss."""
        return min(self.losses, key=lambda step: self.losses[step])

    def record(self) -> dict[str, Any]:
        """What happened, as plain data."""
        return {
            "steps": max(self.losses),
            "best_step": self.best_step,
            "ended_by": self.ended,
            "held_out_losses": {str(step): round(loss, 5) for step, loss in sorted(self.losses.items())},
        }

    def weights(self) -> dict[str, Tensor]:
        """The trained weights as they were at the best step, on the CPU."""
        return load_file(self._folder / "best.safetensors")

    def _look(self, done: int, average: ExponentialAverage) -> None:
        state, module = average.state(), self._module()
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        was_training = module.training
        module.load_state_dict(state)
        self.losses[done] = held_out_loss(module.eval(), self._codes, conditional=self._conditional)  # type: ignore[arg-type]
        module.load_state_dict(own)
        module.train(was_training)
        if PartialState().is_main_process:
            if self.best_step == done:
                save_file({name: state[name].contiguous() for name in self._names}, self._folder / "best.safetensors")
            with replacing(self._folder / "best.json") as file:
                file.write(json.dumps(self.losses).encode())
        self._on_look(done, self.losses[done])


def _anywhere(late: bool) -> bool:
    state = PartialState()
    if state.num_processes == 1:
        return late
    asked = gather(torch.tensor([late], device=state.device))
    assert isinstance(asked, Tensor)
    return bool(asked.any())
