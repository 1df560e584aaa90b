"""The training commands from pictures to a model that loads: as a user types them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bigr_repr_cli.train import app
from bigr_repr_cli.train import options as o
from forks import run_command
from PIL import Image
from typer.testing import CliRunner

import bigr_repr as br
from bigr_repr.config import ATTENTIONS, OBJECTIVES
from bigr_repr.system.devices import mixed_precision
from bigr_repr.train.settings import AUTO, RESUMES, SCHEDULES
from bigr_repr.train.tokenizer import OPTIMIZERS, PIXEL_LOSSES


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(6):
        place = root / ("plum" if i % 2 else "fig")
        place.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 66, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return root


@pytest.mark.slow
def test_pictures_become_a_model(pictures: Path, tmp_path: Path) -> None:
    short = ("--steps", 2, "--batch-size", 2, "--log-every", 1, "--cpu")
    plain = ("--perceptual", "none", "--gan-start", -1, "--learning-rate", 1e-3, "--crop", 32)
    done = run_command("train", "tokenizer", pictures, "--out", tmp_path / "t", *short, *plain, "--sample-every", 2)
    assert done.returncode == 0, done.stderr
    assert f"tokenizer: {tmp_path / 't' / 'tokenizer'}" in done.stdout
    assert "step 2/2" in done.stderr
    assert list((tmp_path / "t").glob("samples-*.png"))
    assert list((tmp_path / "t" / "logs").rglob("events*"))

    done = run_command("train", "codes", pictures, "--tokenizer", tmp_path / "t" / "tokenizer", "--out", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    assert "6 images x 2 views, 1536 bits each" in done.stdout

    where = ("--tokenizer", tmp_path / "t" / "tokenizer", "--out", tmp_path / "g", "--name", "fruit")
    done = run_command("train", "generator", tmp_path / "c", *where, *short, "--sample-every", 2)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "g").glob("samples-*.png"))
    model = br.load(tmp_path / "g" / "model")
    assert model.config.name == "fruit"
    assert model.config.class_names == ("fig", "plum")
    assert model.config.training["images"] == 6
    assert br.extract_features(pictures, model=model, layer=3).shape == (6, model.config.generator.dim)

    # Started again with nothing left to do, the same command says so by the same result.
    again = run_command("train", "generator", tmp_path / "c", *where, *short)
    assert again.returncode == 0, again.stderr
    assert br.load(tmp_path / "g" / "model").fingerprint == model.fingerprint


@pytest.mark.slow
def test_a_damaged_picture_is_named(pictures: Path, tmp_path: Path) -> None:
    (file,) = pictures.glob("fig/0.png")
    pq.write_table(pa.table({"image": [file.read_bytes(), file.read_bytes()[:99]]}), tmp_path / "two.parquet")
    short = ("--tokenizer", "bigr-tiny", "--out", tmp_path / "o")
    images = ("--steps", 1, "--batch-size", 2, "--workers", 1, "--cpu")
    for command in (("codes", tmp_path / "two.parquet"), ("generator", tmp_path / "two.parquet", *images)):
        done = run_command("train", *command, *short)
        assert done.returncode == 1
        *told, error = done.stderr.splitlines()
        assert error.startswith(f"error: {tmp_path / 'two.parquet'}#1: ")
        assert all(line.startswith("computing in ") for line in told)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tokenizer", "nowhere", "--out", "o"), "nowhere"),
        (("tokenizer", "PICTURES", "--out", "o", "--preset", "huge"), "huge"),
        (("tokenizer", "PICTURES", "--out", "o", "--crop", "80", "--perceptual", "none"), "crop=80 is outside 1..64"),
        (("codes", "PICTURES", "--tokenizer", "nowhere", "--out", "o"), "nowhere"),
        (("generator", "PICTURES", "--tokenizer", "nowhere", "--out", "o"), "nowhere"),
        (("codes", "PICTURES", "--tokenizer", "bigr-tiny", "--out", "o", "--device", "cuda:9"), "cuda:9"),
        (("codes", "torchvision:CIFAR9:here", "--tokenizer", "t", "--out", "o"), "CIFAR9"),
    ],
)
@pytest.mark.slow
def test_mistakes_end_in_one_line(pictures: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    given = [{"PICTURES": str(pictures), "o": str(tmp_path / "o")}.get(item, item) for item in arguments]
    done = run_command("train", *given)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_choices_are_those_of_the_library() -> None:
    choices = {
        o.Objective: OBJECTIVES, o.AttentionKind: ATTENTIONS, o.PixelLoss: PIXEL_LOSSES, o.Scheduled: SCHEDULES,
        o.TokenizerOptimizer: OPTIMIZERS, o.ResumedFrom: RESUMES,
    }  # fmt: skip
    for offered, known in choices.items():
        assert tuple(offered) == known
    assert {mixed_precision(name) for name in o.TrainPrecision if name != AUTO} == {"no", "bf16", "fp16"}
    assert {mixed_precision(name, ("float32", "bfloat16")) for name in o.CodePrecision} == {"no", "bf16"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tokenizer", "--schedule", "linear"), "'constant', 'cosine'"),
        (("tokenizer", "--pixel-loss", "huber"), "'l1', 'l2'"),
        (("tokenizer", "--precision", "fp8"), "'bfloat16'"),
        (("tokenizer", "--crop", "0"), "--crop"),
        (("tokenizer", "--workers", "-1"), "--workers"),
        (("codes", "--batch-size", "0"), "--batch-size"),
        (("codes", "--precision", "fp16"), "'bfloat16'"),
        (("generator", "--max-time", "2 weeks"), "90s, 45m, 2h"),
        (("generator", "--resume", "oldest"), "'newest', 'previous'"),
        (("generator", "--objective", "x1"), "'flip', 'x0', 'bce'"),
        (("generator", "--attention", "sparse"), "'full', 'causal'"),
        (("generator", "--optimizer", "lion"), "'adamw', 'muon'"),
        (("generator", "--masking", "linear"), "'cosine', 'half', 'mixed'"),
        (("generator", "--dropout", "2"), "--dropout"),
        (("generator", "--ema", "2"), "--ema"),
    ],
)
def test_typing_errors_are_usage_errors_that_say_what_can_be(arguments: tuple[str, ...], said: str) -> None:
    kind, *options = arguments
    tokenizer = [] if kind == "tokenizer" else ["--tokenizer", "t"]
    done = CliRunner().invoke(app, [kind, "nowhere", "--out", "o", *tokenizer, *options])
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())
