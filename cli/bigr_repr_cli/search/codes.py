"""`bigr-repr codes` and `bigr-repr decode`: write binary codes to a file, and decode tokenizer codes to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.options import Bits, CodeKind, Codes, StoredLayer
from bigr_repr_cli.parse import stored_layer

if TYPE_CHECKING:
    from bigr_repr.checkpoints import Pretrained
    from bigr_repr.retrieval.codes.files import CodeFile

_Source = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help="Images, or one folder written by bigr-repr embed.")
]


def export(
    source: _Source,
    out: Annotated[
        Path, typer.Option(help="File to write: *.parquet (path, code), *.npz (paths, codes) or *.npy (only codes).")
    ] = Path("codes.parquet"),
    codes: CodeKind = Codes.bits,
    n_bits: Bits = None,
    layer: StoredLayer = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=r"Model that encodes the images: a name (see bigr-repr models list) or folder \[default: "
            f"{DEFAULT_MODEL}]."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed of the fit.")] = 0,
) -> None:
    """Write binary codes to a file: tokenizer bits of images, or any kind of codes of an embedding data set."""
    from bigr_repr.retrieval.codes.dataset import DataCodes
    from bigr_repr.retrieval.codes.files import export_data_codes, export_image_codes
    from bigr_repr_cli.progress import counting_progress

    if len(source) == 1 and any(Path(source[0]).glob("part-*.parquet")):
        if model is not None:
            raise typer.BadParameter("a data set already has its codes; leave it out", param_hint="--model")
        data = DataCodes(source[0], codes, n_bits=n_bits, layer=stored_layer(layer), seed=seed)
        count, bits = export_data_codes(data, out), data.n_bits
    else:
        if codes != Codes.bits:
            raise typer.BadParameter("images have only bits; embed them first to get other codes", param_hint="--codes")
        if n_bits is not None or layer is not None:
            hint = "--layer" if n_bits is None else "--bits"
            raise typer.BadParameter("does not apply to the tokenizer's bits of images; leave it out", param_hint=hint)
        from bigr_repr.checkpoints.pretrained import load

        pre = load(model or DEFAULT_MODEL)
        with counting_progress("encoding") as on_progress:
            count = export_image_codes(source, out, pre, on_progress=on_progress)
        bits = pre.config.code_size
    typer.echo(f"{count:,} codes of {bits:,} bits: {out}")


def decode(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Folder written by bigr-repr embed --codes or train codes, index folder with tokenizer codes, or "
            "file written by bigr-repr codes.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the PNG files, new or empty.")] = Path("decoded"),
    only: Annotated[
        list[str] | None,
        typer.Option("--id", help=r"Decode only the image with this path. May be repeated \[default: all]."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help=r"Decode only the first N \[default: all].")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=r"Name or folder of the model that made the codes \[default: the name recorded with the codes]."
        ),
    ] = None,
) -> None:
    """Decode stored tokenizer codes to pictures, without the original files."""
    from bigr_repr.retrieval.results.png_folder import decode_to_folder
    from bigr_repr_cli.search.stdin import given_ids

    if (source / "codes.json").is_file():
        if only:
            raise typer.BadParameter("a code set has no paths; leave it out", param_hint="--id")
        found, pre = _code_set(source, model)
        count = decode_to_folder(found, out, limit=limit, model=pre)
    else:
        count = decode_to_folder(source, out, only=only and given_ids(only), limit=limit, model=model)
    typer.echo(f"{count:,} pictures: {out}")


def _code_set(folder: Path, model: str | None) -> tuple[CodeFile, Pretrained]:
    """The first view of each image of a code set, and the model that decodes them."""
    from bigr_repr.checkpoints.pretrained import load, tokenizer_fingerprint
    from bigr_repr.retrieval.codes.files import CodeFile
    from bigr_repr.train.code_set import CodeSet

    opened = CodeSet(folder)
    header, pre = opened.header, load(model or opened.header.tokenizer)
    if header.tokenizer_sha256 not in (None, tokenizer_fingerprint(pre.tokenizer)):
        remedy = "name the right model with --model"
        raise ValueError(f"{folder}: codes of a different tokenizer than that of {pre.config.name}; {remedy}")
    return CodeFile(ids=None, codes=opened.packed[:, 0], n_bits=header.n_bits, provenance=None), pre
