"""`bigr-repr models`: what it prints, and that scripts can read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bigr_repr_cli.models.command import app
from typer.testing import CliRunner

from bigr_repr.checkpoints.catalog import available_models
from bigr_repr.checkpoints.pretrained import load

GOLDEN = Path(__file__).parent / "golden"
FILES = ["--tokenizer", str(GOLDEN / "binaryae_ema.th"), "--generator", str(GOLDEN / "bigr.pt"), "--heads", "4"]


def _run(*arguments: str) -> str:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_list_names_every_model_within_80_columns() -> None:
    text = _run("list")
    assert all(any(line.startswith(model.name + " ") for line in text.splitlines()) for model in available_models())
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_list_as_json() -> None:
    models = json.loads(_run("list", "--json"))
    assert [model["name"] for model in models] == [model.name for model in available_models()]
    assert {"tokenizer", "generator", "training"} <= set(models[0]["config"])


def test_import_then_info(tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert str(out) in _run("import", *FILES, "--out", str(out), "--image-size", "64", "--half", "--name", "golden")
    text = _run("info", str(out))
    for part in ("golden", "64 x 64 px", "0..2", "24 bits per token, 384 bits = 48 B", "binaryae_ema.th"):
        assert part in text
    assert load(out).fingerprint in text
    assert max(map(len, text.splitlines())) <= 80
    record = json.loads(_run("info", str(out), "--json"))
    assert record["fingerprint"] == load(out).fingerprint
    assert record["config"]["generator"]["heads"] == 4
    assert record["parameters"].keys() == {"tokenizer", "transformer", "transcoder"}


def test_import_replaces_nothing_unless_told(tmp_path: Path) -> None:
    out = tmp_path / "model"
    _run("import", *FILES, "--out", str(out))
    before = load(out).fingerprint
    with pytest.raises(FileExistsError, match="--force"):
        _run("import", *FILES, "--out", str(out), "--half")
    assert load(out).fingerprint == before
    _run("import", *FILES, "--out", str(out), "--half", "--force")
    assert load(out).fingerprint != before


def test_info_of_a_preset_says_that_it_has_no_weights() -> None:
    text = _run("info", "XXL")
    assert "0..47" in text
    assert "no local weights" in text
