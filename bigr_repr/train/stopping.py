"""Stops a run early on schedulers' signals or a time limit. Knows nothing of what is trained."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

import torch
from accelerate import Accelerator

from bigr_repr.train.resume import TrainingError

EXIT_CODE: Final = 75  # the run can be continued; EX_TEMPFAIL in sysexits.h
SIGNALS: Final = tuple(number for name in ("SIGTERM", "SIGUSR1") if (number := getattr(signal, name, None)))


class RunStoppedError(TrainingError):
    """A run was told to stop, and did so after writing a checkpoint. `exit_code` is the command's."""

    exit_code = EXIT_CODE

    def __init__(self, done: int, steps: int, out: Path, reason: str) -> None:
        super().__init__(
            f"stopped by {reason} after step {done} of {steps}, with a checkpoint in {out}; repeat the command to "
            "continue"
        )


class StopSignals:
    """Context in which SIGTERM and SIGUSR1 request a stop instead of ending the process; so does the time limit.

    Outside the main thread, where Python cannot handle signals, only the limit applies.
    """

    def __init__(self, max_time: float | None = None) -> None:
        self._until = None if max_time is None else time.monotonic() + max_time
        self._came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came = number

    def reason(self, accelerator: Accelerator) -> str | None:
        """Why to stop now, the same on every process; None: continue. Every process must call this once per step."""
        late = self._until is not None and time.monotonic() >= self._until
        mine = self._came or (-1 if late else 0)
        if accelerator.num_processes > 1:
            asked = accelerator.gather(torch.tensor([mine], device=accelerator.device))
            assert isinstance(asked, torch.Tensor)
            mine = int(asked[asked != 0][0]) if bool(asked.any()) else 0
        if mine == 0:
            return None
        return "the time limit" if mine < 0 else signal.Signals(mine).name


def ignore_stop_signals(worker: int) -> None:
    """For data-loading processes: a scheduler signals them too, but they end with their parent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
