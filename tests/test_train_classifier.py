"""Laws of benchmarks/train_classifier.py: views of images, weights that `--align` takes, resuming to equal weights."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_model import write_pictures

from bigr_repr.train.alignment import FrozenNetwork

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("train_classifier")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        write_pictures(tmp_path / "pictures" / name, 8, first=8 * number)
    return tmp_path / "pictures"


def train(script: ModuleType, monkeypatch: pytest.MonkeyPatch, pictures: Path, out: Path) -> dict[str, torch.Tensor]:
    options = ["--network", "test_resnet", "--stages", "32:1", "48:1", "--batch-size", "8"]
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", str(pictures), "--out", str(out), *options])
    script.main()
    state: dict[str, torch.Tensor] = torch.load(out, weights_only=True)
    return state


def test_views_are_random_parts_of_their_images(script: ModuleType) -> None:
    """Of images with a white left half, views have a white left or right side, and no two are equal."""
    images = torch.zeros(64, 3, 64, 64, dtype=torch.uint8)
    images[:, :, :, :32] = 255
    views = script.views_of(images, 32, torch.Generator().manual_seed(0))
    assert views.shape == (64, 3, 32, 32)
    assert views.min() >= 0
    assert views.max() <= 1
    left_is_white = views[:, :, :, 0].mean((1, 2)) > views[:, :, :, -1].mean((1, 2))
    assert 16 < int(left_is_white.sum()) < 48  # mirrored at random
    assert len({view.numpy().tobytes() for view in views}) == 64


def test_the_weights_serve_alignment_and_a_broken_run_resumes(
    script: ModuleType, pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train(script, monkeypatch, pictures, tmp_path / "whole.pth")
    found = json.loads((tmp_path / "whole.json").read_text())
    assert found["views"] == 28
    assert found["held_out_images"] == 2
    assert found["machine"]
    network = FrozenNetwork("timm:test_resnet:2", grid=8, weights=tmp_path / "whole.pth")
    assert network.side == 64

    measured = script.accuracy

    def stop(*given: object) -> float:
        if given[-1] == 48:  # in the second epoch
            raise KeyboardInterrupt
        return float(measured(*given))

    monkeypatch.setattr(script, "accuracy", stop)
    with pytest.raises(KeyboardInterrupt):
        train(script, monkeypatch, pictures, tmp_path / "again.pth")
    assert not (tmp_path / "again.pth").exists()
    monkeypatch.setattr(script, "accuracy", measured)
    again = train(script, monkeypatch, pictures, tmp_path / "again.pth")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_bad_stages_are_named(script: ModuleType) -> None:
    for stage in ("64", "64:0", "16:1", "x:1"):
        with pytest.raises(Exception, match=f"'{stage}' is not SIDE:EPOCHS"):
            script.parse_stage(stage)
    assert script.parse_stage("64:2") == (64, 2)
