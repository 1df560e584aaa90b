"""What a training run is: its settings, and the record that tells it from others. Knows nothing of models or data."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bigr_repr.system.devices import mixed_precision, precision_name
from bigr_repr.system.differences import differences
from bigr_repr.train.resume import TrainingError

log = logging.getLogger(__name__)
SCHEDULES = ("constant", "cosine")
AUTO = "auto"
RESUMES = ("newest", "previous")
NO_TRACKER = "none"
_NEWER = ("mirror", "least_area")  # fields missing from recipes of older versions
_IMAGES = "images_fingerprint"  # changes when files are only copied or touched, so a difference does not end a run


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Length, speed and output of a run. `batch_size` is over all processes; `steps` counts optimizer steps.

    `ema` is the decay of the averaged weights, `clip` the maximum gradient norm (0: none). `precision` is float32,
    bfloat16 or float16, stored under Accelerate's names no, bf16 and fp16, which are accepted too; auto: float32 or
    bfloat16, whichever is faster on this machine, measured before training. `sample_every` 0: never. `keep`: number of
    newest checkpoints to keep. `max_time`: seconds after which a run writes a checkpoint and stops. `resume`: from the
    "newest" checkpoint or the "previous" one. `tracker`: where to log scalars besides metrics.jsonl, by its name in
    Accelerate.
    """

    out: str
    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 0
    schedule: str = "constant"
    seed: int = 0
    ema: float = 0.9999
    clip: float = 1.0
    precision: str = "no"
    save_every: int = 1000
    sample_every: int = 0
    log_every: int = 50
    keep: int = 2
    workers: int = 0
    cpu: bool = False
    max_time: float | None = None
    resume: str = "newest"
    tracker: str = "tensorboard"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("workers", "sample_every", "clip"):
            if not getattr(self, name) >= 0:  # written so that NaN fails
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0 and finite")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema} is outside 0..1, 1 excluded; 0 averages nothing")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} is outside 0..{2**32 - 1}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")
        if self.resume not in RESUMES:
            raise ValueError(f"resume={self.resume!r} is unknown; choose one of {', '.join(RESUMES)}")
        if self.max_time is not None and not self.max_time > 0:
            raise ValueError(f"max_time={self.max_time} must be above 0 seconds; None: no limit")
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup={self.warmup} is outside 0..{self.steps} (steps)")
        if self.precision != AUTO:
            object.__setattr__(self, "precision", mixed_precision(self.precision))

    def due(self, done: int, every: int) -> bool:
        """Whether an event every `every` steps, and after the last, is due after `done` steps. 0: never."""
        return every > 0 and (done % every == 0 or done == self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of step 0..steps-1: linear warm-up, then constant or a cosine down to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def objective_of(recipe: Any) -> dict[str, Any]:
    """The fields of a recipe, for `identify`; those missing in older versions only if they differ from the default."""
    usual = {field.name: field.default for field in fields(recipe) if field.name in _NEWER}
    return {name: value for name, value in asdict(recipe).items() if name not in usual or value != usual[name]}


def identify(settings: TrainSettings, **other: Any) -> dict[str, Any]:
    """The record of a run: what must not change on resuming. Its location and logging may change."""
    free = {"out", "steps", "save_every", "sample_every", "log_every", "keep", "workers", "cpu"}
    free |= {"max_time", "resume", "tracker"}
    if settings.schedule == "cosine":
        free.remove("steps")  # the length affects the learning rate of every step
    return {name: value for name, value in {**asdict(settings), **other}.items() if name not in free}


def _in_words(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its precision by the name that users give."""
    return {name: precision_name(value) if name == "precision" else value for name, value in record.items()}


def compare_records(out: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise TrainingError if a saved record is not the wanted one; warn of what may differ by accident."""
    if unknown := sorted(wanted.keys() - saved.keys()):
        log.warning(
            "%s was started by an older version, which did not record %s: not compared", out, ", ".join(unknown)
        )
    known = {name: saved[name] for name in wanted.keys() & saved.keys()}
    if found := differences(_in_words(known), _in_words(wanted), ignored=(*unknown, _IMAGES)):
        raise TrainingError(
            f"{out} holds another run: {'; '.join(found)}; choose another out folder or remove this one"
        )
    if _IMAGES in known and known[_IMAGES] != wanted[_IMAGES]:
        log.warning(
            "the images differ from those of %s so far, or their files were moved, copied or touched: the run goes on "
            "with the ones given; if they are not the same images, stop it and choose another out folder", out,
        )  # fmt: skip
