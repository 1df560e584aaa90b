"""Laws of what a benchmark admits: edges of grids, what a model has seen, seeds that say nothing, choices not made."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bigr_repr_cli.bench import app
from tiny_model import tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.catalog import bundled_folders, read_config
from bigr_repr.checkpoints.pretrained import save
from bigr_repr.embed import embed_images
from bigr_repr.evaluate.data.disclosure import trained_on
from bigr_repr.evaluate.data.splits import open_data, transfer
from bigr_repr.evaluate.probes import logreg
from bigr_repr.evaluate.probes.attentive import AttentiveProbe
from bigr_repr.evaluate.probes.edges import edge_of
from bigr_repr.evaluate.probes.linear_probe import _logreg_words, linear_probe
from bigr_repr.evaluate.probes.protocols import SgdProtocol, sgd_protocol
from bigr_repr.evaluate.reports import plots
from bigr_repr.evaluate.representations.hidden import Hidden
from bigr_repr.evaluate.runs import stored
from bigr_repr.evaluate.runs.attention import bench_attentive
from bigr_repr.evaluate.runs.augmented import bench_augmented
from bigr_repr.evaluate.runs.bench import BenchRow, bench, chosen_row, unmeasured_neighbor
from bigr_repr.evaluate.runs.settings import BenchSettings

SGD = SgdProtocol(name="sgd", optimizer="sgd", rates=(1e-6, 1e-5, 0.1), batch=32, epochs=4)


@pytest.fixture
def blobs() -> tuple[Any, ...]:
    """Three overlapping classes in 6 dimensions."""
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = (rng.normal(size=(3, 6))[y] + rng.normal(size=(240, 6))).astype(np.float32)
    return x[:180], y[:180], x[180:], y[180:]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tiny_model(), tmp_path_factory.mktemp("model") / "tiny"))


# ---- choices


def test_the_preset_of_dinov2_is_the_published_run() -> None:
    """Rates are scaled by the 128 images of each of 8 GPUs over 256."""
    protocol = sgd_protocol("dinov2")
    assert (protocol.batch, protocol.iterations) == (8 * 128, 12500)
    assert protocol.factor(0, 10**6) == 4
    assert (min(protocol.rates), max(protocol.rates)) == (1e-5, 0.1)


def test_a_choice_at_the_end_of_its_grid_is_said(blobs: tuple[Any, ...], caplog: pytest.LogCaptureFixture) -> None:
    x, y, test, test_y = blobs
    lopsided = np.concatenate([np.arange(0, 180, 3), np.arange(1, 180, 9), np.arange(2, 180, 9)])
    few = x[lopsided], y[lopsided], test, test_y  # where the smallest penalties leave the commonest class
    found = linear_probe(*few, grid=[1e-6, 1e-5, 0.1])
    assert found.edges == ("C=0.1 is the largest of its grid of 3",)
    assert "C=0.1 is the largest of its grid of 3; a better one may lie beyond" in caplog.text
    caplog.clear()
    tied = linear_probe(*blobs, grid=[1e-6, 1e-5, 1e-4])
    assert tied.edges == ("C=1e-06 is the smallest of its grid of 3, and no better than 1e-05 beside it",)
    assert "no better than 1e-05 beside it; a better one may lie beyond" in caplog.text
    caplog.clear()
    assert linear_probe(*blobs, grid=[1e-6]).edges == ()  # there was no choice
    assert edge_of("rate", 0.2, {0.1: 50.0, 0.2: 60.0}, [0.1, 0.2, 0.2]) == "rate=0.2 is the largest of its grid of 2"
    assert not caplog.text
    assert linear_probe(*blobs, protocol=SGD).edges == ("rate=0.1 is the largest of its grid of 3",)
    assert linear_probe(*blobs, protocol=dataclasses.replace(SGD, rates=(1e-6, 0.1, 1e6))).edges == ()


def test_the_search_for_a_penalty_ends_when_accuracy_and_likelihood_both_got_worse_twice(
    blobs: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worse accuracy at better likelihood does not end it, nor the other way around."""

    class Fit:
        passes = 1

        def __init__(self, right: int, sure: float) -> None:
            self.right, self.sure = right, sure

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            """The first `right` rows of each class are called rightly, with the certainty given."""
            called = torch.where(torch.arange(len(x)) < self.right, held["y"], (held["y"] + 1) % 3)
            return torch.nn.functional.one_hot(called, 3) * self.sure

    held: dict[str, torch.Tensor] = {}
    tried: list[float] = []
    outcomes: dict[float, Fit] = {}

    class Problem:
        def __init__(self, x: torch.Tensor, y: torch.Tensor, classes: int) -> None:
            """Knows no rows."""

        def fit(self, C: float, start: object = None, tolerance: float = 0) -> Fit:  # noqa: N803
            tried.append(C)
            return outcomes[C]

    indices = logreg.class_indices

    def remembered(labels: Any, classes: Any, device: Any) -> torch.Tensor:
        held["y"] = indices(labels, classes, device)  # the last ones asked for are those held out
        return held["y"]

    monkeypatch.setattr(logreg, "LogisticRegression", Problem)
    monkeypatch.setattr(logreg, "class_indices", remembered)

    def search(*results: tuple[int, float]) -> tuple[list[float], float]:
        tried.clear()
        outcomes.clear()
        outcomes.update({float(i + 1): Fit(*result) for i, result in enumerate(results)})
        train = logreg.Labeled("train", blobs[0], blobs[1])
        choice = logreg._choose(train, np.arange(3), sorted(outcomes), 1000, 0, torch.device("cpu"))
        return list(tried), choice.C

    right, wrong = (30, 6.0), (20, 9.0)
    wavering = (29, 2.0)  # fewer right, but less certain of the mistakes: only accuracy is worse
    assert search(right, wavering, wavering, (33, 4.0)) == ([1, 2, 3, 4], 4.0)
    # More certain of its mistakes, but no less accurate: only the likelihood is worse.
    assert search(right, (30, 30.0), (30, 30.0), (33, 4.0)) == ([1, 2, 3, 4], 4.0)
    # One bad value does not end it, two in a row do.
    assert search(right, wrong, wavering, wrong, (33, 4.0)) == ([1, 2, 3, 4, 5], 5.0)
    assert search(right, wrong, wrong, (33, 4.0)) == ([1, 2, 3], 1.0)


