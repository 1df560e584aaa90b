"""Laws of how results are printed: every form says the same numbers."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from bigr_repr_cli.bench import app
from tiny_model import tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.evaluate.runs.bench import _rounded


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Two classes of features as options of the commands."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    np.save(tmp_path / "x.npy", (rng.normal(size=(60, 5)) + labels[:, None]).astype(np.float32))
    np.save(tmp_path / "y.npy", labels)
    return ["--features", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy"), "--cache", str(tmp_path / "c")]


def said(*arguments: str) -> str:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments, catch_exceptions=False).stdout


def undated(text: str) -> str:
    """The text without the second in which it was printed."""
    return re.sub(r'"date": "[^"]+"', "", text)


@pytest.mark.parametrize(
    ("command", "column", "key"),
    [
        (["linear-probe", "--C", "1"], "top-1", ("linear_probe", "top1")),
        (["knn", "-k", "3"], "top-1", ("knn", "top1", "3")),
        (["few-shot", "--shots", "2", "--draws", "2"], "mean per class", ("mean_per_class",)),
        (["clusters"], "RankMe", ("rank_me",)),
    ],
)
def test_every_form_says_the_same(data: list[str], command: list[str], column: str, key: tuple[str, ...]) -> None:
    (row,) = json.loads(said(*command, *data, "--format", "json"))["rows"]
    one, other = (said(*command, *data, *form) for form in (["--json"], ["--format", "json"]))
    assert undated(one) == undated(other)
    for name in key:
        row = row[name]
    (line,) = csv.DictReader(io.StringIO(said(*command, *data, "--format", "csv")))
    assert float(line[column]) == pytest.approx(row, abs=6e-4)  # JSON rounds to three decimals
    latex = said(*command, *data, "--format", "latex")
    head, cells = [text.removesuffix(r" \\").split(" & ") for text in latex.splitlines() if "&" in text]
    shown = cells[head.index(column)]
    assert abs(float(shown) - row) <= 0.5 * 10 ** -len(shown.partition(".")[2])
    assert shown in said(*command, *data)


def test_figures_in_records_are_rounded_wherever_they_lie() -> None:
    found = _rounded({"a": [1 / 3, (2 / 3,)], "b": 7, "c": None}, 3)
    assert found == {"a": [0.333, [0.667]], "b": 7, "c": None}


def test_an_interval_is_two_columns_for_spreadsheets(data: list[str]) -> None:
    (line,) = csv.DictReader(io.StringIO(said("linear-probe", "--C", "1", *data, "--format", "csv")))
    assert float(line["95 % low"]) <= float(line["top-1"]) <= float(line["95 % high"])
    assert r"95 \% &" in said("linear-probe", "--C", "1", *data, "--format", "latex")


def test_the_mean_over_classes_is_in_every_form(data: list[str]) -> None:
    command = ["linear-probe", "--C", "1", *data]
    (row,) = json.loads(said(*command, "--json"))["rows"]
    mean = row["linear_probe"]["mean_per_class"]
    (line,) = csv.DictReader(io.StringIO(said(*command, "--format", "csv")))
    assert float(line["mean per class"]) == pytest.approx(mean, abs=1e-6)
    head, cells = [
        text.removesuffix(r" \\").split(" & ")
        for text in said(*command, "--format", "latex").splitlines()
        if "&" in text
    ]
    assert cells[head.index("mean per class")] == f"{mean:.2f}"
    assert "mean per class" not in said(*command)  # the terminal has it below the table, where it differs


def test_the_table_says_how_a_file_of_weights_was_matched(tmp_path: Path) -> None:
    state = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    torch.save({f"_{i}": value for i, value in enumerate(state.values()) if value.ndim}, tmp_path / "other.pth")
    shared = ["--model", f"timm:test_efficientnet?checkpoint={tmp_path}/other.pth", "--dataset", "digits"]
    shared += ["--test-limit", "10", "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    for command in (["knn", "--limit", "20", "-k", "1"], ["clusters"]):
        text = " ".join(said(*command, *shared).split())
        assert "features: weights of other.pth: " in text
        assert "in order (_0 → conv_stem.weight), 2 left over" in text


@pytest.mark.parametrize("command", ["knn", "attentive-probe", "clusters"])
def test_every_block_can_be_named_at_once(command: str, tmp_path: Path) -> None:
    model = str(save(tiny_model(), tmp_path / "model"))
    given = [command, "--dataset", "digits", "--test-limit", "10", "--model", model, "--device", "cpu"]
    given += ["--cache", str(tmp_path / "cache"), *([] if command == "clusters" else ["--limit", "20"])]
    given += ["--epochs", "1", "--rates", "1e-3", "--queries", "2"] if command == "attentive-probe" else []
    given += ["-k", "1"] if command == "knn" else []
    rows = json.loads(said(*given, "--layer", "all", "--json"))["rows"]
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    for mixed in (["all,1"], ["2", "all"], ["all+1"]):
        layers = [word for text in mixed for word in ("--layer", text)]
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*given, *layers])
        assert done.exit_code == 2
        assert f"{','.join(mixed)!r}: all stands alone" in done.output


@pytest.mark.parametrize("command", ["linear-probe", "clusters"])
def test_every_block_is_refused_where_a_number_is(command: str, data: list[str], tmp_path: Path) -> None:
    digits = ["--dataset", "digits", "--test-limit", "10", "--cache", str(tmp_path / "c"), "--device", "cpu"]
    for given, refusal in (
        (data, "holds features, which have no layer"),
        ([*digits, "--model", "pixels:4"], "pixels:4 has no layers; leave layer out"),
        ([*digits, "--codes"], "codes belong to no block"),
    ):
        for layer in ("all", "1"):
            assert refusal in str(CliRunner().invoke(app, [command, *given, "--layer", layer]).exception)
    assert "\nfeatures " in said("layers", *data, "--C", "1", "-k", "1")  # which means all of whatever there is


def test_two_forms_at_once_are_refused(data: list[str]) -> None:
    done = CliRunner().invoke(app, ["clusters", *data, "--json", "--format", "csv"])
    assert done.exit_code == 2
    assert "csv contradicts --json" in done.output


def test_seeds_of_one_accuracy_are_not_said_to_be_one_head(data: list[str]) -> None:
    """Heads by gradient descent differ, though they call as many images rightly."""
    text = " ".join(said("linear-probe", "--C", "1", "--seeds", "2", *data).split())
    assert "seeds 0, 1 gave the same accuracy; only the test images vary" in text


@pytest.mark.parametrize("prompts", [False, True])
def test_generated_pictures_are_measured_in_every_form(prompts: bool, tmp_path: Path) -> None:
    for name, first in (("drawn", 0), ("real", 50)):
        write_pictures(tmp_path / name, 6, first=first)
    words = ["generation", str(tmp_path / "drawn"), "--real", str(tmp_path / "real"), "--model", "pixels:4", "-k", "1"]
    words += ["--cache", str(tmp_path / "cache"), "--device", "cpu"]
    if prompts:
        (tmp_path / "prompts.txt").write_text("a red circle\n")
        words += ["--prompts", str(tmp_path / "prompts.txt")]
    found = json.loads(said(*words, "--format", "json"))
    assert undated(said(*words, "--json")) == undated(said(*words, "--format", "json"))
    (line,) = csv.DictReader(io.StringIO(said(*words, "--format", "csv")))
    assert float(line["Fréchet distance"]) == pytest.approx(found["frechet_distance"])
    assert float(line["recall"]) == found["recall"]
    scores = found["agreement"]["scores"] if prompts else {}
    for name, value in scores.items():
        assert name == "pictures" or value is None or float(line[name]) == pytest.approx(value)
    text, latex = said(*words), said(*words, "--format", "latex")
    assert f"Fréchet distance  {found['frechet_distance']:.4f}\n" in text
    assert found["protocol"] in text
    assert f"{found['frechet_distance']:.4f} & {found['precision']:.4f} & {found['recall']:.4f}" in latex
