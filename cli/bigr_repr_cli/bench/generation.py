"""`bigr-repr bench generation`."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.bench import options as o
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.options import ImageColumn, Json
from bigr_repr_cli.progress import bench_progress

_Generated = Annotated[
    str,
    typer.Argument(
        metavar="GENERATED", help="Generated images: a folder, the .npz of generate --npz, or a Parquet file."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What computes the features that are compared."""

    model: Annotated[
        str | None,
        typer.Option(
            help="What computes the features: inception:FILE (for the FID; FILE: torch-fidelity's weights), "
            "efficientnet-lite0, a model's name or folder, timm:NAME, or pixels:SIDE "
            rf"\[default: efficientnet-lite0, or {DEFAULT_MODEL} where that is not installed]."
        ),
    ] = None
    layer: Annotated[
        list[str],
        typer.Option(
            help="Block whose features to take, counted from 0: 12; -1 (the last); mid "
            r"\[default: 12, or the last if there are fewer]."
        ),
    ] = ()  # type: ignore[assignment]
    pool: Annotated[
        o.Pooling, typer.Option(help="How a block's tokens become one vector, as in bench linear-probe.")
    ] = o.Pooling.avg


@flattened
def command(
    generated: _Generated,
    real: Annotated[
        list[str], typer.Option(help="Real images: a folder, a Parquet file or torchvision:NAME:ROOT. May be repeated.")
    ],
    judge: Judge,
    running: o.RunOptions,
    k: Annotated[
        int, typer.Option("-k", "--k", min=1, help="Nearest neighbors that precision and recall reach to.")
    ] = 3,
    image_column: ImageColumn = "image",
    as_json: Json = False,
) -> None:
    """Compare generated images with real ones: Fréchet distance, precision and recall of a model's features.

    Numbers of different extractors, or of different numbers of images, must not be compared. Only inception:FILE gives
    the FID.
    """
    block, settings = o.single_layer(judge.layer, ("mid",)), o.settings_of(judge, running)
    from bigr_repr.datasets import open_images
    from bigr_repr.evaluate.runs.bench import bench_generation
    from bigr_repr.images.parquet import Columns

    columns = Columns(image=image_column)
    sides = (open_images(generated, train=False, columns=columns), open_images(real, train=False, columns=columns))
    with bench_progress() as on_progress:
        found, facts = bench_generation(judge.model, *sides, settings, layer=block, k=k, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found) | facts, indent=2))
        return
    typer.echo(f"Fréchet distance  {found.frechet_distance:.4f}")
    typer.echo(f"precision         {found.precision:.4f}")
    typer.echo(f"recall            {found.recall:.4f}")
    typer.echo(found.protocol)