def test_a_single_rate_or_penalty_needs_nothing_held_out(blobs: tuple[Any, ...]) -> None:
    """So that one image a class is enough."""
    x, y, test, test_y = blobs
    few = x[:3], y[:3], test, test_y
    for options in ({"grid": [1.0]}, {"protocol": dataclasses.replace(SGD, rates=(0.1,))}):
        found = linear_probe(*few, **options)  # type: ignore[arg-type]
        assert (found.n_train, found.held_out_top1) == (3, None)
        assert "given" in found.protocol
        assert linear_probe(*blobs, **options).held_out_top1 is not None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass a single"):
        linear_probe(*few)


def test_seeds_that_changed_nothing_make_no_interval(blobs: tuple[Any, ...]) -> None:
    same = linear_probe(*blobs, grid=[0.1], seeds=(0, 1, 2))
    assert len(set(same.top1_by_seed)) == 1
    assert same.seed_interval is None
    assert linear_probe(*blobs, protocol=SGD, seeds=(0, 1, 2)).seed_interval is not None


@pytest.mark.slow
def test_a_block_beside_the_best_that_was_not_measured_is_said(model: str, tmp_path: Path) -> None:
    settings = BenchSettings(cache=tmp_path, k=(1,), device="cpu")
    data = open_data("digits", limit=60, test_limit=20)
    rows = bench(model, data, settings, layers=[1, 3])
    best = {1: "0 and 2 beside it are", 3: "2 beside it is"}
    probes = [row.probe for row in rows]
    assert all(probes)
    for layer, beside in best.items():
        ranked = [
            dataclasses.replace(row, probe=dataclasses.replace(probe, held_out_top1=float(row.view.layer == layer)))
            for row, probe in zip(rows, probes, strict=True)
            if probe is not None
        ]
        assert unmeasured_neighbor(ranked) == f"block {layer} is the best of those measured; {beside} not"
    assert unmeasured_neighbor(bench(model, data, settings, layers=None)) is None


