"""`bigr-repr bench linear-probe`, `knn` and `layers`."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import options as o
from bigr_repr_cli.options import Device, Json
from bigr_repr_cli.parse import parse_layers
from bigr_repr_cli.progress import bench_progress

_NAMES = ("mid", "best")


def linear_probe(
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    limit: o.Limit = None,
    test_limit: o.TestLimit = None,
    layer: o.Layer = [],  # noqa: B006
    pool: o.Pool = o.Pooling.avg,
    codes: o.BitCodes = False,
    protocol: o.Protocol = o.Probe.logreg,
    seeds: o.Seeds = 1,
    seed: o.Seed = 0,
    device: Device = "auto",
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    as_json: Json = False,
) -> None:
    """Train a linear classifier on frozen features and test it.

    Whatever is chosen (rate, penalty) is chosen on a held-out part of the training images.
    """
    layers = parse_layers(layer, _NAMES) if layer else []
    from bigr_repr.evaluate.runs.bench import bench
    from bigr_repr_cli.bench.report import print_rows

    settings = o.make_settings(
        protocol=protocol, seeds=seeds, seed=seed, pool=pool, codes=codes, device=device, cache=cache,
        batch_size=batch_size, workers=workers,
    )  # fmt: skip
    data = o.open_sides(dataset, train_on, test_on, root, limit, test_limit, seed)
    with bench_progress() as on_progress:
        rows = bench(model, data, settings, layers=layers, neighbors=False, on_progress=on_progress)
    print_rows(rows, as_json=as_json)


def knn(
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    limit: o.Limit = None,
    test_limit: o.TestLimit = None,
    layer: o.Layer = [],  # noqa: B006
    pool: o.Pool = o.Pooling.avg,
    codes: o.BitCodes = False,
    k: o.Neighbors = "10,20,100,200",
    center: o.Center = False,
    seed: o.Seed = 0,
    device: Device = "auto",
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    as_json: Json = False,
) -> None:
    """Classify test images by their nearest training images: cosine, or Hamming distance with --codes.

    Votes are weighted exp(similarity / 0.07), as in DINO.
    """
    layers = parse_layers(layer, _NAMES) if layer else []
    from bigr_repr.evaluate.runs.bench import bench
    from bigr_repr_cli.bench.report import print_rows

    settings = o.make_settings(
        k=k, center=center, seed=seed, pool=pool, codes=codes, device=device, cache=cache, batch_size=batch_size,
        workers=workers,
    )  # fmt: skip
    data = o.open_sides(dataset, train_on, test_on, root, limit, test_limit, seed)
    with bench_progress() as on_progress:
        rows = bench(model, data, settings, layers=layers, probe=False, on_progress=on_progress)
    print_rows(rows, as_json=as_json)


def layers(
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    limit: o.Limit = None,
    test_limit: o.TestLimit = None,
    pool: o.Pool = o.Pooling.avg,
    protocol: o.Protocol = o.Probe.logreg,
    seeds: o.Seeds = 1,
    seed: o.Seed = 0,
    k: o.Neighbors = "10,20,100,200",
    center: o.Center = False,
    device: Device = "auto",
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw accuracy by layer into this .png or .svg file.")] = None,
    as_json: Json = False,
) -> None:
    """Probe every block, after one pass over the images; the best one may then be named: --layer best."""
    if plot is not None:
        o.check_picture(plot, ".png", ".svg", option="--plot")
    from bigr_repr.evaluate.reports.plots import plot_layers
    from bigr_repr.evaluate.runs.bench import bench, best_row
    from bigr_repr_cli.bench.report import print_rows

    settings = o.make_settings(
        protocol=protocol, seeds=seeds, seed=seed, k=k, center=center, pool=pool, device=device, cache=cache,
        batch_size=batch_size, workers=workers,
    )  # fmt: skip
    data = o.open_sides(dataset, train_on, test_on, root, limit, test_limit, seed)
    with bench_progress() as on_progress:
        rows = bench(model, data, settings, layers=None, on_progress=on_progress)
    if plot is not None:
        plot_layers(rows, plot)
    print_rows(rows, as_json=as_json, best=best_row(rows))
