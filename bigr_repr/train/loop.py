"""The training loop of both trainers: steps, rates, EMA, logs, checkpoints and resuming.

Knows nothing of images, codes or losses: a `Task` provides those. It uses Accelerate, so the same code trains on a CPU,
on one GPU and, with `accelerate launch`, on many (DDP; FSDP2 for tasks with one module).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration
from torch import Tensor, nn

from bigr_repr.train.batches import Batch
from bigr_repr.train.distributed import on_main_process, processes
from bigr_repr.train.ema import ExponentialAverage
from bigr_repr.train.logbook import Logbook
from bigr_repr.train.resume import (
    TrainingError,
    find_checkpoints,
    load_checkpoint,
    read_record,
    resumed_from,
    save_checkpoint,
    set_newest_aside,
)
from bigr_repr.train.settings import NO_TRACKER, TrainSettings, compare_records
from bigr_repr.train.single_writer import only_writer
from bigr_repr.train.stopping import RunStoppedError, StopSignals

log = logging.getLogger(__name__)


class Task(Protocol):
    """What is trained. `modules[0]` is the one whose weights are averaged."""

    modules: list[nn.Module]
    optimizers: list[torch.optim.Optimizer]

    def update(self, batch: Batch, step: int, run: Run) -> dict[str, Tensor]:
        """One optimizer step on this rank's batch; returns scalars to log, among them "loss"."""
        ...

    def samples(self, weights: dict[str, Tensor]) -> Tensor | None:
        """A picture of samples from the averaged weights: uint8 (3, H, W), or None."""
        ...


@dataclass(frozen=True)
class Run:
    """The part of the running loop that a task may use."""

    accelerator: Accelerator
    settings: TrainSettings

    def check(self, loss: Tensor, step: int) -> Tensor:
        """The mean loss over all processes. Raises TrainingError, on every process, unless it is finite."""
        mean = self.accelerator.reduce(loss.detach(), reduction="mean")
        assert isinstance(mean, Tensor)
        if not bool(torch.isfinite(mean)):
            remedy = "try a lower learning rate, or precision=float32"
            raise TrainingError(f"loss is {float(mean)} at step {step}; the last checkpoint is untouched; {remedy}")
        return mean

    def descend(
        self, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer], module: nn.Module, step: int
    ) -> Tensor:
        """Backward pass, clipping, and a step of each of the module's optimizers.

        Returns the gradient norm before clipping. Raises TrainingError unless it is finite.
        """
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(module.parameters(), self.settings.clip or math.inf)
        # In half precision, the scaler skips such steps.
        if self.settings.precision != "fp16" and not bool(torch.isfinite(norm)):
            remedy = "try a lower learning rate, or precision=float32"
            raise TrainingError(f"gradient is {float(norm)} at step {step}; the weights are untouched; {remedy}")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert isinstance(norm, Tensor)
        return norm


