"""Benchmarks at the ends of their ranges: hardly any penalty, odd numbers, names and files give figures or messages."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from bigr_repr_cli.bench.options import NetworkOptions, TokenBlocks, parse_rates

from bigr_repr.evaluate.data.feature_files import open_features
from bigr_repr.evaluate.data.labeled import check_finite
from bigr_repr.evaluate.data.multi_labels import read_multi_labels
from bigr_repr.evaluate.metrics.clustering import structure
from bigr_repr.evaluate.probes.logistic_fit import LogisticRegression
from bigr_repr.evaluate.probes.scaling import scaling_of, standardize
from bigr_repr.evaluate.probes.segment import segment_probe
from bigr_repr.evaluate.reports.plots import plot_map
from bigr_repr.evaluate.runs.finetune import FineTuning, _Tuner
from bigr_repr.evaluate.runs.settings import BenchSettings
from bigr_repr.evaluate.runs.stored import _native
from bigr_repr.evaluate.runs.suite import Suite, SuiteData, SuiteModel, read_suite
from bigr_repr.features.pools import pool_tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize(("shots", "width", "c"), [(5, 384, 1e5), (1, 200, 1e6), (30, 64, 1e5)])
def test_hardly_any_penalty_gives_scikit_learns_classifier(shots: int, width: int, c: float) -> None:
    from sklearn.linear_model import LogisticRegression as Reference

    rng = np.random.default_rng(1)
    centers, y = rng.normal(size=(10, width)) * 0.25, np.arange(10 * shots) % 10
    train, test = (centers[labels] + rng.normal(size=(len(labels), width)) for labels in (y, np.arange(300) % 10))
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    x, z = (((side - mean) / deviation).astype(np.float32) for side in (train, test))
    fit = LogisticRegression(torch.from_numpy(x), torch.from_numpy(y), 10).fit(c)
    theirs = Reference(C=c, tol=1e-8, max_iter=5000).fit(x.astype(np.float64), y).predict(z)
    assert fit.converged
    assert fit.gap >= 0
    assert np.mean(fit.logits(torch.from_numpy(z)).argmax(dim=1).numpy() == theirs) > 0.95


def test_a_fit_without_an_optimum_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("bigr_repr.evaluate.probes.logistic_fit._PASSES", 2)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        fit = LogisticRegression(x, torch.arange(40) % 3, 3).fit(1.0, tolerance=1e-9)
    assert not fit.converged
    assert "C=1: no optimum" in caplog.text


def test_a_column_that_hardly_varied_in_training_is_named() -> None:
    train, test = np.zeros((4, 3)), np.ones((2, 3))
    train[:, 1], test[:, 1] = [0, 1e-20, 0, 1e-20], 1e20
    with np.errstate(all="raise"), pytest.raises(ValueError, match="column 1 has numbers beyond float32"):
        standardize(test, scaling_of(train), CPU)


def test_test_masks_without_a_class_give_no_figure() -> None:
    tokens, masks = np.random.default_rng(0).normal(size=(2, 4, 3)), np.zeros((2, 4, 4), np.uint8)
    masks[:, 2:] = 1
    with pytest.raises(ValueError, match="no pixel of the 2 test masks has a class"):
        segment_probe(tokens, masks, tokens, np.full_like(masks, 255), grid=[1.0], device="cpu")


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), 0.0])
def test_fine_tuning_takes_a_finite_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="rate="):
        FineTuning(rate=rate)


def test_a_network_destroyed_in_its_last_step_is_not_ranked() -> None:
    tuner: Any = object.__new__(_Tuner)
    tuner._given, tuner._loader = FineTuning(rate=9.0), lambda part, epoch: None
    tuner._batches = lambda part, order, load: [(order, [])]
    tuner._head, tuner._network = torch.nn.Identity(), SimpleNamespace(forward=lambda batch: torch.full((2, 3), np.nan))
    with pytest.raises(ValueError, match="not finite; use a smaller rate than 9"):
        tuner.ranked([0, 1])


# ---- numbers and names of options and suites


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"seeds": (-1,)}, "seeds=-1"),
        ({"seeds": (2**31,)}, "must lie in 0..2147483647"),
        ({"C": (1.0, float("nan"))}, "C=nan must lie in 1e-30..1e\\+38"),
        ({"C": (1e-300,)}, "C=1e-300"),
        ({"C": (0.0,)}, "^C=0.0 must"),
        ({"protocol": "mae", "rates": (float("inf"),)}, "^rates=inf"),
        ({"protocol": "mae", "batch": 0}, "^batch=0 must be at least 1"),
        ({"temperature": float("inf")}, "temperature=inf"),
    ],
)
def test_settings_out_of_range_are_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BenchSettings(**given)


@pytest.mark.parametrize("text", ["1e-300", "inf", "nan", "1,1e39", "0"])
def test_rates_and_penalties_are_what_float32_holds(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"1e-30\.\.1e38"):
        parse_rates(text, "--C")


@pytest.mark.parametrize("kind", [NetworkOptions, TokenBlocks])
def test_an_empty_name_is_not_the_default_model(kind: type) -> None:
    with pytest.raises(typer.BadParameter, match="the name is empty"):
        kind(model="", read_with=None)


@pytest.mark.parametrize(
    "line",
    ["seed: -1", "seeds: 100000000000", "temperature: .inf", "C: [1, .nan]", "batch: 0", "name: ''", "name: '..'",
     r'name: "a\0b"', f"name: {'x' * 300}", "{train_on: a}"],
)  # fmt: skip
def test_a_suite_out_of_range_is_refused_with_its_file(tmp_path: Path, line: str) -> None:
    file = tmp_path / "plan.yaml"
    data = line if line.startswith("{") else "digits"
    file.write_text(f"datasets: [{data}]\nmodels: [pixels]\n{'' if data == line else line}\n")
    with pytest.raises(ValueError, match=r"plan\.yaml is not a suite") as caught:
        read_suite(file)
    assert "None" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(file))


def test_names_in_reports_are_one_line() -> None:
    models = SuiteModel(model="pixels", name="a\nb"), SuiteModel(model="random", name="c\t d")
    plan = Suite(name="x", datasets=(SuiteData(dataset="digits", name="e\n|f"),), models=models)
    assert [*(each.label for each in plan.models), plan.datasets[0].label] == ["a b", "c d", "e |f"]


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_clusters_take_seeds_that_all_generators_take(seed: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        structure(np.eye(4), [0, 0, 1, 1], seed=seed)


# ---- files


def test_a_bad_row_has_its_number_in_the_file() -> None:
    x = np.ones((3, 2))
    x[1:, 0] = np.nan
    with pytest.raises(ValueError, match=r"clip\.npz features: 2 of 3 rows are not finite \(the first is row 9\)"):
        check_finite("clip.npz", x, np.array([5, 70, 9]))


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
def test_features_of_any_byte_order_and_precision_are_read(dtype: Any) -> None:
    found = _native(np.arange(6).astype(dtype).reshape(3, 2))
    assert torch.from_numpy(found).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_features_without_numbers_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", features=np.zeros((4, 0, 3), np.float32), label=np.arange(4))
    with pytest.raises(ValueError, match="holds no features"):
        open_features(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="no tokens"):
        pool_tokens(torch.zeros(4, 0, 3), "max")


def test_labels_that_name_no_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"none\.txt names no class"):
        read_multi_labels((tmp_path / "none.txt", tmp_path / "none.txt"))


def test_letters_that_a_font_lacks_give_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        plot_map(np.eye(2), np.arange(2), ["日本", "dog"], "日", tmp_path / "map.png")
    assert [each.getMessage() for each in caplog.records if "font" in each.getMessage()] == [
        "plots show boxes in place of 日 本, which their font lacks"
    ]
