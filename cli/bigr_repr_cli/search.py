"""`bigr-repr search`: the images of an index that are nearest to a picture."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    query: Annotated[list[str], typer.Argument(metavar="QUERY…", help="Image files; with --id: paths in the index.")],
    index: Annotated[str, typer.Option(help="Index folder, or lancedb:DIR, or milvus:URI.")],
    name: Annotated[str, typer.Option(help="Of the index in a store.")] = "images",
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many to find; by default 10, if there are.")] = None,
    by_id: Annotated[bool, typer.Option("--id", help="QUERY is in the index: use its stored code.")] = False,
    rescore: Annotated[
        int, typer.Option(min=0, help="Take this many times k by bits, and the best of them by their vectors.")
    ] = 0,
    region: Annotated[
        str | None, typer.Option(help="x,y,w,h: compare there alone. Whole numbers: tokens; with points: shares, 0..1.")
    ] = None,
    effort: Annotated[int | None, typer.Option(min=0, help="Of an approximate index; see: index info.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page that shows the hits.")] = None,
    montage: Annotated[Path | None, typer.Option(help="Write a PNG that shows the hits.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that the index's paths are in, to show them.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the index's model is, if not at hand by its name.")] = None,
    device: Annotated[str, typer.Option(help="Of a flat index: cuda, cpu, or auto: a GPU if FAISS sees one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Find the images of an index that are nearest to a picture, and look at them.

    The picture is encoded by the model that made the index. Distances are numbers of differing bits; after --rescore,
    cosine distances.
    """
    from bigr_repr.retrieval import HammingIndex
    from bigr_repr.retrieval.search import search_ids, search_images
    from bigr_repr_cli.parse import parse_region
    from bigr_repr_cli.search_report import open_index, print_hits, show

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
        show(found.views(opened, model=model, images=images), html, montage, quiet=as_json)
    print_hits(found, as_json=as_json)
