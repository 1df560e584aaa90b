"""`bigr-repr embed`: embeds images into a folder of Parquet files."""

import sys
from typing import Annotated, Any

import typer

from bigr_repr_cli.embed.options import DecodingOptions, NetworkSettings, OutputOptions, RowOptions, Stored
from bigr_repr_cli.embed.watch import WatchOptions
from bigr_repr_cli.flatten import flattened, values_of
from bigr_repr_cli.options import Engine, Json
from bigr_repr_cli.parse import parse_batch_size, parse_duration, parse_layers

Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMG",
        help="Images to embed: files, folders, patterns, Parquet files, tar shards, or URLs of an object store; "
        "-: paths on standard input, one per line.",
    ),
]


@flattened
def command(
    images: Images,
    columns: RowOptions,
    runs: OutputOptions,
    decoding: DecodingOptions,
    computing: NetworkSettings,
    watching: WatchOptions,
    as_json: Json = False,
) -> None:
    """Embed images: one vector per image, in a folder of Parquet files that state their provenance.

    Images that cannot be read are listed in OUT/failures.jsonl. To use the rows elsewhere: bigr-repr embed export.

    To resume a stopped run, repeat the command.

    --layer best is the block that bigr-repr bench layers found for this model.
    """
    inputs, options = inputs_of(images), keywords(columns, runs, decoding, computing) | {"literal": images == ["-"]}
    from bigr_repr.embed import embed_images
    from bigr_repr_cli.embed.narrow import NARROW, embed_in_int8, measure_bfloat16
    from bigr_repr_cli.embed.report import embedding_progress, print_summary
    from bigr_repr_cli.embed.watch import check_metrics

    check_metrics(watching.metrics, runs.out, [] if images == ["-"] else images)
    in_int8 = computing.precision == "int8"
    if in_int8 or computing.precision in NARROW:
        inputs = list(inputs)  # they are read twice
    if computing.precision in NARROW:
        measure_bfloat16(inputs, options)
    with embedding_progress(watching) as on_progress:
        summary = (embed_in_int8 if in_int8 else embed_images)(inputs, on_progress=on_progress, **options)
    print_summary(summary, as_json=as_json)
    if not summary.rows:
        raise RuntimeError(f"none of the images could be embedded; see the reasons in {summary.out / 'failures.jsonl'}")


def inputs_of(images: list[str]) -> Any:
    """The inputs of embed_images; - means paths on standard input.  Raises BadParameter."""
    if "-" in images and len(images) > 1:
        raise typer.BadParameter("- reads all paths from standard input; give no other inputs", param_hint="IMG")
    from bigr_repr.images.find import read_list

    return read_list(sys.stdin.buffer) if images == ["-"] else images


def keywords(
    columns: RowOptions, runs: OutputOptions, decoding: DecodingOptions, computing: NetworkSettings
) -> dict[str, Any]:
    """Keyword arguments of embed_images from command-line options.  Raises BadParameter."""
    layers = parse_layers(list(columns.layer), ("mid", "best"), joined=True)
    size = parse_batch_size(computing.batch_size)
    if computing.ray_address is not None and computing.engine != Engine.ray:
        raise typer.BadParameter("applies only to --engine ray", param_hint="--ray-address")
    if columns.old_store_dtype is not None and columns.store_dtype not in (Stored.float32, columns.old_store_dtype):
        raise typer.BadParameter(
            "is the old name of --store-dtype and contradicts it; give only --store-dtype", param_hint="--dtype"
        )
    if runs.label_column != "label" and not columns.labels_from_folders:
        raise typer.BadParameter("has no effect without --labels-from-folders; add that", param_hint="--label-column")
    options = _options(columns, runs, decoding, computing)
    return options | {"batch_size": size, "layers": _best_known(layers, columns.model)}


def _options(
    columns: RowOptions, runs: OutputOptions, decoding: DecodingOptions, computing: NetworkSettings
) -> dict[str, Any]:
    """Keyword arguments of embed_images for all options that need no parsing."""
    from bigr_repr.images.decode import MAX_PIXELS

    values = values_of(columns, runs, decoding, computing)
    del values["layer"], values["batch_size"]
    former, dtype = values.pop("old_store_dtype"), values.pop("precision")
    return values | {
        "retry_for": 0.0 if runs.retry_for == "0" else parse_duration(runs.retry_for),
        "condition": values.pop("read_with").value,
        "store_dtype": former or columns.store_dtype,
        "dtype": dtype,
        "max_pixels": decoding.max_pixels or MAX_PIXELS,
        "decode_timeout": decoding.decode_timeout or None,
    }


def _best_known(layers: list[int | str], model: str) -> list[int | str]:
    """Layers, with "best" replaced by the number of the measured best one."""
    if "best" not in layers:
        return layers
    from bigr_repr.evaluate.runs.best_layer import recall_any

    best = recall_any(model)
    typer.echo(f"layer best: {best}", err=True)
    return [best if each == "best" else each for each in layers]
