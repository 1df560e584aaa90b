"""`bigr-repr embed export`: writes an embedding data set for other programs."""

import json
from typing import Annotated

import typer

from bigr_repr_cli.options import Json, StoredLayer
from bigr_repr_cli.parse import stored_layer


def command(
    embeddings: Annotated[
        str, typer.Argument(metavar="EMBEDDINGS", help="Folder or URL that bigr-repr embed wrote into.")
    ],
    to: Annotated[str, typer.Option(help="File to write: NAME.npy, .csv, .h5 (HDF5), .zarr or .tar (WebDataset).")],
    layer: StoredLayer = None,
    codes: Annotated[bool, typer.Option("--codes", help="Write the packed codes instead of vectors.")] = False,
    as_json: Json = False,
) -> None:
    """Write the rows of a data set, in order, in a format for other programs.

    NAME.npy is one array; NAME.paths.txt next to it has the paths, one per line.

    NAME.csv has a header, and columns for the path, for label and sha256 if stored, and for each dimension.

    An earlier export of the same format is replaced; any other file is refused.

    NAME.h5 and NAME.zarr hold values, path and, if stored, label and sha256; NAME.tar has one NNNNNNNNN.npy and .json
    per row.

    To embed images that are in a folder called export: bigr-repr embed ./export
    """
    if codes and layer is not None:
        raise typer.BadParameter("codes do not depend on a layer; leave it out", param_hint="--layer")
    from bigr_repr.embed import export_embeddings
    from bigr_repr.images.find import escape_path

    done = export_embeddings(embeddings, to, layer=stored_layer(layer), codes=codes)
    files = [escape_path(str(file)) for file in done.files]
    if as_json:
        typer.echo(json.dumps({"files": files, "shape": done.shape, "dtype": done.dtype}, indent=2))
        return
    typer.echo(f"{' x '.join(map(str, done.shape))} of {done.dtype}: {files[0]}")
    for file in files[1:]:
        typer.echo(f"paths: {file}")
