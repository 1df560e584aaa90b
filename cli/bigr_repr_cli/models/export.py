"""`bigr-repr models export`: writes a model's feature network as a graph for another runtime."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.embed.options import Pool
from bigr_repr_cli.flatten import flattened, values_of
from bigr_repr_cli.options import Model
from bigr_repr_cli.parse import parse_layers
from bigr_repr_cli.progress import bench_progress

Target = StrEnum("Target", ["onnx", "openvino", "torch"])
Numbers = StrEnum("Numbers", ["float32", "bfloat16", "int8"])


@dataclass(frozen=True, kw_only=True)
class NumberOptions:
    """The number types of the network's computation."""

    precision: Annotated[
        Numbers,
        typer.Option(
            help="Number type of the computation: int8 with onnx and openvino, bfloat16 with openvino and torch."
        ),
    ] = Numbers.float32
    tokenizer: Annotated[
        Numbers | None,
        typer.Option(
            help="Number type of the tokenizer: float32 keeps every bit of the codes; the same type as "
            r"--precision is faster \[default: float32 if the runtime supports both]."
        ),
    ] = None
    calibrate: Annotated[
        Path | None,
        typer.Option(help="A hundred or more images like those you will embed, for calibrating int8, and for it only."),
    ] = None


@flattened
def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    model: Model = DEFAULT_MODEL,
    layer: Annotated[
        list[str],
        typer.Option(help="Blocks whose features to use, counted from 0: 12, -1, mid, 4,8 or 4+8. May be repeated."),
    ] = ("12",),  # type: ignore[assignment]  # a default that cannot change
    pool: Annotated[Pool, typer.Option(help="How a block's tokens become one vector, as in bigr-repr embed.")] = (
        Pool.avg
    ),
    to: Annotated[
        Target,
        typer.Option(help="onnx: ONNX Runtime and others; openvino; torch: compiled by AOTInductor for this machine."),
    ] = Target.onnx,
    numbers: NumberOptions,
    force: Annotated[bool, typer.Option("--force", help="Replace the exported network in OUT.")] = False,
) -> None:
    """Write a model's feature network as one graph: image tensor in, features and packed codes out.

    OUT/export.json states preprocessing, shapes and checksums. bigr-repr embed and serve take OUT as --model.
    """
    layers = parse_layers(list(layer), ("mid",), joined=True)
    from bigr_repr.features import export_model

    with bench_progress() as on_progress:
        done = export_model(
            out, model=model, layer=layers, pool=pool, to=to, overwrite=force, on_progress=on_progress,
            **values_of(numbers),
        )  # fmt: skip
    size = decimal(sum(file.stat().st_size for file in done.folder.iterdir()))
    layer_options = f"--layer {done.manifest.layers[0]}" + ("" if pool == Pool.avg else f" --pool {pool}")
    typer.echo(f"{done.config.name} to {to}, {numbers.precision}: {out} ({size})")
    typer.echo(f"embed with it: bigr-repr embed IMAGES --model {out} {layer_options}")
