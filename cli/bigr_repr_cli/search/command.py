"""`bigr-repr search`: the images of an index that are nearest to a picture."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.options import Json


def command(
    query: Annotated[
        list[str],
        typer.Argument(metavar="QUERY", help="Images to search for: files, folders or patterns; with --id: paths."),
    ],
    index: Annotated[
        str, typer.Option(help="Index to search: a folder, or a store that was pushed to: lancedb:DIR or milvus:URI.")
    ],
    name: Annotated[str, typer.Option(help="Name of the index in a store.")] = "images",
    k: Annotated[
        int | None, typer.Option("-k", "--k", min=1, help=r"Images to find per query \[default: 10, or all if fewer].")
    ] = None,
    by_id: Annotated[
        bool, typer.Option("--id", help="Queries are paths as the index lists them: use the codes stored for them.")
    ] = False,
    rescore: Annotated[
        int,
        typer.Option(
            min=0, help="Take this many times k images by bits, and of them the k nearest by their vectors; 0: do not."
        ),
    ] = 0,
    region: Annotated[
        str | None,
        typer.Option(
            help="Compare only inside the rectangle x,y,w,h: whole numbers are tokens, as 2,2,4,4; decimal numbers "
            r"are shares of the side, as 0.25,0.25,0.5,0.5 \[default: compare all]."
        ),
    ] = None,
    effort: Annotated[
        int | None,
        typer.Option(
            "--effort",
            "--nprobe",
            "--efSearch",
            min=0,
            help="Search effort of an approximate index, in the unit that index info shows "
            r"\[default: the index's own; ivf in a store: an eighth of its lists].",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write an HTML page that shows the hits into this file.")
    ] = None,
    montage: Annotated[Path | None, typer.Option(help="Also write a picture of the hits into this PNG file.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder that was embedded, to show the photographs of the hits from "
            r"\[default: where the command is run]."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=r"Folder of the model that made the index \[default: the model of the recorded name]."),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="Where a flat index is searched: auto (a GPU if FAISS sees one, else CPU), cpu or cuda."),
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Find the images of an index that are nearest to a picture, and look at them.

    The picture is encoded by the model that made the index.

    Distances are numbers of differing bits; with --rescore, cosine distances.
    """
    from bigr_repr.retrieval import HammingIndex
    from bigr_repr.retrieval.search import search_ids, search_images, views_of
    from bigr_repr_cli.parse import parse_region
    from bigr_repr_cli.search.report import open_index, print_hits, show

    opened = open_index(index, name, device)
    where = None if region is None else parse_region(region, opened)
    k = max(1, min(10, len(opened))) if k is None else k
    if by_id:
        if not isinstance(opened, HammingIndex):
            raise ValueError(f"{index} gives out no codes, which --id needs: search the index folder that was pushed")
        found = search_ids(opened, query, k, rescore=rescore, region=where, effort=effort, images=images)
    else:
        found = search_images(opened, query, k, rescore=rescore, region=where, effort=effort, model=model)
    if html or montage:
        show(views_of(found, opened, model=model, images=images), html, montage, quiet=as_json)
    print_hits(found, as_json=as_json)
