"""Laws of evaluation: the probe finds scikit-learn's optimum, neighbors are brute force's, no test set chooses."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bigr_repr.codes import hamming, to_bytes
from bigr_repr.datasets import stratified_split
from bigr_repr.evaluate.data.stratified import stratified_sample
from bigr_repr.evaluate.probes.knn import knn, nearest
from bigr_repr.evaluate.probes.linear_probe import linear_probe
from bigr_repr.evaluate.probes.logistic_fit import LogisticRegression
from bigr_repr.evaluate.probes.scaling import scaling_of

Array = NDArray[Any]
Split = tuple[Array, Array, Array, Array]

GRID = [1e-4, 1e-3, 1e-2, 1e-1]


@pytest.fixture(scope="module")
def digits() -> Split:
    """Every third digit for testing; pixel columns as they are, some of them constant."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    test = np.arange(len(x)) % 3 == 0
    return x[~test].astype(np.float32), y[~test], x[test].astype(np.float32), y[test]


@pytest.fixture
def blobs() -> Split:
    """Four overlapping classes in 12 correlated dimensions."""
    rng = np.random.default_rng(0)
    mixing, centers = rng.normal(size=(12, 12)), 0.7 * rng.normal(size=(4, 12))
    y = np.arange(500) % 4
    x = ((centers[y] + rng.normal(size=(500, 12))) @ mixing).astype(np.float32)
    return x[:400], y[:400], x[400:], y[400:]


# ---- logistic regression


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_logistic_regression_is_scikit_learns(digits: Split, c: float) -> None:
    from sklearn.linear_model import LogisticRegression as Reference
    from sklearn.preprocessing import StandardScaler

    train, labels, test, test_labels = digits
    scaler = StandardScaler().fit(train.astype(np.float64))  # in float32, scikit-learn stops short of the optimum
    x, x_test = scaler.transform(train.astype(np.float64)), scaler.transform(test.astype(np.float64))
    theirs = Reference(C=c, tol=1e-7, max_iter=1000).fit(x, labels).predict(x_test)
    fit = LogisticRegression(torch.from_numpy(x).float(), torch.from_numpy(labels), 10).fit(c, tolerance=1e-9)
    assert np.array_equal(fit.logits(torch.from_numpy(x_test).float()).argmax(dim=1), theirs)
    probe = linear_probe(train, labels, test, test_labels, grid=[c])
    assert probe.top1 == pytest.approx(100 * np.mean(theirs == test_labels), abs=0.1)


def test_fit_reaches_the_optimum_from_anywhere(blobs: Split) -> None:
    x, y, _, _ = blobs
    data = torch.from_numpy(x).double()
    problem = LogisticRegression(data, torch.from_numpy(y), 4)  # columns neither centered nor of equal size
    cold, other = problem.fit(0.1, tolerance=1e-10), problem.fit(10.0)
    warm = problem.fit(0.1, other, tolerance=1e-10)
    torch.testing.assert_close(warm.weight, cold.weight, atol=1e-4, rtol=0)
    weight, bias = cold.weight.clone().requires_grad_(), cold.bias.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(data @ weight + bias, torch.from_numpy(y))
    loss = loss + weight.square().sum() / (2 * 0.1 * len(x))
    assert loss.item() == pytest.approx(cold.loss)
    assert all(gradient.abs().max() < 1e-4 for gradient in torch.autograd.grad(loss, [weight, bias]))


def test_fit_stands_more_columns_than_rows_and_repeated_columns() -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(np.tile(rng.normal(size=(20, 30)), 2).astype(np.float32))
    fit = LogisticRegression(x, torch.arange(20) % 3, 3).fit(1e3)
    assert fit.logits(x).argmax(dim=1).tolist() == [i % 3 for i in range(20)]


# ---- the probe's protocol


def _figures(found: object) -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if name != "predicted"}


def test_test_set_chooses_nothing(digits: Split) -> None:
    train, labels, test, test_labels = digits
    first = linear_probe(train, labels, test, test_labels, grid=GRID)
    rng = np.random.default_rng(0)
    other = linear_probe(train, labels, test, rng.permutation(test_labels), grid=GRID)
    assert (first.settings, first.held_out_top1) == (other.settings, other.held_out_top1)
    assert first.top1 > 94
    assert other.top1 < 20
    assert first.top5 >= first.top1


