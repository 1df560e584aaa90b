"""The processes of a distributed training, and work done by one of them for all. Knows nothing of what is trained."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather, parse_flag_from_env

from bigr_repr.train.resume import TrainingError

_T = TypeVar("_T")


def processes(*, cpu: bool | None = None, patience: timedelta | None = None) -> PartialState:
    """The processes that this one was launched with; a single process is the main one.

    The first call connects them, and they stay connected until `disconnect`, through any number of trainings. cpu:
    whether they compute on the CPU, as on a machine without a GPU; None: unchanged. patience: how long they wait for
    each other; None: the backend's default.
    """
    if PartialState._shared_state:
        state = PartialState()
        if cpu is None or state.num_processes > 1:
            return state
        AcceleratorState._reset_state(reset_partial_state=True)  # single process: each training chooses its own device
    on_cpu = cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    waiting: dict[str, Any] = {} if patience is None else {"timeout": patience}
    state = PartialState(cpu=on_cpu, **waiting)
    if state.num_processes > 1:
        atexit.register(state.destroy_process_group)
    if not state.is_main_process:
        logging.getLogger(__package__).setLevel(logging.ERROR)  # messages that concern all processes are logged once
    return state


def on_main_process(make: Callable[[], _T]) -> _T:
    """Call `make` on the main process only, and return its result on every process.

    If it raises, the others stop with a TrainingError that says why.
    """
    state = processes()
    if state.num_processes == 1:
        return make()
    answer: list[Any] = [None, None]  # the result, or why there is none
    try:
        if state.is_main_process:
            answer[0] = make()
    except BaseException as error:
        answer[1] = f"{error}" or type(error).__name__
        raise
    finally:
        broadcast_object_list(answer)  # otherwise the others would wait forever
    if answer[1] is not None:
        raise TrainingError(f"the main process failed: {answer[1]}")
    made: _T = answer[0]
    return made


def any_process(asked: bool) -> bool:
    """Whether any process requests it."""
    state = processes()
    if state.num_processes == 1:
        return asked
    answers = gather(torch.tensor([asked], device=state.device))
    assert isinstance(answers, torch.Tensor)
    return bool(answers.any())


def divisible_batch(batch_size: int) -> int:
    """This batch size, or the next smaller one that splits evenly, with at least one image per process."""
    count = int(processes().num_processes)
    return max(count, batch_size - batch_size % count)


def disconnect() -> bool:
    """Disconnect all processes together. Returns whether this one is the main process, which continues."""
    state = processes()
    state.destroy_process_group()
    return bool(state.is_main_process)
