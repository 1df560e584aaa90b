"""Laws of what training decides by itself: deciding changes nothing else, and a run keeps what was decided."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_model import tiny_model, write_pictures

from bigr_repr.datasets import open_images
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train import pace
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.generator import train_generator
from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr.train.resume import TrainingError, find_checkpoints, read_record
from bigr_repr.train.settings import TrainSettings
from bigr_repr.train.tokenizer import TokenizerRecipe, train_tokenizer

MODEL = tiny_model(layers=2)


def settings(out: Path, precision: str = "auto", steps: int = 2) -> TrainSettings:
    return TrainSettings(
        out=str(out), steps=steps, batch_size=2, learning_rate=1e-3, save_every=1, precision=precision, cpu=True
    )


def trained(images: Path, run: TrainSettings) -> dict[str, torch.Tensor]:
    recipe = TokenizerRecipe(perceptual=None, gan_start=None)
    model: BinaryAutoencoder = train_tokenizer(open_images(images), MODEL.config.tokenizer, run, recipe)
    return model.state_dict()


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """A process trains in one precision; here every run chooses its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", 6)
    return tmp_path / "images"


def faster(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """Make bfloat16 seem so many times as fast; the steps of the trial are taken all the same."""
    taken = pace._seconds
    monkeypatch.setattr(pace, "_seconds", lambda *a, half: taken(*a, half=half) * 0 + (1 if half else by))


@pytest.mark.slow
@pytest.mark.parametrize(("by", "chosen"), [(3.0, "bfloat16"), (1.05, "float32"), (0.5, "float32")])
def test_deciding_changes_no_weight(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    by: float,
    chosen: str,
) -> None:
    faster(monkeypatch, by)
    caplog.set_level(logging.INFO)
    auto = trained(images, settings(tmp_path / "a"))
    named = trained(images, settings(tmp_path / "b", chosen))
    assert all(torch.equal(auto[name], named[name]) for name in named)
    assert f"computing in {chosen}" in caplog.text


def test_a_resumed_run_goes_on_as_it_began(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faster(monkeypatch, 3.0)
    trained(images, settings(tmp_path / "run"))
    faster(monkeypatch, 0.5)
    trained(images, settings(tmp_path / "run", steps=3))
    assert read_record(find_checkpoints(tmp_path / "run")[-1][1])["precision"] == "bf16"


def test_the_previous_checkpoint_decides_where_the_newest_cannot_be_read(tmp_path: Path) -> None:
    record = json.dumps({"precision": "bf16", "step": 1, "ema_updates": 1})
    for name, text in (("checkpoint-000000001", record), ("checkpoint-000000002", record[:20])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    run = settings(tmp_path)
    with pytest.raises(TrainingError, match=r"checkpoint-000000002 cannot be read .*: --resume previous$"):
        pace.decided(run, lambda device: pytest.fail("nothing is measured"))
    again = pace.decided(dataclasses.replace(run, resume="previous"), lambda device: pytest.fail("nothing is measured"))
    assert again.precision == "bf16"


def test_a_generator_decides_too(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faster(monkeypatch, 3.0)
    write_codes(open_images(images), MODEL.tokenizer, tmp_path / "codes", tokenizer_name="tiny")
    data, recipe = CodeSet(tmp_path / "codes"), GeneratorRecipe()
    auto, named = (
        train_generator(data, MODEL.config, settings(tmp_path / name, name), recipe).state_dict()
        for name in ("auto", "bfloat16")
    )
    assert all(torch.equal(auto[name], named[name]) for name in named)


def test_only_long_runs_are_compiled_without_being_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(pace.shutil, "which", lambda name: "/usr/bin/c++" if name == "c++" else None)
    assert pace.compiling_pays(settings(tmp_path, steps=5000))
    assert not pace.compiling_pays(settings(tmp_path, steps=50))
    monkeypatch.setattr(pace.shutil, "which", lambda name: None)
    assert not pace.compiling_pays(settings(tmp_path, steps=5000))
