"""`bigr-repr embed`: images to a folder of Parquet files."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from bigr_repr_cli.parse import parse_batch_size, parse_layers

Pool = StrEnum("Pool", ["avg", "none"])
Dedup = StrEnum("Dedup", ["exact"])
Stored = StrEnum("Stored", ["float32", "float16"])
Engine = StrEnum("Engine", ["local", "ray"])
Computed = StrEnum("Computed", ["float32", "bfloat16", "float16"])


def command(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMG…", help="Folders, files, patterns, Parquet files, tar shards, URLs; -: on stdin."),
    ],
    layer: Annotated[list[str], typer.Option(help='Blocks, as 12, -1, "mid", "best" or 4,8; repeatable.')] = ["12"],  # noqa: B006
    model: Annotated[str, typer.Option(help="A name from: bigr-repr models list, or a model folder.")] = "bigr-tiny",
    out: Annotated[str, typer.Option(help="Folder for the result; also s3://bucket/run.")] = "embeddings",
    codes: Annotated[bool, typer.Option("--codes", help="Also the tokenizer's bits, packed.")] = False,
    pool: Annotated[Pool, typer.Option(help="none: a vector a token.")] = Pool.avg,
    dtype: Annotated[Stored, typer.Option(help="Of the stored vectors.")] = Stored.float32,
    root: Annotated[
        str | None, typer.Option(help="Record paths relative to this folder (or URL), which holds every input.")
    ] = None,
    labels_from_folders: Annotated[
        bool, typer.Option("--labels-from-folders", help="Also each image's folder, or Parquet or tar label.")
    ] = False,
    sha256: Annotated[bool, typer.Option("--sha256", help="Also the SHA-256 of each image's bytes.")] = False,
    dedup: Annotated[
        Dedup | None, typer.Option(help="exact: one row for images of the same bytes; see duplicates.jsonl.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with what an earlier run left to do.")] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try the failed images again.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Also embed what was added to the inputs since.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what OUT holds, and begin anew.")] = False,
    batch_size: Annotated[
        str | None, typer.Option(help="Images the model takes at a time; auto: measured; by default 32.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Pictures decoded at a time: one a core.")] = None,
    unit_size: Annotated[int | None, typer.Option(min=1, help="Images a file; by default 1024 or fewer.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Larger pictures fail; by default 200 million.")] = None,
    decode_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds a picture may take; 0: no limit, and no guard against crashes.")
    ] = 120,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:1, cuda:0,cuda:1, all: a process each.")] = "auto",
    precision: Annotated[Computed, typer.Option(help="What the network computes in.")] = Computed.float32,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network: slow start, then faster.")] = False,
    engine: Annotated[Engine, typer.Option(help="ray: on the machines of a Ray cluster.")] = Engine.local,
    ray_address: Annotated[
        str | None, typer.Option(help="Of the cluster's head, as HOST:6379; by default RAY_ADDRESS, or this machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Embed images: a vector each, in a folder of Parquet files that state their origin.

    Pictures that cannot be read are listed in OUT/failures.jsonl. To use the rows elsewhere: bigr-repr embed export.

    A run that was stopped goes on where it was when the command is given again.

    --layer best is the block that bench layers found for this model.
    """
    layers, size = parse_layers(layer, ("mid", "best")), parse_batch_size(batch_size)
    if ray_address is not None and engine != Engine.ray:
        raise typer.BadParameter("belongs to --engine ray", param_hint="--ray-address")
    if "-" in images and len(images) > 1:
        raise typer.BadParameter("- takes all paths from stdin; name nothing else beside it", param_hint="IMG…")
    from bigr_repr.embed import embed_images
    from bigr_repr.images import MAX_PIXELS, read_list
    from bigr_repr_cli.embed_report import embedding_progress, print_summary

    if "best" in layers:
        from bigr_repr.evaluate.best_layer import recall_any

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
