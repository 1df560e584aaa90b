"""`bigr-repr codes` and `bigr-repr decode`: binary codes to a file, and tokenizer codes back to pictures."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Codes = StrEnum("Codes", ["bits", "sign", "median", "pca", "rotation", "itq"])


def export(
    source: Annotated[list[str], typer.Argument(metavar="SOURCE…", help="Images, or a folder of bigr-repr embed.")],
    out: Annotated[Path, typer.Option(help="*.parquet (path, code), *.npz (paths, codes) or *.npy (codes).")] = Path(
        "codes.parquet"
    ),
    codes: Annotated[
        Codes, typer.Option(help="bits: the tokenizer's own; else, of a data set, how features become bits.")
    ] = Codes.bits,
    n_bits: Annotated[int | None, typer.Option("--bits", min=1, help="Bits of a code, for pca, rotation, itq.")] = None,
    layer: Annotated[int | None, typer.Option(help="Whose vectors, if the data set has several layers.")] = None,
    model: Annotated[
        str | None, typer.Option(help="For images: a name (bigr-repr models list) or a folder; by default bigr-tiny.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the fit.")] = 0,
) -> None:
    """Export binary codes: of images, the tokenizer's bits; of an embedding data set, any kind."""
    from bigr_repr.retrieval.build import DataCodes
    from bigr_repr.retrieval.export import export_data_codes, export_image_codes
    from bigr_repr_cli.progress import counting_progress

    if len(source) == 1 and any(Path(source[0]).glob("part-*.parquet")):
        if model is not None:
            raise typer.BadParameter("a data set has its codes already; leave it out", param_hint="--model")
        data = DataCodes(source[0], codes, n_bits=n_bits, layer=layer, seed=seed)
        count, bits = export_data_codes(data, out), data.n_bits
    else:
        if codes != Codes.bits:
            raise typer.BadParameter(
                "of images there are bits alone; embed them first for others", param_hint="--codes"
            )
        if n_bits is not None or layer is not None:
            hint = "--layer" if n_bits is None else "--bits"
            raise typer.BadParameter("the tokenizer's bits of images have no such choice", param_hint=hint)
        from bigr_repr.checkpoints import load

        pre = load(model or "bigr-tiny")
        with counting_progress("encoding") as on_progress:
            count = export_image_codes(source, out, pre, on_progress=on_progress)
        bits = pre.config.code_size
    typer.echo(f"{count:,} codes of {bits:,} bits: {out}")


def decode(
    source: Annotated[Path, typer.Argument(help="A file of bigr-repr codes, or an index with tokenizer codes.")],
    out: Annotated[Path, typer.Option(help="New folder for the PNG files.")] = Path("decoded"),
    only: Annotated[list[str] | None, typer.Option("--id", help="Of these paths alone; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first ones alone.")] = None,
    model: Annotated[str | None, typer.Option(help="The model that made the codes; by default as recorded.")] = None,
) -> None:
    """Turn stored tokenizer codes back into pictures, without the original files."""
    from bigr_repr.retrieval.png_folder import decode_to_folder

    count = decode_to_folder(source, out, only=only, limit=limit, model=model)
    typer.echo(f"{count:,} pictures: {out}")
