"""`bigr-repr embed export`: an embedding data set as a NumPy array or CSV."""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    embeddings: Annotated[str, typer.Argument(help="A folder that bigr-repr embed wrote.")],
    to: Annotated[Path, typer.Option(help="The file to write: NAME.npy or NAME.csv.")],
    layer: Annotated[int | None, typer.Option(help="Whose vectors, if EMBEDDINGS has several layers.")] = None,
    codes: Annotated[bool, typer.Option("--codes", help="The packed codes instead of vectors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Write the rows of a data set for other programs, in its order.

    NAME.npy is one array, and NAME.paths.txt beside it has the paths, a line a row. NAME.csv has a header, the path,
    label and sha256 if there are such, and a column a number.

    To embed images that are in a folder called export: bigr-repr embed ./export
    """
    from bigr_repr.embed import export
    from bigr_repr.images import escape_path

    done = export(embeddings, to, layer=layer, codes=codes)
    files = [escape_path(str(file)) for file in done.files]
    if as_json:
        typer.echo(json.dumps({"files": files, "shape": done.shape, "dtype": done.dtype}, indent=2))
        return
    typer.echo(f"{' x '.join(map(str, done.shape))} of {done.dtype}: {files[0]}")
    for file in files[1:]:
        typer.echo(f"paths: {file}")
