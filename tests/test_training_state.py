"""Laws of what a training keeps: the averaged weights, and checkpoints that are whole on the disk or not there."""

from __future__ import annotations

import itertools
import json
import os
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from bigr_repr.train import distributed, loop, stopping
from bigr_repr.train import logbook as logbook_module
from bigr_repr.train.batches import Batch
from bigr_repr.train.ema import ExponentialAverage
from bigr_repr.train.logbook import Logbook
from bigr_repr.train.resume import TrainingError, find_checkpoints, load_checkpoint, read_record, save_checkpoint
from bigr_repr.train.settings import TrainSettings


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


# ---- the loop, around a task of one weight


class Toy:
    """One weight that a step moves by the rate; notes what the loop asks of it."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = [nn.Linear(1, 1, bias=False)]
        self.modules[0].weight.data.fill_(0)  # type: ignore[union-attr, operator]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(self.modules[0].parameters(), 1.0)]
        self.seen: list[tuple[int, float]] = []
        self.drawn: list[float] = []
        self.shown: list[float] = []

    def update(self, batch: Batch, step: int, run: loop.Run) -> dict[str, Tensor]:
        self.seen.append((step, float(batch.images[0])))
        self.drawn.append(float(torch.rand(())))
        loss = self.modules[0](torch.ones(1, 1)).sum()
        norm = run.descend(loss, self.optimizers, self.modules[0], step)
        return {"loss": run.check(loss, step), "norm": norm}

    def samples(self, weights: dict[str, Tensor]) -> Tensor:
        self.shown.append(float(weights["weight"]))
        return torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 2, 4)


def _stream(*, batch_size: int, seed: int, first_step: int, workers: int, rank: int, ranks: int) -> Iterator[Batch]:
    """The number of the step, and all that the stream was asked for."""
    assert (batch_size, seed, workers, rank, ranks) == (6, 5, 0, 0, 1)
    for step in itertools.count(first_step):
        yield Batch(torch.tensor([float(step)]), None, None)


def _settings(folder: Path, **fields: Any) -> TrainSettings:
    usual = {
        "steps": 7,
        "batch_size": 6,
        "learning_rate": 0.5,
        "seed": 5,
        "ema": 0.0,
        "cpu": True,
        "tracker": "none",
        "clip": 0.0,
    }
    return TrainSettings(out=str(folder), **{**usual, "log_every": 3, "save_every": 4, "sample_every": 5, **fields})


def _pixels(file: Path) -> Any:
    with Image.open(file) as image:
        return np.asarray(image)


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_is_due_happens_every_so_many_steps_and_after_the_last(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    asked: list[int] = []
    task = Toy()

    def finished(done: int, average: ExponentialAverage) -> bool:
        asked.append(done)
        return False

    weights = loop.train(
        task, _stream, _settings(tmp_path, keep=1), record={"a": 1}, on_step=lambda *each: told.append(each),
        finished=finished,
    )  # fmt: skip
    assert task.seen == [(step, float(step)) for step in range(7)]
    assert [line["step"] for line in _lines(tmp_path)] == [2, 5, 6] == [step for step, _ in told]
    assert [line["loss"] for line in _lines(tmp_path)] == [-1.0, -2.5, -3.0] == [each["loss"] for _, each in told]
    assert all(line["norm"] == 1 and line["learning_rate"] == 0.5 for line in _lines(tmp_path))
    assert asked == list(range(8))
    assert float(weights["weight"]) == -3.5  # with a decay of 0 the average is the weights
    assert sorted(each.name for each in tmp_path.glob("*.png")) == ["samples-000000005.png", "samples-000000007.png"]
    assert _pixels(tmp_path / "samples-000000007.png").tolist() == [[[10, 20, 30]] * 4] * 2
    assert task.shown == [-2.5, -3.5]
    assert len(task.drawn) == len(set(task.drawn)) == 7
    assert len(find_checkpoints(tmp_path)) == 1


def test_a_run_goes_on_with_the_steps_the_draws_and_the_lines_of_its_own(tmp_path: Path) -> None:
    whole, first, second = Toy(), Toy(), Toy()
    loop.train(whole, _stream, _settings(tmp_path / "whole"), record={"a": 1})
    stopped = loop.train(
        first, _stream, _settings(tmp_path / "out"), record={"a": 1}, finished=lambda done, average: done == 6
    )
    assert float(stopped["weight"]) == -3.0
    assert [line["step"] for line in _lines(tmp_path / "out")] == [2, 5]
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a line that was cut short
    weights = loop.train(second, _stream, _settings(tmp_path / "out"), record={"a": 1})
    assert second.seen == [(step, float(step)) for step in (4, 5, 6)]  # since the checkpoint after four steps
    assert second.drawn == whole.drawn[4:] == [*first.drawn[4:], whole.drawn[6]]
    assert float(weights["weight"]) == -3.5
    assert [line["step"] for line in _lines(tmp_path / "out")] == [2, 5, 6]
    nothing = Toy()
    loop.train(nothing, _stream, _settings(tmp_path / "out"), record={"a": 1})
    assert nothing.seen == []
    with pytest.raises(TrainingError, match=r"holds another run: .*a.*; choose another out folder or remove this one"):
        loop.train(Toy(), _stream, _settings(tmp_path / "out"), record={"a": 2})


def test_the_newest_checkpoint_is_set_aside_only_once_the_previous_one_resumes(tmp_path: Path) -> None:
    loop.train(Toy(), _stream, _settings(tmp_path), record={"a": 1})
    back = _settings(tmp_path, resume="previous")
    with pytest.raises(TrainingError, match="holds another run: a was 1, is 2"):
        loop.train(Toy(), _stream, back, record={"a": 2})
    averaged = find_checkpoints(tmp_path)[0][1] / "ema.safetensors"
    content = averaged.read_bytes()
    averaged.write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="checkpoint-000000004 cannot be read"):
        loop.train(Toy(), _stream, back, record={"a": 1})
    averaged.write_bytes(content)
    assert [step for step, _ in find_checkpoints(tmp_path)] == [4, 7]
    task = Toy()
    loop.train(task, _stream, back, record={"a": 1})
    assert [step for step, _ in task.seen] == [4, 5, 6]
    assert (tmp_path / "set-aside-000000007").is_dir()


def test_fewer_steps_than_were_taken_are_refused(tmp_path: Path) -> None:
    loop.train(Toy(), _stream, _settings(tmp_path), record={})
    with pytest.raises(TrainingError, match=r"^steps=6 is below the 7 steps already taken in .*; set at least that"):
        loop.train(Toy(), _stream, _settings(tmp_path, steps=6), record={})


def test_a_run_that_is_finished_at_once_takes_no_step(tmp_path: Path) -> None:
    task = Toy()
    loop.train(task, _stream, _settings(tmp_path), record={}, finished=lambda done, average: True)
    assert task.seen == []
    assert find_checkpoints(tmp_path) == []


@pytest.mark.parametrize(("clip", "rate"), [(0.0, 1.0), (0.25, 0.25), (2.0, 1.0)])
def test_gradients_are_clipped_to_a_norm_or_not_at_all(tmp_path: Path, clip: float, rate: float) -> None:
    weights = loop.train(Toy(), _stream, _settings(tmp_path, steps=1, clip=clip), record={})
    assert float(weights["weight"]) == pytest.approx(-0.5 * rate, rel=1e-4)


def test_rates_warm_up_and_fall_along_a_cosine(tmp_path: Path) -> None:
    settings = _settings(tmp_path, steps=12, warmup=4, schedule="cosine")
    assert [settings.rate(step) for step in range(5)] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
    assert settings.rate(8) == pytest.approx(0.25)
    assert settings.rate(12) == pytest.approx(0)
    assert _settings(tmp_path, steps=4, warmup=4, schedule="cosine").rate(4) == pytest.approx(0.5)
    assert [_settings(tmp_path, warmup=2).rate(step) for step in range(4)] == [0.25, 0.5, 0.5, 0.5]


def test_what_is_not_finite_ends_a_run_with_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Toy()
    monkeypatch.setattr(task.modules[0], "forward", lambda x: task.modules[0].weight * torch.nan)
    with pytest.raises(TrainingError, match="gradient is nan at step 0; the weights are untouched"):
        loop.train(task, _stream, _settings(tmp_path), record={})
    assert not task.modules[0].state_dict()["weight"].any()
    run = loop.Run(Accelerator(cpu=True), _settings(tmp_path))
    with pytest.raises(TrainingError, match="loss is inf at step 3; the last checkpoint is untouched"):
        run.check(torch.tensor(float("inf")), 3)
    assert float(run.check(torch.tensor(2.5, requires_grad=True), 3)) == 2.5


def test_pictures_go_to_trackers_that_take_pictures(tmp_path: Path) -> None:
    given: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

    def tracker(name: str) -> Any:
        return types.SimpleNamespace(
            name=name, log_images=lambda images, **options: given.update({name: (images, options)})
        )

    accelerator: Any = types.SimpleNamespace(
        is_main_process=True, trackers=[tracker(name) for name in ("tensorboard", "wandb", "csv")]
    )
    image = torch.arange(3 * 2 * 4, dtype=torch.uint8).reshape(3, 2, 4)
    Logbook(tmp_path, accelerator, 0, 1).picture(12, "samples", image, tmp_path)
    assert given.keys() == {"tensorboard", "wandb"}
    assert np.array_equal(given["tensorboard"][0]["samples"], image[None].numpy())
    assert given["tensorboard"][1] == {"step": 12, "dataformats": "NCHW"}
    assert np.array_equal(given["wandb"][0]["samples"][0], image.permute(1, 2, 0).numpy())
    assert given["wandb"][1] == {"step": 12}
    assert np.array_equal(_pixels(tmp_path / "samples-000000012.png"), image.permute(1, 2, 0).numpy())


def test_speed_is_of_the_steps_since_it_was_last_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 12.0, 17.0, 17.0, 17.0])
    monkeypatch.setattr(logbook_module, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    logged: list[tuple[dict[str, float], int]] = []
    accelerator: Any = types.SimpleNamespace(
        is_main_process=True, trackers=[], log=lambda values, step: logged.append((values, step))
    )
    book = Logbook(tmp_path, accelerator, 4, 6)
    assert book.write(7, {"loss": torch.tensor(1.5)}, 0.25) == {
        "loss": 1.5, "learning_rate": 0.25, "images_per_second": 12.0
    }  # fmt: skip
    assert book.write(8, {}, 0.5)["images_per_second"] == pytest.approx(6 / 5)
    assert [step for _, step in logged] == [7, 8] == [line["step"] for line in _lines(tmp_path)]
    other: Any = types.SimpleNamespace(is_main_process=False)
    Logbook(tmp_path, other, 0, 6)  # another process leaves the file alone
    assert len(_lines(tmp_path)) == 2


# ---- several processes


def _among(monkeypatch: pytest.MonkeyPatch, *, main: bool, count: int = 2, answers: list[Any] | None = None) -> None:
    """This process is one of several; `answers` is what the main one has sent."""
    state = types.SimpleNamespace(num_processes=count, is_main_process=main, device=torch.device("cpu"))

    def broadcast(held: list[Any]) -> None:
        if main:
            sent.append(list(held))
        else:
            held[:] = answers or []

    sent: list[Any] = []
    monkeypatch.setattr(distributed, "processes", lambda: state)
    monkeypatch.setattr(distributed, "broadcast_object_list", broadcast)
    monkeypatch.setattr(distributed, "gather", lambda asked: torch.cat([asked, torch.tensor([answers == ["yes"]])]))
    monkeypatch.setattr(distributed, "sent", sent, raising=False)


def test_what_the_main_process_makes_is_told_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    _among(monkeypatch, main=True)
    assert distributed.on_main_process(lambda: 5) == 5
    assert vars(distributed)["sent"] == [[5, None]]
    _among(monkeypatch, main=False, answers=[5, None])
    assert distributed.on_main_process(lambda: pytest.fail("the main process alone makes it")) == 5


def test_what_fails_on_the_main_process_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    def stop() -> None:
        raise KeyboardInterrupt

    _among(monkeypatch, main=True)
    with pytest.raises(OSError, match="the disk is full"):
        distributed.on_main_process(fail)
    with pytest.raises(KeyboardInterrupt):
        distributed.on_main_process(stop)
    assert vars(distributed)["sent"] == [[None, "the disk is full"], [None, "KeyboardInterrupt"]]
    _among(monkeypatch, main=False, answers=[None, "the disk is full"])
    with pytest.raises(TrainingError, match=r"^the main process failed: the disk is full$"):
        distributed.on_main_process(fail)


def test_any_process_may_ask_and_batches_divide_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    _among(monkeypatch, main=True)
    assert (distributed.any_process(True), distributed.any_process(False)) == (True, False)
    _among(monkeypatch, main=True, answers=["yes"])
    assert distributed.any_process(False)
    _among(monkeypatch, main=True, count=1, answers=["yes"])
    assert (distributed.any_process(False), distributed.any_process(True)) == (False, True)
    _among(monkeypatch, main=True, count=3)
    assert [distributed.divisible_batch(size) for size in (1, 3, 7, 9)] == [3, 3, 6, 9]


# ---- why a run stops


@pytest.mark.parametrize(
    ("came", "late", "others", "reason"),
    [
        (None, False, None, None), (signal.SIGTERM, False, None, "SIGTERM"), (None, True, None, "the time limit"),
        (signal.SIGUSR1, True, None, "SIGUSR1"), (None, False, [0, 0], None), (None, False, [0, 15], "SIGTERM"),
        (None, True, [0, 0], "the time limit"), (None, False, [-1, 0], "the time limit"),
    ],
)  # fmt: skip
def test_all_processes_stop_for_the_reason_of_any(
    came: int | None, late: bool, others: list[int] | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([50.0, 61.0 if late else 59.0])
    monkeypatch.setattr(stopping, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    stop = stopping.StopSignals(10.0)
    if came is not None:
        stop._take(came, None)
    accelerator: Any = types.SimpleNamespace(
        num_processes=1 + len(others or ()), device="cpu",
        gather=lambda mine: torch.cat([mine, torch.tensor(others)]),
    )  # fmt: skip
    assert stop.reason(accelerator) == reason


def test_signals_are_taken_within_the_block_alone() -> None:
    accelerator: Any = types.SimpleNamespace(num_processes=1)
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    assert [signal.Signals(number).name for number in stopping.SIGNALS] == ["SIGTERM", "SIGUSR1"]
    with stopping.StopSignals() as stop:
        assert stop.reason(accelerator) is None
        signal.raise_signal(signal.SIGUSR1)
        assert stop.reason(accelerator) == "SIGUSR1"
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
