"""`bigr-repr bench tokens`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.bench import options as o
from bigr_repr_cli.options import Device, Json, Model
from bigr_repr_cli.parse import parse_layers

_Images = Annotated[list[str], typer.Argument(metavar="IMG", help="Images to look at: files, folders or patterns.")]
_Layers = Annotated[
    list[str],
    typer.Option(
        help="Blocks whose states become colors, counted from 0: 12; -1 (the last); mid; several: 4,8; similarity "
        "and attention use the last one."
    ),
]
_Place = Annotated[
    str, typer.Option(help="Position of the token that others are compared with: shares of width and height.")
]


def command(
    images: _Images,
    out: Annotated[Path, typer.Option(help="Output file: .png or .svg.")],
    model: Model = DEFAULT_MODEL,
    layer: _Layers = ("4", "8", "12"),  # type: ignore[assignment]
    at: _Place = "0.5,0.5",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Most similar tokens to frame in the other images.")] = 8,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Visualize the tokens of images: states as colors, entropy, similarity and attention.

    The red frame marks the reference token in the first image; green frames mark the most similar tokens elsewhere.

    Within a column, similar colors mean similar states, across all images.
    """
    o.check_named(model)
    o.check_picture(out, ".png", ".svg")
    layers = parse_layers(list(layer))
    try:
        x, y = (float(part) for part in at.split(","))
    except ValueError:
        raise typer.BadParameter(f"{at!r} is not x,y, such as 0.5,0.5", param_hint="--at") from None
    from bigr_repr.evaluate.reports.token_pictures import draw_tokens

    found = draw_tokens(images, out, model=model, layers=layers, at=(x, y), k=k, device=device)
    if as_json:
        record = {"tokens": str(out), "token": found.token, "layers": list(found.layers)}
        typer.echo(
            json.dumps(record | {"entropy": found.entropy.tolist(), "nearest": found.nearest.tolist()}, indent=2)
        )
        return
    typer.echo(f"mean entropy of bits: {', '.join(f'{value:.3f}' for value in found.entropy)}")
    typer.echo(f"tokens: {out}")
