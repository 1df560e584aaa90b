"""The processes that train together, and what one of them does for all. Knows nothing of what is trained."""

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
    """The processes that this one was launched with; alone, it is the main one.

    The first call makes them meet, and they stay together until `part`, through any number of trainings. cpu: whether
    they compute on the CPU, as they do on a machine without a GPU; None: as before. patience: how long they wait for
    each other; None: as long as the backend does.
    """
    if PartialState._shared_state:
        state = PartialState()
        if cpu is None or state.num_processes > 1:
            return state
        AcceleratorState._reset_state(reset_partial_state=True)  # alone: each training has a device of its own
    on_cpu = cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    waiting: dict[str, Any] = {} if patience is None else {"timeout": patience}
    state = PartialState(cpu=on_cpu, **waiting)
    if state.num_processes > 1:
        atexit.register(state.destroy_process_group)
    if not state.is_main_process:
        logging.getLogger(__package__).setLevel(logging.ERROR)  # what concerns all is said once
    return state


def told(make: Callable[[], _T]) -> _T:
    """What `make` returns on the main process, which alone calls it, on every process.

    What it raises there ends the others with a TrainingError that says it.
    """
    state = processes()
    if state.num_processes == 1:
        return make()
    answer: list[Any] = [None, None]  # what was made, or why nothing was
    try:
        if state.is_main_process:
            answer[0] = make()
    except BaseException as error:
        answer[1] = f"{error}" or type(error).__name__
        raise
    finally:
        broadcast_object_list(answer)  # else the others would wait for what never comes
    if answer[1] is not None:
        raise TrainingError(f"the main process failed: {answer[1]}")
    made: _T = answer[0]
    return made


def anywhere(asked: bool) -> bool:
    """Whether any process asks for it."""
    state = processes()
    if state.num_processes == 1:
        return asked
    answers = gather(torch.tensor([asked], device=state.device))
    assert isinstance(answers, torch.Tensor)
    return bool(answers.any())


def shared_out(batch_size: int) -> int:
    """A batch that every process has an equal part of: this one or the next smaller, at least one image each."""
    count = int(processes().num_processes)
    return max(count, batch_size - batch_size % count)


def part() -> bool:
    """End the group, on every process at the same time. Returns whether this one is the main process, which goes on."""
    state = processes()
    state.destroy_process_group()
    return bool(state.is_main_process)
