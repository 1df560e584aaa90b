"""The options of `bigr-repr embed`, in groups."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.options import Compile, Engine, ImageColumn, Model, RayAddress, ReadWith

Pool = StrEnum("Pool", [("avg", "avg"), ("max", "max"), ("both", "avg+max"), ("grid2", "grid2"), ("none", "none")])
Dedup = StrEnum("Dedup", ["exact"])
Stored = StrEnum("Stored", ["float32", "float16"])
Icc = StrEnum("Icc", ["convert", "ignore"])
Reduced = StrEnum("Reduced", ["float32", "bfloat16", "float16", "int8", "fp32", "bf16", "fp16"])


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """What a row contains."""

    layer: Annotated[
        list[str],
        typer.Option(
            help="Blocks whose features to store, counted from 0: 12; -1 (the last); mid; best (as bench layers found "
            "it); several: 4,8; concatenated: 4+8. May be repeated."
        ),
    ] = ("12",)  # type: ignore[assignment]  # a default that cannot change
    model: Model = DEFAULT_MODEL
    codes: Annotated[
        bool, typer.Option("--codes", help="Also store the tokenizer's bits of each image, packed into bytes.")
    ] = False
    pool: Annotated[
        Pool,
        typer.Option(
            help="How a block's tokens become one vector per image: their mean (avg), maximum (max), both "
            "concatenated, the concatenated means over four quarters (grid2); none: one vector per token."
        ),
    ] = Pool.avg
    mirror: Annotated[
        bool,
        typer.Option("--mirror", help="Average the vectors of each image and its mirror image; takes twice as long."),
    ] = False
    read_with: ReadWith
    store_dtype: Annotated[Stored, typer.Option("--store-dtype", help="Number type of the stored vectors.")] = (
        Stored.float32
    )
    old_store_dtype: Annotated[Stored | None, typer.Option("--dtype", hidden=True)] = None  # its former name
    labels_from_folders: Annotated[
        bool,
        typer.Option(
            "--labels-from-folders",
            help="Also store a label per image: the name of its folder, or the label in its Parquet or tar file.",
        ),
    ] = False
    sha256: Annotated[bool, typer.Option("--sha256", help="Also store the SHA-256 of each image's encoded bytes.")] = (
        False
    )
    dedup: Annotated[
        Dedup | None,
        typer.Option(
            help="exact: embed only the first of byte-identical images, and list the others in duplicates.jsonl "
            r"\[default: embed all]."
        ),
    ] = None
    thumbnails: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=1024,
            help=r"Also store a WebP thumbnail of each image, with its longer side of this many pixels \[default: "
            "none].",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where rows go, and what happens to an earlier run there."""

    out: Annotated[
        str, typer.Option(help="Folder for the data set, or an object-store URL such as s3://bucket/run.")
    ] = "embeddings"
    root: Annotated[
        str | None,
        typer.Option(
            help="Folder (or URL) that recorded paths are relative to; it must hold every input "
            r"\[default: the input if there is only one, else none]."
        ),
    ] = None
    image_column: ImageColumn = "image"
    label_column: Annotated[
        str, typer.Option(help="Column of Parquet inputs with labels, for --labels-from-folders.")
    ] = "label"
    resume: Annotated[
        bool,
        typer.Option(
            help="Resume an earlier run into OUT where it stopped; --no-resume: fail if OUT holds embeddings."
        ),
    ] = True
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Retry the images that failed in an earlier run; existing rows stay."),
    ] = False
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Also embed images that were added to the inputs since the first run, or whose files have "
            "changed (by size and time).",
        ),
    ] = False
    drop_gone: Annotated[
        bool, typer.Option("--drop-gone", help="With --update: remove the rows of images that no longer exist.")
    ] = False
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read everything in OUT, and re-embed the images of damaged files."),
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the embeddings in OUT, and start over.")] = (
        False
    )
    retry_for: Annotated[
        str,
        typer.Option(
            help="How long to retry unreachable stores and servers, each time, before the run stops: 90s, 10m, "
            "1h; or 0."
        ),
    ] = "10m"
    unit_size: Annotated[
        int | None,
        typer.Option(min=1, help=r"Images per Parquet file \[default: 1,024, or fewer if rows are large]."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How images are decoded."""

    icc: Annotated[
        Icc | None,
        typer.Option(
            help="Pictures with a color profile other than sRGB: convert them to sRGB, or ignore the profile "
            r"\[default: as in the resumed run, else convert]."
        ),
    ] = None
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help=r"Maximum number of pixels; larger images fail \[default: 200 million]."),
    ] = None
    decode_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds after which decoding an image fails; 0: no limit, and an image that crashes its decoder "
            "ends the run.",
        ),
    ] = 120
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=r"Images decoded in parallel \[default: one per core, at most 32]; with --engine ray: cores per actor "
            r"\[default: 1, or a GPU's share].",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Where the network runs, and how."""

    batch_size: Annotated[
        str | None,
        typer.Option(
            help=r"Images per batch of the network; auto: the fastest, measured \[default: as in the resumed run, "
            "else 32]."
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(
            help="Where the network runs: auto (first GPU, else CPU), cpu, cuda:1; several: cuda:0,cuda:1 or all, one "
            "process per GPU; with --engine ray: auto (all GPUs, else all cores), cpu or cuda."
        ),
    ] = "auto"
    precision: Annotated[
        Reduced,
        typer.Option(
            help="Number type of the network's computation. bfloat16 and int8 are first compared with float32 on "
            "some of the images; int8 (OpenVINO, tokenizer in float32) stores its network in "
            "OUT/network-int8."
        ),
    ] = Reduced.float32
    compile: Compile = False
    engine: Annotated[Engine, typer.Option(help="local: this machine; ray: all machines of a Ray cluster.")] = (
        Engine.local
    )
    ray_address: RayAddress = None
