"""`bigr-repr bench map`, `neighbors`, `confusion` and `cka`: pictures of features."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import data as d
from bigr_repr_cli.bench import options as o
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.options import Json
from bigr_repr_cli.progress import bench_progress

Method = StrEnum("Method", ["pca", "tsne", "umap"])
_Out = Annotated[Path, typer.Option(help="Output file: .png or .svg.")]


@flattened
def map_command(
    out: _Out,
    source: d.DataOptions,
    features: o.OneBlockOrBits,
    running: o.RunOptions,
    method: Annotated[
        Method, typer.Option(help="How to project features to the plane; umap needs umap-learn.")
    ] = Method.tsne,
    test_limit: d.TestSample = 2000,
) -> None:
    """Draw the test images' features as points in the plane, colored by class."""
    o.check_picture(out, ".png", ".svg")
    settings, blocks = o.settings_of(features, running), features.blocks
    data = source.open(running.seed, test_limit=test_limit)
    from bigr_repr.evaluate.reports.drawings import draw_map

    with bench_progress() as on_progress:
        draw_map(features.model, data, settings, out, layers=blocks, method=str(method), on_progress=on_progress)
    typer.echo(f"map: {out}")


@flattened
def neighbors(
    out: Annotated[Path, typer.Option(help="Output file: .png.")],
    source: d.DataOptions,
    features: o.OneBlockOrBits,
    running: o.RunOptions,
    queries: Annotated[
        int, typer.Option(min=1, help="Test images to show, sampled in proportion to the classes.")
    ] = 10,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Training images to show for each.")] = 8,
    center: Annotated[
        bool, typer.Option("--center", help="Subtract the mean of the training features before the cosine.")
    ] = False,
    limit: d.Limit = None,
) -> None:
    """Draw test images with their nearest training images; a green frame marks the same class."""
    o.check_picture(out, ".png")
    settings, blocks = o.settings_of(features, o.Voting(center=center), running), features.blocks
    data = source.open(running.seed, limit=limit)
    from bigr_repr.evaluate.reports.drawings import draw_neighbors

    with bench_progress() as on_progress:
        draw_neighbors(
            features.model, data, settings, out, layers=blocks, queries=queries, k=k, on_progress=on_progress
        )
    typer.echo(f"neighbors: {out}")


@flattened
def confusion(
    out: _Out,
    source: d.DataOptions,
    limits: d.SampleSizes,
    features: o.OneBlockOrBits,
    probing: o.Probing,
    running: o.RunOptions,
    as_json: Json = False,
) -> None:
    """Draw the confusion matrix of the linear probe."""
    o.check_picture(out, ".png", ".svg")
    settings, blocks = o.settings_of(features, probing, running), features.blocks
    data = source.open(running.seed, limit=limits.limit, test_limit=limits.test_limit)
    from bigr_repr.evaluate.reports.drawings import draw_confusion

    with bench_progress() as on_progress:
        worst = draw_confusion(features.model, data, settings, out, layers=blocks, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps({"confusion": str(out), "mistakes": worst}, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join([*worst, f"confusion: {out}"]))


@flattened
def cka(
    out: _Out,
    source: d.DataOptions,
    network: o.NetworkOptions,
    running: o.RunOptions,
    other: Annotated[str | None, typer.Option(help=r"Model to compare with \[default: the model with itself].")] = None,
    test_limit: d.TestSample = 1000,
    as_json: Json = False,
) -> None:
    """Draw how similar the blocks of one or two models are: linear CKA on the test images, 1 if identical."""
    o.check_named(other, "--other")
    o.check_picture(out, ".png", ".svg")
    settings = o.settings_of(network, running)
    data = source.open(running.seed, test_limit=test_limit)
    from bigr_repr.evaluate.reports.drawings import draw_cka

    with bench_progress() as on_progress:
        values = draw_cka(network.model, other, data, settings, out, on_progress=on_progress)
    typer.echo(json.dumps({"cka": str(out), "values": values.tolist()}, indent=2) if as_json else f"CKA: {out}")
