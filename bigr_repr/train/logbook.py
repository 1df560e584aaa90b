"""Logs a run's scalars and pictures to metrics.jsonl and a tracker. Knows nothing of what is trained."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from bigr_repr.system.files import naming, replacing
from bigr_repr.system.records import as_object, parsed


class Logbook:
    """Logs scalars to a tracker and `metrics.jsonl`; a resumed run continues the file at its checkpoint."""

    def __init__(self, out: Path, accelerator: Accelerator, first_step: int, batch_size: int) -> None:
        self._accelerator, self._batch_size = accelerator, batch_size
        self._since, self._done = time.perf_counter(), first_step
        self._path = out / "metrics.jsonl"
        if not accelerator.is_main_process:
            return
        kept = []
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _is_before(first_step, line)]
        with replacing(self._path) as file:
            file.writelines(f"{line}\n".encode() for line in kept)

    def write(self, step: int, scalars: Mapping[str, Tensor], rate: float) -> dict[str, float]:
        """Log a step's scalars, its learning rate and the speed since the last call; returns them all."""
        values = {name: float(value) for name, value in scalars.items()}
        images = (step + 1 - self._done) * self._batch_size
        values |= {"learning_rate": rate, "images_per_second": images / (time.perf_counter() - self._since)}
        self._accelerator.log(values, step=step)
        if self._accelerator.is_main_process:
            with naming(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self._since, self._done = time.perf_counter(), step + 1
        return values

    def picture(self, step: int, name: str, image: Tensor, out: Path) -> None:
        """Write a picture, uint8 (3, H, W), as NAME-STEP.png to `out`, and to trackers that accept pictures."""
        from PIL import Image

        with replacing(out / f"{name}-{step:09d}.png") as file:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: image[None].numpy()}, step=step, dataformats="NCHW")
            elif tracker.name == "wandb":
                tracker.log_images({name: [image.permute(1, 2, 0).numpy()]}, step=step)


def _is_before(step: int, line: str) -> bool:
    """Whether a line is of an earlier step; not if it is damaged, as by a kill."""
    try:
        return bool(as_object(parsed(line))["step"] < step)
    except (ValueError, LookupError, TypeError):
        return False