def test_search_on_a_sample_is_stated_and_reproducible(digits: Split) -> None:
    train, labels, test, test_labels = digits
    probes = [
        linear_probe(train, labels, test, test_labels, grid=GRID, search_rows=400, seeds=(seed,)) for seed in (3, 3, 4)
    ]
    assert _figures(probes[0]) == _figures(probes[1])
    assert probes[2].held_out_top1 != probes[0].held_out_top1
    assert "a sample of 400 training images" in probes[0].protocol
    assert f"refitted on all {len(train)}" in probes[0].protocol
    assert probes[0].seeds == (3,)


def test_scale_shift_and_names_of_classes_change_nothing(digits: Split) -> None:
    train, labels, test, test_labels = digits
    plain = linear_probe(train, labels, test, test_labels, grid=[0.01])
    names = np.array([7, -3, 100, 5, 40, 41, 2, 1000, 9, 12])
    moved = linear_probe(train * 1e3 + 50, names[labels], test * 1e3 + 50, names[test_labels], grid=[0.01])
    assert _figures(plain) == _figures(moved)
    assert np.array_equal(names[plain.predicted], moved.predicted)


def test_bits_and_few_classes_are_welcome() -> None:
    rng = np.random.default_rng(0)
    bits = rng.random((60, 16)) < 0.5
    probe = linear_probe(bits[:40], bits[:40, 3].astype(int), bits[40:], bits[40:, 3].astype(int))
    assert probe.top1 >= 95
    assert (probe.top5, probe.n_classes) == (100, 2)


def test_split_takes_from_every_class_and_leaves_some() -> None:
    labels = np.repeat([0, 1, 2, 9], [50, 10, 2, 1])
    kept, drawn = stratified_split(labels, 0.2, np.random.default_rng(0))
    assert np.array_equal(np.sort(np.concatenate([kept, drawn])), np.arange(63))
    assert np.bincount(labels[drawn], minlength=10).tolist() == [10, 2, 1, 0, 0, 0, 0, 0, 0, 0]


# ---- nearest neighbors


def _brute_force(similarity: Array, labels: Array, k: int, classes: int) -> Array:
    """Votes (q, K) of each query's k nearest, written the slow way."""
    votes = np.zeros((len(similarity), classes))
    for query, row in enumerate(similarity):
        for neighbor in np.argsort(-row, kind="stable")[:k]:
            votes[query, labels[neighbor]] += np.exp(row[neighbor] / 0.07)
    return votes


@pytest.fixture(params=[1 << 30, 40_000], ids=["one block", "many blocks"])
def _memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("bigr_repr.evaluate.probes.knn"), "_MEMORY", request.param)


@pytest.mark.usefixtures("_memory")
def test_cosine_knn_is_brute_force(digits: Split) -> None:
    train, labels, test, test_labels = digits
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (test, train)]
    found = knn(train, labels, test, test_labels, k=[1, 5, 50])
    assert found.protocol.startswith("k nearest neighbors by cosine of L2-normalized features, votes weighted")
    for k in (1, 5, 50):
        votes = _brute_force((unit[0] @ unit[1].T).astype(np.float64), labels, k, 10)
        assert found.top1[k] == pytest.approx(100 * np.mean(votes.argmax(axis=1) == test_labels))
        order = np.argsort(-votes, axis=1, kind="stable")[:, :5]
        hit = (order == test_labels[:, None]) & (np.take_along_axis(votes, order, axis=1) > 0)
        assert found.top5[k] == pytest.approx(100 * np.mean(hit.any(axis=1)))


