"""Decides when an adaptation ends, by held-out loss or time, and keeps its best weights.

The best weights have the lowest loss among those whose features separate the classes as well as at the start, within a
standard error. Knows nothing of what is trained, or how.
"""

# n held-out images, m training images, D width

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bigr_repr.models.bigr import BiGR, usual_block
from bigr_repr.system.files import replacing
from bigr_repr.system.records import reading_record
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.distributed import any_process, on_main_process
from bigr_repr.train.ema import ExponentialAverage

_CURVES = "best.json"
_LOOKED_AT = 128  # held-out images; enough to tell whether the loss still falls
_LEARNED_FROM = 384  # training images among which neighbors are searched
_NEIGHBORS = 20
_TEMPERATURE = 0.07
_BATCH = 32
_SEED = 20_240


def held_out_loss(model: BiGR, codes: CodeSet, *, conditional: bool) -> float:
    """Mean loss per bit on images spread over a code set, with masks and noise that are always the same."""
    device, total, looked_at = next(model.parameters()).device, 0.0, _spread(len(codes), _LOOKED_AT)
    for start in range(0, len(looked_at), _BATCH):
        rows = looked_at[start : start + _BATCH]
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
    return total / len(looked_at)


def held_out_neighbors(model: BiGR, kept: CodeSet, held_out: CodeSet) -> float:
    """20-NN accuracy of held-out images among training images, in percent, on features of the usual block.

    Neighbors are weighted by exp(cosine / 0.07), as in `bench`. Both sets have labels; the images are spread over them.
    """
    assert kept.labels is not None
    assert held_out.labels is not None
    chosen, looked_at = _spread(len(kept), _LEARNED_FROM), _spread(len(held_out), _LOOKED_AT)
    base, queries = _features(model, kept, chosen), _features(model, held_out, looked_at)
    cosine, nearest = (queries @ base.T).topk(min(_NEIGHBORS, len(base)))
    labels = torch.from_numpy(kept.labels[chosen])
    votes = torch.zeros(len(queries), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[nearest], (cosine / _TEMPERATURE).exp())
    return 100 * float((votes.argmax(1).numpy() == held_out.labels[looked_at]).mean())


def no_fall(share: float, images: int) -> float:
    """By how many points a percentage of images may differ by chance: one standard error, or one image."""
    likely = (share / 100 * images + 1) / (images + 2)  # so that 0 or 100 % is not taken as certain
    return max(1.0, math.sqrt(images * likely * (1 - likely))) * 100 / images


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Up to `most` of `count` rows, spread evenly: sets may be sorted by class."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _features(model: BiGR, codes: CodeSet, rows: NDArray[np.int64]) -> Tensor:
    """Normalized features of images (n,) of a code set: float32 (n, D)."""
    device, block, found = next(model.parameters()).device, usual_block(model.config.layers), []
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        bits = torch.from_numpy(codes.bits(batch, np.zeros_like(batch))).float().to(device)
        with torch.inference_mode():
            found.append(model.hidden_states(bits, layers=(block,))[block].float().mean(1).cpu())
    return F.normalize(torch.cat(found))


def _shares(count: int) -> Tensor:
    """Shares of masked tokens (count, 1), evenly spaced over the cosine schedule."""
    return torch.cos(torch.pi / 2 * (torch.arange(count) + 0.5) / count)[:, None]


class BestWeights:
    """Decides after each step whether training ends, and keeps the averaged weights that did best on held-out codes.

    They are stored in `folder` as best.safetensors, with best.json, for resuming. `names` are the trained weights; only
    those are kept. `kept`: the training codes, for the 20-NN; None: only the loss counts.
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
        kept: CodeSet | None = None,
    ) -> None:
        self._module, self._codes, self._folder, self._names = module, codes, folder, names
        self._conditional, self._every, self._patience = conditional, every, patience
        self._until, self._kept = time.monotonic() + seconds, kept
        self.losses: dict[int, float] = {}
        self.neighbors: dict[int, float] = {}
        self.ended = "all steps were done"
        if (file := folder / _CURVES).exists():
            with reading_record(file, remedy=f"remove {folder}, and start again") as known:
                self.losses, self.neighbors = (
                    {int(step): float(value) for step, value in known[name].items()} for name in ("losses", "neighbors")
                )

    def __call__(self, done: int, average: ExponentialAverage) -> bool:
        """Whether to stop after `done` steps: the same answer on every process."""
        late = any_process(time.monotonic() >= self._until)
        if done not in self.losses and (done % self._every == 0 or late or not self.losses):
            self._look(done, average)
        if late:
            self.ended = "the time limit was reached"
            return True
        if done % self._every == 0 and sum(step > self.best_step for step in self.losses) >= self._patience:
            self.ended = "the held-out loss stopped improving"
            return True
        return False

    @property
    def best_step(self) -> int:
        """The step with the lowest held-out loss among those whose 20-NN fell by at most a standard error."""
        return min((step for step in self.losses if self._keeps_features(step)), key=lambda step: self.losses[step])

    def _keeps_features(self, step: int) -> bool:
        if not self.neighbors:
            return True
        before = self.neighbors[min(self.neighbors)]
        return self.neighbors[step] >= before - no_fall(before, min(len(self._codes), _LOOKED_AT))

    def record(self) -> dict[str, Any]:
        """A record as plain data; "before" is the first evaluation, "after" that of the kept weights."""
        first, kept = min(self.losses), self.best_step
        pairs = {"held_out_loss": self.losses, "held_out_20nn": self.neighbors}
        return {
            **{
                name: {"before": round(each[first], 5), "after": round(each[kept], 5)}
                for name, each in pairs.items()
                if each
            },
            "steps": max(self.losses),
            "best_step": self.best_step,
            "ended_by": self.ended,
            "held_out_losses": {str(step): round(loss, 5) for step, loss in sorted(self.losses.items())},
            "held_out_neighbors": {str(step): round(share, 2) for step, share in sorted(self.neighbors.items())},
        }

    def weights(self) -> dict[str, Tensor]:
        """The trained weights as they were at the best step, on the CPU."""
        return load_file(self._folder / "best.safetensors")

    def _look(self, done: int, average: ExponentialAverage) -> None:
        state = average.state()  # every process takes part
        self.losses, self.neighbors = on_main_process(lambda: self._looked(done, state))

    def _looked(self, done: int, state: dict[str, Tensor]) -> tuple[dict[int, float], dict[int, float]]:
        """Both curves with one more step; its weights are kept if they are the best so far."""
        module = self._module()
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        was_training = module.training
        module.load_state_dict(state)
        model: Any = module.eval()
        self.losses[done] = held_out_loss(model, self._codes, conditional=self._conditional)
        if self._kept is not None:
            self.neighbors[done] = held_out_neighbors(model, self._kept, self._codes)
        module.load_state_dict(own)
        module.train(was_training)
        if self.best_step == done:
            with replacing(self._folder / "best.safetensors") as file:
                file.write(save({name: state[name].contiguous() for name in self._names}))
        with replacing(self._folder / _CURVES) as file:
            file.write(json.dumps({"losses": self.losses, "neighbors": self.neighbors}).encode())
        return self.losses, self.neighbors
