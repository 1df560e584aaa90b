"""`bigr-repr bench map`, `neighbors`, `confusion` and `cka`: pictures of features."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import options as o
from bigr_repr_cli.options import Device, Json
from bigr_repr_cli.progress import bench_progress

Method = StrEnum("Method", ["pca", "tsne", "umap"])
_Out = Annotated[Path, typer.Option(help="File to draw into: .png or .svg.")]


def map_command(
    out: _Out,
    method: Annotated[
        Method, typer.Option(help="How features become points in the plane; umap needs umap-learn.")
    ] = Method.tsne,
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    test_limit: o.TestSample = 2000,
    layer: o.SingleLayer = [],  # noqa: B006
    pool: o.Pool = o.Pooling.avg,
    codes: o.BitCodes = False,
    seed: o.Seed = 0,
    device: Device = "auto",
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
) -> None:
    """Draw the test images' features as points in the plane, colored by class."""
    o.check_picture(out, ".png", ".svg")
    layers = _layers(layer)
    from bigr_repr.evaluate.reports.drawings import draw_map

    settings = o.make_settings(
        seed=seed, pool=pool, codes=codes, device=device, cache=cache, batch_size=batch_size, workers=workers
    )
    data = o.open_sides(dataset, train_on, test_on, root, None, test_limit, seed)
    with bench_progress() as on_progress:
        draw_map(model, data, settings, out, layers=layers, method=str(method), on_progress=on_progress)
    typer.echo(f"map: {out}")


def neighbors(
    out: _Out,
    queries: Annotated[int, typer.Option(min=1, help="Test images to show, from every class in proportion.")] = 10,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Training images to show beside each.")] = 8,
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    limit: o.Limit = None,
    layer: o.SingleLayer = [],  # noqa: B006
    pool: o.Pool = o.Pooling.avg,
    codes: o.BitCodes = False,
    center: o.Center = False,
    seed: o.Seed = 0,
    device: Device = "auto",
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
) -> None:
    """Draw test images with the training images nearest to them; a green frame: of the same class."""
    o.check_picture(out, ".png")
    layers = _layers(layer)
    from bigr_repr.evaluate.reports.drawings import draw_neighbors

    settings = o.make_settings(
        seed=seed, pool=pool, codes=codes, center=center, device=device, cache=cache, batch_size=batch_size,
        workers=workers,
    )  # fmt: skip
    data = o.open_sides(dataset, train_on, test_on, root, limit, None, seed)
    with bench_progress() as on_progress:
        draw_neighbors(model, data, settings, out, layers=layers, queries=queries, k=k, on_progress=on_progress)
    typer.echo(f"neighbors: {out}")


def confusion(
    out: _Out,
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    limit: o.Limit = None,
    test_limit: o.TestLimit = None,
    layer: o.SingleLayer = [],  # noqa: B006
    pool: o.Pool = o.Pooling.avg,
    codes: o.BitCodes = False,
    protocol: o.Protocol = o.Probe.logreg,
    seed: o.Seed = 0,
    device: Device = "auto",
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    as_json: Json = False,
) -> None:
    """Draw which classes the linear probe takes for which."""
    o.check_picture(out, ".png", ".svg")
    layers = _layers(layer)
    from bigr_repr.evaluate.reports.drawings import draw_confusion

    settings = o.make_settings(
        protocol=protocol, seed=seed, pool=pool, codes=codes, device=device, cache=cache, batch_size=batch_size,
        workers=workers,
    )  # fmt: skip
    data = o.open_sides(dataset, train_on, test_on, root, limit, test_limit, seed)
    with bench_progress() as on_progress:
        worst = draw_confusion(model, data, settings, out, layers=layers, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps({"confusion": str(out), "mistakes": worst}, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join([*worst, f"confusion: {out}"]))


def cka(
    out: _Out,
    model: o.Model = None,
    other: Annotated[str | None, typer.Option(help=r"Model to compare with \[default: the model with itself].")] = None,
    dataset: o.Dataset = "",
    root: o.Root = Path("data"),
    test_limit: o.TestSample = 1000,
    pool: o.Pool = o.Pooling.avg,
    seed: o.Seed = 0,
    device: Device = "auto",
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    as_json: Json = False,
) -> None:
    """Draw how alike the blocks of a model, or of two, are: linear CKA on the test images, 1 for equal."""
    o.check_picture(out, ".png", ".svg")
    from bigr_repr.evaluate.reports.drawings import draw_cka

    settings = o.make_settings(seed=seed, pool=pool, device=device, cache=cache, batch_size=batch_size, workers=workers)
    data = o.open_sides(dataset, "", "", root, None, test_limit, seed)
    with bench_progress() as on_progress:
        values = draw_cka(model, other, data, settings, out, on_progress=on_progress)
    typer.echo(json.dumps({"cka": str(out), "values": values.tolist()}, indent=2) if as_json else f"CKA: {out}")


def _layers(values: list[str]) -> list[int | str]:
    """The one block that is named, if any."""
    block = o.single_layer(values)
    return [] if block is None else [block]
