"""`bigr-repr bench generation`."""

import dataclasses
import json
from typing import Annotated

import typer

from bigr_repr_cli.bench import options as o
from bigr_repr_cli.parse import parse_layers
from bigr_repr_cli.progress import bench_progress


def command(
    generated: Annotated[
        str, typer.Argument(metavar="GENERATED", help="A folder, the .npz of generate --npz, or a Parquet file.")
    ],
    real: Annotated[
        list[str], typer.Option(help="Real images: a folder, Parquet files, torchvision:NAME:ROOT; may be repeated.")
    ],
    model: Annotated[
        str, typer.Option(help="What computes the features: a model, timm:NAME, or pixels:SIDE.")
    ] = "bigr-tiny",
    layer: Annotated[str | None, typer.Option(help='A block, as 12, -1 or "mid"; by default 12.')] = None,
    pool: o.Pool = "avg",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Neighbours that precision and recall reach to.")] = 3,
    seed: o.Seed = 0,
    device: o.Device = None,
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    as_json: o.AsJson = False,
) -> None:
    """Compare generated images with real ones: Fréchet distance, precision and recall of a model's features.

    Numbers of different extractors, or of different numbers of images, must not be compared; none of these is the FID.
    """
    layers = parse_layers([layer]) if layer else [None]
    if len(layers) > 1:
        raise typer.BadParameter(f"{layer!r} names several blocks; give one", param_hint="--layer")
    from bigr_repr.datasets import open_images
    from bigr_repr.evaluate.bench import bench_generation

    settings = o.make_settings(seed=seed, pool=pool, device=device, cache=cache, batch_size=batch_size, workers=workers)
    sides = open_images(generated, train=False), open_images(real, train=False)
    with bench_progress() as on_progress:
        found, facts = bench_generation(model, *sides, settings, layer=layers[0], k=k, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found) | facts, indent=2))
        return
    typer.echo(f"Fréchet distance  {found.frechet_distance:.4f}")
    typer.echo(f"precision         {found.precision:.4f}")
    typer.echo(f"recall            {found.recall:.4f}")
    typer.echo(found.protocol)
