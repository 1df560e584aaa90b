"""Training checkpoints: written under a temporary name and renamed, so a kill never damages the last good one.

Knows nothing of what is trained. The state itself is written by Accelerate.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bigr_repr.system.files import sync_folder, sync_tree
from bigr_repr.system.records import as_object, parsed
from bigr_repr.system.sums import check_sums, write_sums
from bigr_repr.train.ema import ExponentialAverage

log = logging.getLogger(__name__)
# What damaged files may raise besides the usual errors: safetensors' own, and the unpickler's many.
_DAMAGE = (SafetensorError, pickle.UnpicklingError, TypeError, AttributeError, IndexError)
_NAME, _ASIDE = re.compile(r"checkpoint-(\d{9})"), re.compile(r"set-aside-(\d{9})")
_ANEW = "to start a new run, choose another out folder or remove this one"


class TrainingError(RuntimeError):
    """Training cannot continue; the message says at which step, why, and what to do."""


def find_checkpoints(out: Path) -> list[tuple[int, Path]]:
    """All complete checkpoints of a run, oldest first: (step, folder)."""
    found = ((_step_of(path, _NAME), path) for path in out.glob("checkpoint-*"))
    return sorted((step, path) for step, path in found if step is not None)


def _step_of(path: Path, name: re.Pattern[str]) -> int | None:
    match = name.fullmatch(path.name)
    return int(match[1]) if match else None


def resumed_from(out: Path, *, previous: bool) -> Path | None:
    """The checkpoint from which a run resumes: the newest, or the one before; None if there are none.

    The newest too if it is intact and one was set aside before for the same previous one, so that a repeated command
    goes on. Raises TrainingError if there is no previous one.
    """
    found = find_checkpoints(out)
    if not previous or not found:
        return found[-1][1] if found else None
    (_, newest), before = found[-1], found[-2] if len(found) > 1 else None
    aside = [step for path in out.glob("set-aside-*") if (step := _step_of(path, _ASIDE)) is not None]
    if any(step > (before[0] if before else -1) for step in aside) and not _damage_of(newest):
        log.info("resume='previous': %s is intact and was made since one was set aside: continuing from it", newest)
        return newest
    if before is None:
        only = f"resume='previous': {out} has only one checkpoint, {newest.name}"
        if reason := _damage_of(newest):
            raise TrainingError(f"{only}, which is damaged ({reason}); {_ANEW}")
        raise TrainingError(f"{only}, which is intact; to continue from it: --resume newest")
    return before[1]


def _damage_of(path: Path) -> str:
    """What is wrong with a checkpoint's files; empty if nothing is."""
    try:
        read_record(path)
        check_sums(path)
    except (OSError, ValueError, TrainingError) as error:
        return " ".join(str(error.__cause__ or error).split())[:300]
    return ""


def set_newest_aside(out: Path, accelerator: Accelerator) -> None:
    """Rename the newest checkpoint to set-aside-STEP. Every process must call this, after it read the previous one."""
    accelerator.wait_for_everyone()  # all processes have looked before anything moves
    if accelerator.is_main_process:
        (_, kept), (step, newest) = find_checkpoints(out)[-2:]
        aside = out / f"set-aside-{step:09d}"
        shutil.rmtree(aside, ignore_errors=True)
        newest.rename(aside)
        log.warning("%s is set aside as %s; continuing from %s", newest, aside.name, kept.name)
    accelerator.wait_for_everyone()


def save_checkpoint(
    out: Path, step: int, accelerator: Accelerator, average: ExponentialAverage, record: dict[str, Any], *, keep: int
) -> None:
    """Write `checkpoint-<step>` and remove all but the newest `keep`. Every process must call this.

    Raises TrainingError if it cannot be written; nothing half-written remains under the final name.
    """
    final, partial = out / f"checkpoint-{step:09d}", out / f"partial-{step:09d}"
    failure: OSError | RuntimeError | None = None
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        state = average.state()
        if accelerator.is_main_process:
            save_file(state, partial / "ema.safetensors")
            about = json.dumps({**record, "step": step, "ema_updates": average.updates})
            (partial / "run.json").write_text(about, encoding="utf-8")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_sums(partial)
            sync_tree(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            sync_folder(out)
            for _, old in find_checkpoints(out)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        failure = error if isinstance(error, OSError | RuntimeError) else OSError(str(error))
    if failure is not None:
        shutil.rmtree(partial, ignore_errors=True)
        kept = find_checkpoints(out)
        state_of = f"the run resumes from {kept[-1][1].name}" if kept else "no earlier checkpoint exists"
        message = f"checkpoint of step {step} could not be written to {out}: {failure}; {state_of} once this is fixed"
        raise TrainingError(message) from failure


def read_record(path: Path) -> dict[str, Any]:
    """A checkpoint's record of its run. Raises TrainingError, naming it and the remedy, if it is damaged."""
    with _damage_named(path):
        record = as_object(parsed((path / "run.json").read_bytes()))
        return {**record, "step": int(record["step"]), "ema_updates": int(record["ema_updates"])}


def load_checkpoint(path: Path, accelerator: Accelerator, average: ExponentialAverage) -> None:
    """Restore model, optimizers, random states and EMA. Raises TrainingError as `read_record` does."""
    updates = read_record(path)["ema_updates"]
    with _damage_named(path):
        check_sums(path)
        accelerator.load_state(str(path))
        average.load(load_file(path / "ema.safetensors"), updates)


def _instead_of(path: Path) -> str:
    """How to continue without a checkpoint."""
    kept = [each for _, each in find_checkpoints(path.parent)]
    if kept[-1:] not in ([], [path]):
        return f"to continue from {kept[-1].name}, if that is intact: --resume newest"
    return "to continue from the previous one: --resume previous" if len(kept) > 1 else _ANEW


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, *_DAMAGE) as error:
        reason = " ".join(str(error).split())[:300]
        message = f"checkpoint {path} cannot be read ({reason}); {_instead_of(path)}"
        raise TrainingError(message) from error