@contextmanager
def _random_state_of(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Give a step its own random numbers, so that a resumed run draws the same as an uninterrupted one."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((seed * 1_000_003 + step) * 4099 + rank)
        yield


class Stream(Protocol):
    """The training data: `bigr_repr.train.batches.batches` with all other arguments bound."""

    def __call__(
        self, *, batch_size: int, seed: int, first_step: int, workers: int, rank: int, ranks: int
    ) -> Iterator[Batch]:
        """Endless batches of a rank from `first_step` on."""
        ...


def train(
    task: Task,
    stream: Stream,
    settings: TrainSettings,
    *,
    record: Mapping[str, Any],
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    finished: Callable[[int, ExponentialAverage], bool] | None = None,
) -> dict[str, Tensor]:
    """Train `task`, resuming from any checkpoint under `settings.out`; returns the averaged weights.

    `record` identifies the run: a checkpoint with a different record is refused. `on_step(step, scalars)` is called on
    the main process when scalars are logged. `finished(steps done, average)` is called at the start and after each
    step, on every process, and returns whether to stop.
    Raises RunStoppedError after a signal or `settings.max_time`, once a checkpoint is written; TrainingError for a
    non-finite loss, a full disk, or a damaged checkpoint; RuntimeError while another process trains in that folder.
    """
    processes(cpu=settings.cpu)
    with StopSignals(settings.max_time) as stop, ExitStack() as held:
        on_main_process(lambda: held.enter_context(only_writer(Path(settings.out))))
        return _train(task, stream, settings, record, on_step, finished, stop)


def _train(
    task: Task,
    stream: Stream,
    settings: TrainSettings,
    record: Mapping[str, Any],
    on_step: Callable[[int, dict[str, float]], None] | None,
    finished: Callable[[int, ExponentialAverage], bool] | None,
    stop: StopSignals,
) -> dict[str, Tensor]:
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    accelerator = _accelerate(task, settings)
    average = ExponentialAverage(task.modules[0], settings.ema)
    first_step = _resume(out, accelerator, average, record, settings)
    accelerator.init_trackers("bigr")
    logbook = Logbook(out, accelerator, first_step, settings.batch_size)
    batches, run = _batches(stream, settings, first_step, accelerator), Run(accelerator, settings)
    ended = finished is not None and finished(first_step, average)
    for step in range(first_step, first_step if ended else settings.steps):
        batch, rate = next(batches), _set_rate(task, settings.rate(step))
        with _random_state_of(settings.seed, step, accelerator.process_index, accelerator.device):
            scalars = task.update(batch, step, run)
        average.update()
        done = step + 1
        if settings.due(done, settings.log_every):
            values = logbook.write(step, scalars, rate)
            if on_step is not None and accelerator.is_main_process:
                on_step(step, values)
        reason = stop.reason(accelerator) if done < settings.steps else None
        if reason or settings.due(done, settings.save_every):
            save_checkpoint(out, done, accelerator, average, dict(record), keep=settings.keep)
        if reason:
            _end(accelerator)
            raise RunStoppedError(done, settings.steps, out, reason)
        if settings.due(done, settings.sample_every):
            _picture(task, average, accelerator, logbook, done, out)
        if finished is not None and finished(done, average):
            break
    _end(accelerator)
    return average.state()


def _end(accelerator: Accelerator) -> None:
    """Close the trackers; the processes stay connected."""
    for tracker in accelerator.trackers:
        tracker.finish()


def _accelerate(task: Task, settings: TrainSettings) -> Accelerator:
    """An accelerator, with the task's modules and optimizers prepared."""
    project = ProjectConfiguration(project_dir=settings.out, logging_dir=str(Path(settings.out) / "logs"))
    AcceleratorState._reset_state()  # an earlier run in this process may have used another precision
    processes(cpu=settings.cpu)
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        cpu=settings.cpu,
        log_with=_tracker(settings.tracker),
        project_config=project,
    )
    prepared = accelerator.prepare(*task.modules, *task.optimizers)
    count = len(task.modules)
    task.modules, task.optimizers = list(prepared[:count]), list(prepared[count:])
    return accelerator


def _tracker(name: str) -> str | None:
    """The tracker's name for Accelerate. Raises ValueError for an unknown one, ImportError for one not installed."""
    if name == NO_TRACKER:
        return None
    known = [each for each in LoggerType.list() if each != "all"]
    if name not in known:
        raise ValueError(f"tracker={name!r} is unknown; choose one of {', '.join((NO_TRACKER, *known))}")
    if LoggerType(name) not in get_available_trackers():
        raise ImportError(f"tracker={name!r} is not installed; install it, or use tensorboard or {NO_TRACKER}")
    return name


def _batches(stream: Stream, settings: TrainSettings, first_step: int, accelerator: Accelerator) -> Iterator[Batch]:
    """This process's batches, on its device."""
    batches = stream(
        batch_size=settings.batch_size, seed=settings.seed, first_step=first_step, workers=settings.workers,
        rank=accelerator.process_index, ranks=accelerator.num_processes,
    )  # fmt: skip
    for batch in batches:
        yield Batch(*(None if part is None else part.to(accelerator.device) for part in batch))


def _set_rate(task: Task, rate: float) -> float:
    """Give every optimizer this learning rate, and return it."""
    for group in (group for optimizer in task.optimizers for group in optimizer.param_groups):
        group["lr"] = rate
    return rate


def _resume(
    out: Path, accelerator: Accelerator, average: ExponentialAverage, record: Mapping[str, Any], settings: TrainSettings
) -> int:
    kept = resumed_from(out, previous=settings.resume == "previous")
    if kept is None:
        return 0
    newer = kept != find_checkpoints(out)[-1][1]
    saved = read_record(kept)
    compare_records(out, saved, json.loads(json.dumps(record)))
    if saved["step"] > settings.steps:
        found = f"steps={settings.steps} is below the {saved['step']} steps already taken in {out}"
        raise TrainingError(f"{found}; set at least that many, or choose another out folder")
    load_checkpoint(kept, accelerator, average)
    if newer:
        set_newest_aside(out, accelerator)
    log.info("resuming %s after step %d", out, saved["step"])
    return int(saved["step"])


def _picture(
    task: Task, average: ExponentialAverage, accelerator: Accelerator, logbook: Logbook, step: int, out: Path
) -> None:
    weights = average.state()
    if accelerator.is_main_process:
        image = task.samples(weights)
        if image is not None:
            logbook.picture(step, "samples", image.cpu(), out)