@pytest.mark.usefixtures("_memory")
def test_hamming_neighbors_are_brute_force_with_ties_by_row() -> None:
    rng = np.random.default_rng(0)
    base, queries = (to_bytes(rng.random((n, 21)) < 0.5) for n in (300, 40))
    distances = hamming(queries[:, None], base)
    found = nearest(queries, base, 30, metric="hamming", n_bits=21)
    order = np.argsort(distances, axis=1, kind="stable")[:, :30]
    assert np.array_equal(found.rows, order)
    expected = 1 - 2 * np.take_along_axis(distances, order, axis=1) / 21
    np.testing.assert_allclose(found.similarities, expected, atol=1e-6)
    labels, test_labels = np.arange(300) % 7, np.arange(40) % 7
    result = knn(base, labels, queries, test_labels, k=[10], metric="hamming", n_bits=21)
    assert result.protocol.startswith("k nearest neighbors by Hamming distance of 21 bits, votes weighted")
    votes = _brute_force(1 - 2 * distances / 21, labels, 10, 7)
    assert result.top1[10] == pytest.approx(100 * np.mean(votes.argmax(axis=1) == test_labels))


def test_neighbor_of_a_row_is_itself_and_all_rows_can_be_asked_for(blobs: Split) -> None:
    x = blobs[0]
    found = nearest(x, x, len(x))
    assert np.array_equal(found.rows[:, 0], np.arange(len(x)))
    assert np.array_equal(np.sort(found.rows, axis=1), np.tile(np.arange(len(x)), (len(x), 1)))


# ---- bad input


def _message(blobs: Split, evaluate: Any, **changes: Any) -> str:
    names = ("train_features", "train_labels", "test_features", "test_labels")
    given = dict(zip(names, blobs, strict=True)) | {k: v for k, v in changes.items() if k in names}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (each caller looks at the words)
        evaluate(*given.values(), **{k: v for k, v in changes.items() if k not in names})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("evaluate", [linear_probe, knn])
def test_features_and_labels_must_fit(blobs: Split, evaluate: Any) -> None:
    train, labels, test, test_labels = blobs
    spoilt = train.copy()
    spoilt[17, 3] = np.nan
    spoilt[20, 0] = np.inf
    assert "2 of 400 rows are not finite (the first is row 17)" in _message(blobs, evaluate, train_features=spoilt)
    assert "400 rows of features but 399 labels" in _message(blobs, evaluate, train_labels=labels[1:])
    assert "12 columns" in _message(blobs, evaluate, test_features=test[:, 1:])
    assert "one class (0)" in _message(blobs, evaluate, train_labels=labels * 0)
    assert "2 classes without any image in train (77, 78)" in _message(
        blobs, evaluate, test_labels=np.where(test_labels < 2, test_labels, test_labels + 75)
    )
    assert "no labels" in _message(blobs, evaluate, train_labels=None)
    assert "shape (0, 12)" in _message(blobs, evaluate, test_features=test[:0], test_labels=test_labels[:0])


def test_settings_must_fit(blobs: Split) -> None:
    _, labels, _, _ = blobs
    assert "k=401 is outside 1..400" in _message(blobs, knn, k=[10, 401])
    assert "k=0 is outside" in _message(blobs, knn, k=[0])
    assert "cosine, hamming" in _message(blobs, knn, metric="euclidean")
    assert "needs n_bits" in _message(blobs, knn, metric="hamming")
    assert "temperature=0" in _message(blobs, knn, temperature=0)
    assert "center=True is for metric='cosine', not 'hamming'" in _message(
        blobs, knn, metric="hamming", n_bits=12, center=True
    )
    assert "above 0" in _message(blobs, linear_probe, grid=[0.0, 1.0])
    alone = np.arange(len(labels))
    assert "too few to hold any out" in _message(blobs, linear_probe, train_labels=alone)


# ---- memory


