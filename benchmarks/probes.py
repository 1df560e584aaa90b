"""Speed of probes and neighbor search compared with scikit-learn, on the same features and to the same accuracy.

    python benchmarks/probes.py                  # 50 000 x 256 features, 10 and 200 classes: about an hour on 2 cores
    python benchmarks/probes.py --iterations 500 # the same with fewer steps of dinov2, which then stops too early
    python benchmarks/probes.py --limit 2000     # a quick trial, under a minute

Data: Gaussian classes whose variance along the i-th principal axis falls as i^-3, as measured for bigr-tiny's hidden
states on CIFAR-10. The test set has a fifth as many rows.

Probes: a grid is 13 values of C along one path, each fit starting from the last. scikit-learn gets the same warm starts
(warm_start) and float64, and is timed at its default tolerance, where it stops earlier than ours; `loss` shows how
close to the optimum each came. Both fit one layer at a time, so the ratio for one layer holds for any number. `dinov2`
is the time of DINOv2's 13 learning rates on four layers together.

Neighbors: 20 by cosine. scikit-learn's brute force is timed with its cosine metric, and with the Euclidean distance of
normalized rows, which has the same neighbors.

Writes benchmarks/results/probes.json. Expected: grids at least 5 times and neighbors at least 3 times as fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import record
import torch

from bigr_repr.evaluate.probes.knn import nearest
from bigr_repr.evaluate.probes.linear_probe import linear_probes
from bigr_repr.evaluate.probes.logistic_fit import LogisticRegression
from bigr_repr.evaluate.probes.protocols import sgd_protocol

GRID = tuple(float(f"{value:.2g}") for value in np.logspace(-4, 2, 13))
K = 20


def features(rows: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Standardized training and test features, float32, with labels."""
    rng = np.random.default_rng(seed)
    total = rows + rows // 5
    y = rng.integers(classes, size=total)
    centers = rng.normal(size=(classes, width)) * 0.25
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0]
    x = ((centers[y] + rng.normal(size=(total, width))) * np.arange(1, width + 1) ** -1.5) @ axes
    x = (x - x[:rows].mean(axis=0)) / x[:rows].std(axis=0)
    x = x.astype(np.float32)
    return x[:rows], y[:rows], x[rows:], y[rows:]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list whose one entry ends up as the peak memory beyond that at the start, in megabytes."""
    process, found, done = psutil.Process(), [0.0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.01):
            found[0] = max(found[0], (process.memory_info().rss - before) / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def loss_of(weight: Any, bias: Any, c: float, x: np.ndarray, y: np.ndarray) -> float:
    """The objective that both minimize, in nats: mean cross-entropy + ||W||^2 / (2 C n)."""
    point = torch.from_numpy(np.asarray(weight, np.float64)), torch.from_numpy(np.asarray(bias, np.float64))
    logits = torch.addmm(point[1], torch.from_numpy(x).double(), point[0])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    return float(loss + point[0].square().sum() / (2 * c * len(x)))


Path13 = list[tuple[Any, Any]]


def ours(x: np.ndarray, y: np.ndarray, classes: int) -> Path13:
    """Weights (D, K) and biases for every C of the grid."""
    problem, fit, found = LogisticRegression(torch.from_numpy(x), torch.from_numpy(y), classes), None, []
    for c in GRID:
        fit = problem.fit(c, fit)
        found.append((fit.weight.numpy(), fit.bias.numpy()))
    return found


def theirs(x: np.ndarray, y: np.ndarray) -> Path13:
    """As `ours`, by scikit-learn."""
    from sklearn.linear_model import LogisticRegression as Reference

    model, found = Reference(max_iter=2000, warm_start=True), []
    for c in GRID:
        model.set_params(C=c).fit(x, y)
        found.append((model.coef_.T.copy(), model.intercept_.copy()))
    return found


def grids(rows: int, width: int, classes: int, iterations: int) -> dict[str, Any]:
    """Time both grids on one layer, and DINOv2's protocol of 13 rates on four layers together."""
    x, y, test, test_y = features(rows, width, classes, 0)
    doubles = x.astype(np.float64)
    seconds, paths = zip(
        *(timed(call) for call in (lambda: ours(x, y, classes), lambda: theirs(doubles, y))), strict=True
    )
    sides: list[dict[str, Any]] = []
    for path in paths:
        top1 = [100 * float(np.mean((test @ w + b).argmax(axis=1) == test_y)) for w, b in path]
        losses = [loss_of(w, b, c, x, y) for c, (w, b) in zip(GRID, path, strict=True)]
        sides.append({"top1": [round(each, 2) for each in top1], "loss": [round(each, 6) for each in losses]})
    layers, tests = ({number: side[:, ::-1] if number % 2 else side for number in range(4)} for side in (x, test))
    protocol = dataclasses.replace(sgd_protocol("dinov2"), batch=128, iterations=max(100, iterations * rows // 50_000))
    many, found = timed(lambda: linear_probes(layers, y, tests, test_y, protocol=protocol))
    return {
        "rows": rows, "width": width, "classes": classes, "grid": GRID,
        "seconds": round(seconds[0], 2), "scikit_learn_seconds": round(seconds[1], 2),
        "ratio": round(seconds[1] / seconds[0], 2), **sides[0],
        **{f"scikit_learn_{key}": value for key, value in sides[1].items()},
        "dinov2": {
            "layers": 4, "rates": 13, "iterations": protocol.iterations, "seconds": round(many, 2),
            "top1": round(found[0].top1, 2),
        },
    }  # fmt: skip


def neighbors(rows: int, width: int) -> dict[str, Any]:
    """Time the search for 20 nearest neighbors, with a fifth as many queries as rows."""
    from sklearn.neighbors import NearestNeighbors

    x, _, queries, _ = features(rows, width, 10, 1)
    nearest(queries[:64], x[:1000], K)  # triggers lazy imports
    with peak_memory() as ours_peak:
        seconds, found = timed(lambda: nearest(queries, x, K))
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, queries)]
    results: dict[str, Any] = {"rows": rows, "queries": len(queries), "width": width, "k": K}
    results |= {"seconds": round(seconds, 2), "extra_memory_mb": round(ours_peak[0])}
    for name, metric, base, asked in (("cosine", "cosine", x, queries), ("euclidean", "euclidean", *unit)):
        brute = NearestNeighbors(n_neighbors=K, algorithm="brute", metric=metric).fit(base)
        with peak_memory() as their_peak:
            their_seconds, their_rows = timed(lambda brute=brute, asked=asked: brute.kneighbors(asked)[1])
        same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(found.rows, their_rows, strict=True)]) / K
        results[f"scikit_learn_{name}"] = {
            "seconds": round(their_seconds, 2), "ratio": round(their_seconds / seconds, 2),
            "extra_memory_mb": round(their_peak[0]), "shared_neighbours": round(float(same), 5),
        }  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=50_000, help="training rows")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=12_500, help="dinov2 steps for 50 000 rows; fewer for less")
    parser.add_argument("--threads", type=int, help="torch threads; default: one per core")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="sklearn")  # its failure to converge shows in the accuracies
    results = {
        "neighbours": neighbors(options.limit, options.width),
        "grids": [grids(options.limit, options.width, classes, options.iterations) for classes in (10, 200)],
    }
    record.write("probes", results)


if __name__ == "__main__":
    main()
