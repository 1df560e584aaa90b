"""`bigr-repr bench map`, `neighbours`, `confusion` and `cka`: pictures of features."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import options as o
from bigr_repr_cli.parse import parse_layers
from bigr_repr_cli.progress import bench_progress

_NAMES = ("mid", "best")
_Out = Annotated[Path, typer.Option(help="The picture: a .png or .svg file.")]


def map_command(
    out: _Out,
    method: Annotated[str, typer.Option(help="pca, tsne, or umap where umap-learn is installed.")] = "tsne",
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    test_limit: o.TestLimit = 2000,
    layer: o.Layer = [],  # noqa: B006
    pool: o.Pool = "avg",
    codes: o.Codes = False,
    seed: o.Seed = 0,
    device: o.Device = None,
    cache: o.Cache = None,
) -> None:
    """Draw the test images' features as points in the plane, coloured by class."""
    o.check_picture(out, ".png", ".svg")
    layers = parse_layers(layer, _NAMES) if layer else []
    from bigr_repr.evaluate.drawings import draw_map

    settings = o.make_settings(seed=seed, pool=pool, codes=codes, device=device, cache=cache)
    data = o.open_sides(dataset, train_on, test_on, root, None, test_limit, seed)
    with bench_progress() as on_progress:
        draw_map(model, data, settings, out, layers=layers, method=method, on_progress=on_progress)
    typer.echo(f"map: {out}")


def neighbours(
    out: _Out,
    queries: Annotated[int, typer.Option(min=1, help="Test images, drawn from the classes in proportion.")] = 10,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Training images beside each.")] = 8,
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    limit: o.Limit = None,
    layer: o.Layer = [],  # noqa: B006
    pool: o.Pool = "avg",
    codes: o.Codes = False,
    center: o.Center = False,
    seed: o.Seed = 0,
    device: o.Device = None,
    cache: o.Cache = None,
) -> None:
    """Draw test images with the training images nearest to them; a green frame: of the same class."""
    o.check_picture(out, ".png")
    layers = parse_layers(layer, _NAMES) if layer else []
    from bigr_repr.evaluate.drawings import draw_neighbors

    settings = o.make_settings(seed=seed, pool=pool, codes=codes, center=center, device=device, cache=cache)
    data = o.open_sides(dataset, train_on, test_on, root, limit, None, seed)
    with bench_progress() as on_progress:
        draw_neighbors(model, data, settings, out, layers=layers, queries=queries, k=k, on_progress=on_progress)
    typer.echo(f"neighbours: {out}")


def confusion(
    out: _Out,
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    limit: o.Limit = None,
    test_limit: o.TestLimit = None,
    layer: o.Layer = [],  # noqa: B006
    pool: o.Pool = "avg",
    codes: o.Codes = False,
    protocol: o.Protocol = "logreg",
    seed: o.Seed = 0,
    device: o.Device = None,
    cache: o.Cache = None,
) -> None:
    """Draw which classes the linear probe takes for which."""
    o.check_picture(out, ".png", ".svg")
    layers = parse_layers(layer, _NAMES) if layer else []
    from bigr_repr.evaluate.drawings import draw_confusion

    settings = o.make_settings(protocol=protocol, seed=seed, pool=pool, codes=codes, device=device, cache=cache)
    data = o.open_sides(dataset, train_on, test_on, root, limit, test_limit, seed)
    with bench_progress() as on_progress:
        worst = draw_confusion(model, data, settings, out, layers=layers, on_progress=on_progress)
    typer.echo("\n".join([*worst, f"confusion: {out}"]))


def cka(
    out: _Out,
    model: o.Model = None,
    other: Annotated[str | None, typer.Option(help="Compare with this model's blocks, instead of its own.")] = None,
    dataset: o.Dataset = "",
    root: o.Root = Path("data"),
    test_limit: o.TestLimit = 1000,
    pool: o.Pool = "avg",
    seed: o.Seed = 0,
    device: o.Device = None,
    cache: o.Cache = None,
) -> None:
    """Draw how alike the blocks of a model, or of two, are: linear CKA on the test images, 1 for equal."""
    o.check_picture(out, ".png", ".svg")
    from bigr_repr.evaluate.drawings import draw_cka

    settings = o.make_settings(seed=seed, pool=pool, device=device, cache=cache)
    data = o.open_sides(dataset, "", "", root, None, test_limit, seed)
    with bench_progress() as on_progress:
        draw_cka(model, other, data, settings, out, on_progress=on_progress)
    typer.echo(f"CKA: {out}")
