"""Laws of what a training keeps: the averaged weights, and checkpoints that are whole on the disk or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bigr_repr.train.ema import ExponentialAverage
from bigr_repr.train.resume import TrainingError, find_checkpoints, load_checkpoint, read_record, save_checkpoint


class Counted(nn.Module):
    """A weight in half precision, and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(0))


class OneProcess:
    """What of an Accelerator is used, for a state of one file."""

    is_main_process = True

    def wait_for_everyone(self) -> None:
        pass

    def save_state(self, folder: str) -> None:
        (Path(folder) / "deeper").mkdir(parents=True)
        (Path(folder) / "deeper" / "model").write_text("state")

    def load_state(self, folder: str) -> None:
        pass


# ---- the average


def _averages(decay: float, values: list[float]) -> list[float]:
    module = Counted()
    average, found = ExponentialAverage(module, decay), []
    for value in values:
        with torch.no_grad():
            module.weight.fill_(value)
            module.count += 1
        average.update()
        found.append(average.state()["weight"][0].item())
    assert average.state()["weight"].dtype == torch.float32
    assert average.state()["count"] == len(values)
    return found


def test_the_average_warms_up_and_then_keeps_its_decay() -> None:
    values = [float(2 ** (n % 5)) for n in range(1, 60)]
    wanted, average = [], 0.0
    for n, value in enumerate(values, start=1):
        decay = min(0.75, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * value
        wanted.append(average)
    assert _averages(0.75, values) == pytest.approx(wanted, rel=1e-5)
    assert wanted[0] == pytest.approx(9 / 11 * values[0])  # the start is nearly forgotten at once


def test_without_decay_the_average_is_the_weights() -> None:
    assert _averages(0.0, [1.0, 4.0, 2.0]) == [1.0, 4.0, 2.0]


def test_a_loaded_average_goes_on_as_if_nothing_had_happened() -> None:
    module = Counted()
    first, other = ExponentialAverage(module, 0.999), ExponentialAverage(Counted(), 0.999)
    for value in (1.0, 2.0, 3.0, 4.0):
        with torch.no_grad():
            module.weight.fill_(value)
        first.update()
        if value == 2:
            other = ExponentialAverage(module, 0.999)
            other.load(first.state(), first.updates)
        elif value > 2:
            other.update()
    assert other.updates == first.updates == 4
    assert torch.equal(first.state()["weight"], other.state()["weight"])


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_cannot_be_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"is outside \[0, 1\)"):
        ExponentialAverage(Counted(), decay)


# ---- checkpoints


def _save(out: Path, step: int, **record: Any) -> None:
    average = ExponentialAverage(nn.Linear(2, 2), 0.9)
    save_checkpoint(out, step, OneProcess(), average, record, keep=2)  # type: ignore[arg-type]


def test_a_checkpoint_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder of it first, then the name, then the folder that holds the name."""
    done: list[tuple[str, int]] = []
    rename = Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(("sync", os.fstat(handle).st_ino)))
    monkeypatch.setattr(Path, "rename", lambda self, to: done.append(("name", self.stat().st_ino)) or rename(self, to))
    _save(tmp_path, 3)
    ((_, folder),) = find_checkpoints(tmp_path)
    named = done.index(("name", folder.stat().st_ino))
    inside = [folder, *folder.rglob("*")]
    assert {path.name for path in inside} == {
        folder.name, "deeper", "model", "ema.safetensors", "run.json", "sha256.json"
    }  # fmt: skip
    assert {("sync", path.stat().st_ino) for path in inside} <= set(done[:named])
    assert ("sync", tmp_path.stat().st_ino) in done[named:]


def test_no_flipped_byte_of_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    ((_, folder),) = find_checkpoints(tmp_path)
    for file in [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size]:
        content = file.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(TrainingError, match=r"checkpoint-000000003 cannot be read"):
                load_checkpoint(folder, OneProcess(), ExponentialAverage(nn.Linear(2, 2), 0.9))  # type: ignore[arg-type]
        file.write_bytes(content)


def test_the_newest_checkpoints_are_kept_and_know_their_step(tmp_path: Path) -> None:
    for step in (2, 4, 10, 6):
        _save(tmp_path, step, seed=step)
    assert [step for step, _ in find_checkpoints(tmp_path)] == [6, 10]
    record = read_record(find_checkpoints(tmp_path)[0][1])
    assert record == {"seed": 6, "step": 6, "ema_updates": 0}
    assert not list(tmp_path.glob("partial-*"))
    (tmp_path / "checkpoint-000000010" / "run.json").write_text(json.dumps({"step": 10}))
    with pytest.raises(RuntimeError, match="checkpoint-000000010 cannot be read"):
        read_record(tmp_path / "checkpoint-000000010")