def test_a_block_beside_the_best_that_was_not_measured_is_in_the_records_of_every_probe(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = open_data("digits", limit=40, test_limit=10)
    settings = BenchSettings(cache=tmp_path, protocol="mae", rates=(0.1, 0.2), device="cpu")
    measures: dict[str, Callable[..., list[BenchRow]]] = {
        "bench": partial(bench, neighbors=False), "augmented": partial(bench_augmented, epochs=1),
        "attentive": partial(bench_attentive, probe=AttentiveProbe(queries=2, epochs=1)),
    }  # fmt: skip
    for name, measure in measures.items():
        caplog.clear()
        rows = measure(model, data, settings, layers=[1, 3])
        said = unmeasured_neighbor(rows)
        assert said, name
        noted = [row for row in rows if said in row.record()["linear_probe"]["edges"]]
        assert noted == [chosen_row(rows)], name
        assert f"digits: {said}; measure it too, or every block (--layer all)" in caplog.text, name
        assert "widen the grid" not in caplog.text.partition(said)[2].partition("\n")[0]
        (alone,) = measure(model, data, settings, layers=[3])
        assert "of those measured" not in str(alone.record()["linear_probe"]["edges"]), name


def test_dinov2_measures_its_published_grid_of_blocks(model: str, tmp_path: Path) -> None:
    data = open_data("digits", limit=60, test_limit=20)
    settings = BenchSettings(cache=tmp_path, protocol="dinov2", rates=(0.1,), batch=16, device="cpu")
    short = dataclasses.replace(sgd_protocol("dinov2"), iterations=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigr_repr.evaluate.runs.settings.sgd_protocol", lambda name: short)
        rows = bench(model, data, settings, neighbors=False)
        classes = bench("timm:test_vit?random", data, settings, neighbors=False)
    assert [row.view.where for row in rows] == ["layer 3", "layers 0+1+2+3"]
    widths = [row.probe.n_features for row in rows if row.probe]
    assert widths[1] == 4 * widths[0]
    assert len(classes) == 4  # one block or four, with the mean beside the class token or without
    one, with_mean, four, four_with_mean = (row.probe.n_features for row in classes if row.probe)
    assert (with_mean, four, four_with_mean) == (2 * one, 4 * one, 5 * one)
    said = "states after the network's final norm"
    assert all(said in row.probe.protocol for row in classes if row.probe)
    assert not any(said in row.probe.protocol for row in rows if row.probe)  # BiGR's states, as ever


def test_the_published_grid_of_blocks_is_measured_on_crops_too(model: str, tmp_path: Path) -> None:
    """The last block alone and four side by side differ in width: each trains in a run of its own."""
    data = open_data("digits", limit=20, test_limit=10)
    settings = BenchSettings(cache=tmp_path, protocol="dinov2", rates=(0.1,), batch=16, device="cpu")
    told: list[tuple[str, int, int]] = []
    rows = bench_augmented(model, data, settings, epochs=1, on_progress=lambda *progress: told.append(progress))
    assert [row.view.where for row in rows] == ["layer 3", "layers 0+1+2+3"]
    assert [progress for progress in told if progress[0] == "epochs"] == [("epochs", n, 2) for n in range(3)]
    (alone,) = bench_augmented(model, data, settings, epochs=1, layers=[3])
    assert alone.probe is not None
    assert rows[0].probe is not None
    assert (alone.probe.predicted == rows[0].probe.predicted).all()


# ---- what a model has seen


@pytest.mark.parametrize(
    ("data", "training", "seen"),
    [
        ("cifar10", "Trained on Tiny-ImageNet and on CIFAR-10 (Krizhevsky 2009).", True),
        ("cifar10-train.parquet", "CIFAR-10", True),
        ("CIFAR-10", "CIFAR-100", False),
        ("cifar100", "CIFAR-10", False),
        ("tiny-imagenet", "ImageNet-1k (ILSVRC 2012)", True),
        ("tinyimagenet-val", "Tiny-ImageNet", True),
        ("imagenet", "CIFAR-10", False),
        ("digits", "CIFAR-10, Tiny-ImageNet", False),
        ("cifar10", "", False),
    ],
)
def test_a_training_record_tells_what_was_seen(data: str, training: str, seen: bool) -> None:
    assert (trained_on(data, training, labels=False) is not None) == seen
    if seen:
        assert "images and labels" in str(trained_on(data, training, labels=True))


@pytest.mark.parametrize("conditional", [True, False])
def test_a_model_without_classes_has_seen_no_labels(conditional: bool) -> None:
    pre = tiny_model()
    config = dataclasses.replace(pre.config, training={"settings": {"conditional": conditional}})
    hidden = Hidden("m", dataclasses.replace(pre, config=config), torch.device("cpu"))
    assert hidden.labels_seen is conditional


def _stored(name: str, weights_sha256: str) -> Any:
    return SimpleNamespace(provenance={"model": name, "weights_sha256": weights_sha256})


def _named(name: str) -> Any:
    return SimpleNamespace(name=name, train=SimpleNamespace(name="train"), test=SimpleNamespace(name="test"))


def test_embeddings_say_what_their_model_has_seen_if_it_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the weights that the record belongs to, which are not read: bundled, or in a folder of the model's name."""
    monkeypatch.chdir(tmp_path)
    bundled = str(read_config(bundled_folders()["bigr-tiny"])[1])
    assert "images and labels" in str(stored._seen(_stored("bigr-tiny", bundled), _named("cifar10"))["trained_on"])
    assert "cifar10: bigr-tiny was trained on this data set's images and labels" in caplog.text
    assert stored._seen(_stored("bigr-tiny", bundled), _named("digits")) == {"trained_on": None}
    assert stored._seen(_stored("bigr-tiny", "0" * 64), _named("cifar10")) == {"trained_on": None}
    pre = tiny_model()
    config = dataclasses.replace(pre.config, name="mine", training={"data": "Food-101"})
    save(dataclasses.replace(pre, config=config), tmp_path / "mine")
    mine = _stored("mine", str(read_config(tmp_path / "mine")[1]))
    assert "images and labels" in str(stored._seen(mine, _named("food101"))["trained_on"])
    for file in (tmp_path / "mine").glob("*.safetensors"):
        file.unlink()
    assert stored._seen(mine, _named("food101"))["trained_on"]
    (tmp_path / "mine" / "config.json").write_text("{")
    assert stored._seen(mine, _named("food101")) == {"trained_on": None}


@pytest.mark.slow
def test_embeddings_of_a_data_set_admit_what_its_images_do(tmp_path: Path) -> None:
    for side in ("train", "test"):
        for name in "ab":
            write_pictures(tmp_path / "cifar10" / side / name, 3, first=ord(name) + len(side))
        out = tmp_path / f"cifar10-{side}"
        embed_images([str(tmp_path / "cifar10" / side)], out, model="bigr-tiny", labels_from_folders=True, device="cpu")
    settings = BenchSettings(cache=tmp_path / "cache", k=(1,), device="cpu")
    data = transfer(str(tmp_path / "cifar10-train"), str(tmp_path / "cifar10-test"))
    (row,) = bench(None, data, settings, probe=False)
    assert "images and labels" in row.record()["trained_on"]


@pytest.mark.slow
def test_bench_says_that_a_model_was_trained_on_the_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        write_pictures(tmp_path / "cifar10" / name, 6, first=ord(name))
    settings = BenchSettings(cache=tmp_path / "cache", k=(1,), device="cpu")
    (row,) = bench("bigr-tiny", open_data(str(tmp_path / "cifar10")), settings, probe=False)
    assert "images and labels" in row.record()["trained_on"]
    assert "cifar10: bigr-tiny was trained on this data set's images and labels" in caplog.text
    (row,) = bench("random:bigr-tiny", open_data(str(tmp_path / "cifar10")), settings, probe=False)
    assert row.record()["trained_on"] is None
    shared = ["--dataset", str(tmp_path / "cifar10"), "--cache", str(tmp_path / "cache"), "-k", "1"]
    said = CliRunner().invoke(app, ["knn", *shared], catch_exceptions=False).stdout
    assert "note: bigr-tiny-aligned was trained on this data set's images and labels" in said


# ---- options and pictures


def test_one_value_on_the_command_line_makes_one_image_a_class_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("bigr_repr"), "disabled", True)
    shared = ["linear-probe", "--dataset", "digits", "--limit", "10", "--test-limit", "50", "--model", "pixels:8",
              "--cache", str(tmp_path)]  # fmt: skip
    assert "C=0.1 given" in CliRunner().invoke(app, [*shared, "--C", "0.1"], catch_exceptions=False).stdout
    mae = ["--protocol", "mae", "--rates", "0.1", "--batch", "5"]
    said = CliRunner().invoke(app, [*shared, *mae], catch_exceptions=False).stdout
    assert "rate 0.1 x batch/256 given" in said
    assert "batch 5," in said
    assert CliRunner().invoke(app, [*shared, "--C", "none"]).exit_code == 2
    for wrong in (["--rates", "0.1"], ["--protocol", "mae", "--C", "1"]):
        assert isinstance(CliRunner().invoke(app, [*shared, *wrong]).exception, ValueError)


def test_no_two_classes_share_a_color() -> None:
    for count in (2, 10, 11, 100, 200):
        assert len({tuple(color) for color in plots.class_colors(count)}) == count


@pytest.mark.slow
def test_pictures_name_all_classes_and_explain_their_marks(tmp_path: Path) -> None:
    names = [f"kind{i:03d}" for i in range(100)]
    points, labels = np.random.default_rng(0).normal(size=(200, 2)), np.arange(200) % 100
    plots.plot_map(points, labels, names, "map", tmp_path / "map.svg")
    plots.plot_matrix(np.eye(100), names, names, tmp_path / "matrix.svg", title="", labels=("", ""), span=(0, 1))
    for file, times in (("map.svg", 1), ("matrix.svg", 2)):
        text = (tmp_path / file).read_text()
        assert all(text.count(f"<!-- {name} -->") == times for name in names)
    rows = [
        {
            "dataset": "d", "representation": "r", "layer": layer, "knn": None,
            "linear_probe": {"top1": 50.0 + layer, "interval": [48.0, 53.0], "held_out_top1": layer},
        }
        for layer in range(3)
    ]  # fmt: skip
    plots.plot_sweeps(rows, tmp_path / "layers.svg")
    text = (tmp_path / "layers.svg").read_text()
    assert "chosen on held-out images" in text
    assert "95 %" in text
    assert "FillBetween" in text or "PolyCollection" in text


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures, as they would be saved."""
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def test_sweeps_stand_side_by_side_with_a_mark_for_every_block(drawn: list[Any]) -> None:
    rows = [
        {
            "dataset": name, "representation": "r", "layer": layer, "knn": None,
            "linear_probe": {"top1": 50.0 + layer, "interval": [48.0, 53.0], "held_out_top1": layer},
        }
        for name in "ab"
        for layer in range(3)
    ]  # fmt: skip
    plots.plot_sweeps(rows, "x.png")
    left, right = drawn[0].axes
    assert left.get_position().y0 == right.get_position().y0
    assert left.get_position().x1 < right.get_position().x0
    line = left.get_lines()[0]
    assert (line.get_marker(), line.get_ydata().tolist()) == ("o", [50, 51, 52])


@pytest.mark.parametrize(("most", "texts"), [(1, ["0.50", "1.00", "0.00", "0.25"]), (2, ["0", "1", "0", "0"])])
def test_a_matrix_names_its_rows_and_columns_and_writes_its_numbers(
    most: float, texts: list[str], drawn: list[Any]
) -> None:
    values = np.array([[0.5, 1], [0, 0.25]])
    plots.plot_matrix(values, ["r", "s"], ["t", "u"], "x.png", title="", labels=("", ""), span=(0, most))
    pane = drawn[0].axes[0]
    assert [each.get_text() for each in pane.get_yticklabels()] == ["r", "s"]
    assert [each.get_text() for each in pane.get_xticklabels()] == ["t", "u"]
    assert [each.get_text() for each in pane.texts] == texts


@pytest.mark.parametrize("count", [3, 10, 11, 40, 200])
def test_no_two_classes_have_the_same_color(count: int) -> None:
    colors = plots.class_colors(count)
    assert len(set(colors)) == count
    assert all(0 <= level <= 1 for color in colors for level in color)


@pytest.mark.parametrize(("rows", "drawn"), [(19, "a sample of 19 training images"), (20, "the training set")])
def test_a_protocol_says_what_its_penalty_was_chosen_on(rows: int, drawn: str) -> None:
    assert drawn in _logreg_words([0.1, 1.0], rows, 20)
    assert drawn not in _logreg_words([1.0], rows, 20)
