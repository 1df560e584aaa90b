"""Finds what trains fastest on this machine, number type and compilation, by trial. Knows no losses and no data."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from bigr_repr.train.distributed import on_main_process, processes
from bigr_repr.train.resume import read_record, resumed_from
from bigr_repr.train.settings import AUTO, TrainSettings

log = logging.getLogger(__name__)

_WORTH: Final = 1.1  # minimum speedup at which bfloat16 is chosen
_TRIES: Final = 2
_MANY_STEPS: Final = 1000  # from which compiling pays off

Trial = Callable[[torch.device], Callable[[], object]]  # forward and backward on a device


def decided(settings: TrainSettings, trial: Trial) -> TrainSettings:
    """The settings with their precision resolved, the same on every process.

    That of the resumed run, if any; otherwise bfloat16 if it makes a trial step at least a tenth faster.
    """
    if settings.precision != AUTO:
        return settings
    device = processes(cpu=settings.cpu).device

    def chosen() -> str:
        begun = resumed_from(Path(settings.out), previous=settings.resume == "previous")
        return _measured(trial, device) if begun is None else str(read_record(begun)["precision"])

    return replace(settings, precision=on_main_process(chosen))


def _measured(trial: Trial, device: torch.device) -> str:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        step = trial(device)
        seconds = {half: _seconds(step, device, half=half) for half in (False, True)}
    gain = seconds[False] / seconds[True]
    name = "bfloat16" if gain > _WORTH else "float32"
    log.info("computing in %s: here, a step in bfloat16 is %.2f times as fast as in float32", name, gain)
    return name


def _seconds(step: Callable[[], object], device: torch.device, *, half: bool) -> float:
    """The shortest of a few runs, after a warm-up."""
    taken = []
    for _ in range(1 + _TRIES):
        since = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - since)
    return min(taken[1:])


def compiling_pays(settings: TrainSettings) -> bool:
    """Whether to compile: in a long run, on a GPU or a processor with matrix units (AMX), if there is a compiler.

    On other processors a compiled step was no faster.
    """
    gpu = torch.cuda.is_available() and not settings.cpu
    able = gpu or torch.cpu._is_amx_tile_supported()
    return able and settings.steps >= _MANY_STEPS and any(map(shutil.which, ("c++", "g++", "clang++", "cl")))