_PEAK = r"""
import pathlib, re, sys
import numpy as np, psutil
from bigr_repr.evaluate.probes.knn import knn
rows, queries, width, classes, metric = sys.argv[1:]
rng = np.random.default_rng(0)
kind = np.uint8 if metric == "hamming" else np.float32
sides = [rng.integers(0, 256, (int(n), int(width)), np.uint8).astype(kind) for n in (rows, queries)]
labels = [np.arange(len(side)) % int(classes) for side in sides]
n_bits = 8 * int(width) if metric == "hamming" else None
knn(sides[0][:4], [0, 1, 2, 3], sides[1][:4], [0, 1, 2, 3], k=[1], metric=metric, n_bits=n_bits)
before = psutil.Process().memory_info().rss
knn(sides[0], labels[0], sides[1], labels[1], k=[20], metric=metric, n_bits=n_bits)
peak = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]  # rusage has the parent's too
print(int(peak) * 1024 - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is in /proc")
@pytest.mark.parametrize(
    "case",
    [
        (40_000, 8000, 16, 10, "cosine"),  # all similarities at once would be 1.3 GB
        (40_000, 50, 1024, 1000, "hamming"),  # all bits as floats would be 1.3 GB
    ],
)
@pytest.mark.slow
def test_neighbors_take_bounded_memory(case: tuple[object, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", _PEAK, *map(str, case)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500e6


def test_centered_neighbors_are_those_of_centered_rows(digits: Split) -> None:
    train, labels, test, test_labels = digits
    mean = train.mean(axis=0)
    expected = knn(train - mean, labels, test - mean, test_labels, k=[10])
    found = knn(train, labels, test, test_labels, k=[10], center=True)
    assert found.top1 == expected.top1
    low, high = found.interval[10]
    assert low <= found.top1[10] <= high
    assert 100 * np.mean(found.predicted[10] == test_labels) == pytest.approx(found.top1[10])


def test_intervals_hold_what_they_promise() -> None:
    from bigr_repr.evaluate.metrics.interval import bootstrap, over_seeds

    rng = np.random.default_rng(0)
    held = [low <= 70 <= high for low, high in (bootstrap(rng.random(300) < 0.7) for _ in range(200))]
    assert 0.9 <= np.mean(held) <= 0.99
    assert bootstrap(np.ones(10, bool)) == (100, 100)
    low, high = bootstrap(np.arange(1000) % 2)
    assert (low, high) == pytest.approx((50 - 1.96 * 1.581, 50 + 1.96 * 1.581), abs=0.2)  # normal, at so many images
    assert over_seeds([50.0]) is None
    assert over_seeds([98.0, 100.0]) == pytest.approx((99 - 12.706, 100), abs=0.01)
    assert over_seeds([50.0, 52.0]) == pytest.approx((51 - 12.706, 51 + 12.706), abs=0.01)


def test_samples_are_of_the_size_asked_for_and_hold_every_class() -> None:
    labels = np.repeat([0, 1, 2, 9], [500, 100, 3, 1])
    for size in (4, 5, 50, 603):
        rows = stratified_sample(labels, size, np.random.default_rng(0))
        assert len(rows) == len(set(rows.tolist())) == size
        assert set(labels[rows]) == {0, 1, 2, 9}
    counts = np.bincount(labels[stratified_sample(labels, 61, np.random.default_rng(0))])
    assert counts[:3].tolist() == [49, 10, 1]
    with pytest.raises(ValueError, match="4 classes"):
        stratified_sample(labels, 3, np.random.default_rng(0))
    many = np.repeat(np.arange(40), 3)  # half a row over for every class: the first ones get it
    counts = np.bincount(many[stratified_sample(many, 60, np.random.default_rng(0))])
    assert counts.tolist() == [2] * 20 + [1] * 20


def test_many_rows_in_half_precision_are_scaled_as_in_double() -> None:
    features = (np.random.default_rng(0).normal(size=(2000, 3)) * [1, 5, 20] + 100).astype(np.float16)
    mean, deviation = scaling_of(features)  # the sums are far above what half precision holds
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(deviation, features.astype(np.float64).std(axis=0))


# ---- what is refused


@pytest.mark.parametrize("grid", [(), (1.0, 0.0), (-1.0,)])
def test_a_probe_needs_penalties_above_zero(digits: Split, grid: tuple[float, ...]) -> None:
    train, labels, test, test_labels = digits
    with pytest.raises(ValueError, match="must hold at least one C, each above 0"):
        linear_probe(train[:40], labels[:40], test[:9], test_labels[:9], grid=grid)


def test_codes_of_another_length_are_not_compared() -> None:
    codes, labels = np.zeros((4, 3), np.uint8), [0, 1, 0, 1]
    for n_bits in (16, 25):
        with pytest.raises(ValueError, match=f"n_bits={n_bits} takes . bytes per code; these codes have 3"):
            knn(codes, labels, codes, labels, k=[1], metric="hamming", n_bits=n_bits)
