"""`bigr-repr embed`: images to a folder of Parquet files."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.options import Compile, Computed, Json, Model, Precision
from bigr_repr_cli.parse import parse_batch_size, parse_layers

Pool = StrEnum("Pool", ["avg", "none"])
Dedup = StrEnum("Dedup", ["exact"])
Stored = StrEnum("Stored", ["float32", "float16"])
Engine = StrEnum("Engine", ["local", "ray"])


def command(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMG",
            help="Images to embed: files, folders, patterns, Parquet files, tar shards, or URLs of an object store; "
            "-: paths on standard input, one per line.",
        ),
    ],
    layer: Annotated[
        list[str],
        typer.Option(
            help="Blocks whose features to store, counted from 0: 12; -1 (the last); mid; best (as bench layers found "
            "it); several: 4,8. May be repeated."
        ),
    ] = ["12"],  # noqa: B006
    model: Model = DEFAULT_MODEL,
    out: Annotated[
        str, typer.Option(help="Folder to write the data set into; also a URL of an object store, as s3://bucket/run.")
    ] = "embeddings",
    codes: Annotated[
        bool, typer.Option("--codes", help="Also store the tokenizer's bits of each image, packed into bytes.")
    ] = False,
    pool: Annotated[
        Pool, typer.Option(help="avg: one vector per image, the mean over its tokens; none: one vector per token.")
    ] = Pool.avg,
    dtype: Annotated[Stored, typer.Option(help="Number type of the stored vectors.")] = Stored.float32,
    root: Annotated[
        str | None,
        typer.Option(
            help="Folder (or URL) that recorded paths are relative to; it must hold every input "
            r"\[default: the input, if there is only one; else none]."
        ),
    ] = None,
    labels_from_folders: Annotated[
        bool,
        typer.Option(
            "--labels-from-folders",
            help="Also store a label per image: the name of its folder, or what its Parquet or tar file states.",
        ),
    ] = False,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Also store the SHA-256 of each image's encoded bytes.")
    ] = False,
    dedup: Annotated[
        Dedup | None,
        typer.Option(
            help="exact: embed only the first of images with the same bytes, and list the others in duplicates.jsonl "
            r"\[default: embed all]."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(help="Go on where an earlier run into OUT stopped; --no-resume: fail if OUT holds embeddings."),
    ] = True,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again the images that failed in an earlier run.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Also embed images that were added to the inputs since the first run.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the embeddings that OUT holds, and begin anew.")
    ] = False,
    batch_size: Annotated[
        str | None,
        typer.Option(
            help="Images that the network takes at a time; auto: the fastest, measured "
            r"\[default: that of the run to go on with, else 32]."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=r"Images decoded in parallel \[default: one per core, 32 at most]; with --engine ray: cores per actor "
            r"\[default: 1, or a GPU's share].",
        ),
    ] = None,
    unit_size: Annotated[
        int | None,
        typer.Option(min=1, help=r"Images per Parquet file \[default: 1,024, or fewer if their rows are large]."),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help=r"Pixels that an image may have; larger ones fail \[default: 200 million]."),
    ] = None,
    decode_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that decoding an image may take before it fails; 0: no limit, and an image that crashes its "
            "decoder ends the run.",
        ),
    ] = 120,
    device: Annotated[
        str,
        typer.Option(
            help="Where the network runs: auto (first GPU, else CPU), cpu, cuda:1; several: cuda:0,cuda:1 or all, one "
            "process per GPU; with --engine ray: auto (all GPUs, else all cores), cpu or cuda."
        ),
    ] = "auto",
    precision: Precision = Computed.float32,
    compile: Compile = False,
    engine: Annotated[
        Engine, typer.Option(help="local: this machine; ray: all machines of a Ray cluster.")
    ] = Engine.local,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster's head, as HOST:6379 "
            r"\[default: the environment's RAY_ADDRESS, else a cluster of only this machine]."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Embed images: one vector per image, in a folder of Parquet files that state their origin.

    Images that cannot be read are listed in OUT/failures.jsonl. To use the rows elsewhere: bigr-repr embed export.

    A run that was stopped goes on where it was when the command is given again.

    --layer best is the block that bigr-repr bench layers found for this model.
    """
    layers, size = parse_layers(layer, ("mid", "best")), parse_batch_size(batch_size)
    if ray_address is not None and engine != Engine.ray:
        raise typer.BadParameter("belongs to --engine ray", param_hint="--ray-address")
    if "-" in images and len(images) > 1:
        raise typer.BadParameter("- takes all paths from stdin; name nothing else beside it", param_hint="IMG")
    from bigr_repr.embed import embed_images
    from bigr_repr.images.decode import MAX_PIXELS
    from bigr_repr.images.find import read_list
    from bigr_repr_cli.embed.report import embedding_progress, print_summary

    if "best" in layers:
        from bigr_repr.evaluate.runs.best_layer import recall_any

        best = recall_any(model)
        layers = [best if each == "best" else each for each in layers]
        typer.echo(f"layer best: {best}", err=True)
    listed = images == ["-"]
    with embedding_progress() as on_progress:
        summary = embed_images(
            read_list(sys.stdin.buffer) if listed else images,
            out, model=model, layers=layers, pool=pool, codes=codes, labels_from_folders=labels_from_folders,
            dtype=dtype, precision=precision, resume=resume, retry_failed=retry_failed, update=update,
            overwrite=overwrite, sha256=sha256, dedup=dedup, root=root, literal=listed,
            max_pixels=max_pixels or MAX_PIXELS, decode_timeout=decode_timeout or None,
            batch_size=size, workers=workers, unit_size=unit_size, device=device, compile=compile,
            engine=engine, ray_address=ray_address, on_progress=on_progress,
        )  # fmt: skip
    print_summary(summary, as_json=as_json)
    if not summary.rows:
        raise RuntimeError(f"none of the images gave a vector; the reasons are in {summary.out / 'failures.jsonl'}")
