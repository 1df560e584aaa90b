"""`bigr-repr search`: finds the images of an index that are nearest to a picture."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.options import Json, Searching

if TYPE_CHECKING:
    from bigr_repr.retrieval import HammingIndex
    from bigr_repr.retrieval.results.views import Searched
    from bigr_repr.retrieval.stores.base import StoreIndex


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to search."""

    k: Annotated[
        int | None, typer.Option("-k", "--k", min=1, help=r"Images to find per query \[default: 10, or all if fewer].")
    ] = None
    rescore: Annotated[
        int,
        typer.Option(
            min=0,
            help="Find this many times k images by bits, then keep the k nearest by the query's vector, compared "
            "with their vectors or, if the index has none, with what their bits stand for; 0: off.",
        ),
    ] = 0
    region: Annotated[
        str | None,
        typer.Option(
            help="Compare only inside the rectangle x,y,w,h: integers are tokens, such as 2,2,4,4; decimals are "
            r"shares of the side, such as 0.25,0.25,0.5,0.5 \[default: compare all]."
        ),
    ] = None
    where: Annotated[
        str | None,
        typer.Option(
            help="Search only images that match this expression over path and the index's columns: "
            """'label = "cat" and not width < 100'; in (…), between, like "a%" and is null work too """
            r"\[default: all].",
        ),
    ] = None
    match: Annotated[
        str | None,
        typer.Option(
            help="Search only images whose paths, as listed in the index, match this pattern, such as 'cats/*': * "
            r"matches any text, including slashes, ? any character \[default: all].",
        ),
    ] = None
    ids_file: Annotated[
        str | None,
        typer.Option(help="Search only images whose paths are in this file, one per line; -: standard input."),
    ] = None
    radius: Annotated[float | None, typer.Option(min=0, help=r"Maximum distance of hits \[default: any].")] = None
    weights: Annotated[
        str | None,
        typer.Option(
            help="Combine all pictures into one query, with a weight for each, such as 1,1,-0.5; negative weights "
            r"favor images far from that picture \[default: one query per picture].",
        ),
    ] = None
    group: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=r"List hits that differ from a nearer one in at most this many bits under that one \[default: off].",
        ),
    ] = None
    offset: Annotated[int, typer.Option(min=0, help="Skip this many of the nearest images.")] = 0
    effort: Annotated[
        int | None,
        typer.Option(
            "--effort",
            "--nprobe",
            "--efSearch",
            min=0,
            help="Search effort of an approximate index, in the unit shown by index info "
            r"\[default: the index's own; ivf in a store: an eighth of its lists].",
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(help="Where to search a flat index: auto (a GPU if FAISS finds one, else CPU), cpu or cuda."),
    ] = "auto"
    processes: Searching = 1


@dataclass(frozen=True, kw_only=True)
class Show:
    """What to show in addition to the list of hits."""

    html: Annotated[Path | None, typer.Option(help="Also write an HTML page of the hits to this file.")] = None
    montage: Annotated[Path | None, typer.Option(help="Also write a picture of the hits to this PNG file.")] = None
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder that was embedded, for the photographs of the hits "
            r"\[default: as recorded with the embeddings, or else the current folder]."
        ),
    ] = None
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the hits as CSV.")] = False
    image_column: Annotated[
        str | None,
        typer.Option(
            help=r"Column of Parquet files with encoded images \[default: image; for photographs of hits, as they "
            "were embedded]."
        ),
    ] = None


_Query = Annotated[
    list[str],
    typer.Argument(
        metavar="QUERY",
        help="Images to search for: files, folders or patterns; with --id: paths; -: a picture, or a list with "
        "one per line, from standard input.",
    ),
]
_Index = Annotated[
    str,
    typer.Option(help="Index to search: a folder, sharded or not, or a store: lancedb:DIR or milvus:URI."),
]


@flattened
def command(
    query: _Query,
    index: _Index,
    search: Search,
    show: Show,
    name: Annotated[str, typer.Option(help="Name of the index in a store.")] = "images",
    by_id: Annotated[
        bool, typer.Option("--id", help="Queries are paths, as listed in the index: use their stored codes.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help=r"Model that made the index, by name or folder \[default: the recorded name]."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the images of an index that are nearest to a picture.

    The picture is encoded by the model that made the index.

    Distances are numbers of differing bits or, with --rescore, cosine distances.
    """
    from bigr_repr_cli.search.index_report import drift_of
    from bigr_repr_cli.search.report import print_hits, write_views

    if as_json and show.as_csv:
        raise typer.BadParameter("choose one of --json and --csv", param_hint="--csv")
    if "-" in query and (len(query) > 1 or search.ids_file == "-"):
        raise typer.BadParameter("- reads all queries from standard input; give no other queries", param_hint="QUERY")
    _check_targets(show, query, search, index)
    opened = _opened(index, name, search, show)
    options = _options(opened, search)
    found = _by_id(opened, query, show, options) if by_id else _by_picture(opened, query, model, show, options)
    wanted = bool(show.html or show.montage)
    print_hits(found, opened, options, as_json=as_json, as_csv=show.as_csv)
    if wanted:
        write_views(found, opened, model, show, quiet=as_json)
    if warning := drift_of(opened, index, photographs=wanted):
        typer.echo(f"warning: {warning}", err=True)
    if found.failures:
        raise typer.Exit(1)


def _check_targets(show: Show, query: list[str], search: Search, index: str) -> None:
    from bigr_repr_cli.search.targets import check_targets

    inputs = query if search.ids_file is None else [*query, search.ids_file]
    check_targets(_targets(show), inputs=inputs, index=index)


def _opened(index: str, name: str, search: Search, show: Show) -> HammingIndex | StoreIndex:
    """The index, whose photographs the files to write must not be."""
    from bigr_repr_cli.search.report import open_index
    from bigr_repr_cli.search.targets import check_photographs

    opened = open_index(index, name, search.device, search.processes)
    check_photographs(_targets(show), opened, show.images)
    return opened


def _targets(show: Show) -> dict[str, Path | None]:
    """The files to write, by option."""
    return {"--html": show.html, "--montage": show.montage}


def _options(opened: HammingIndex | StoreIndex, search: Search) -> dict[str, Any]:
    """Keyword arguments of search_ids and search_images."""
    from bigr_repr.retrieval import Filter
    from bigr_repr_cli.parse import parse_decimals, parse_region

    k = max(1, min(10, len(opened))) if search.k is None else search.k
    where = None if search.region is None else parse_region(search.region, opened)
    chosen = Filter(where=search.where, match=search.match, ids=_listed_ids(search.ids_file, opened))
    return {
        "k": k, "rescore": search.rescore, "region": where, "effort": search.effort, "where": chosen,
        "radius": search.radius, "offset": search.offset, "group": search.group,
        "weights": None if search.weights is None else parse_decimals(search.weights, "--weights"),
    }  # fmt: skip


def _listed_ids(file: str | None, opened: HammingIndex | StoreIndex) -> tuple[str, ...] | tuple[int, ...] | None:
    """The ids in a list, in the index's form."""
    from bigr_repr_cli.search.stdin import listed_ids

    if file is None:
        return None
    ids = listed_ids(file)
    numbers = getattr(getattr(opened, "ids", None), "type", None) == "int64"
    return tuple(int(id) for id in ids) if numbers and all(id.isdecimal() for id in ids) else tuple(ids)


def _by_id(opened: HammingIndex | StoreIndex, query: list[str], show: Show, options: dict[str, Any]) -> Searched:
    from bigr_repr.retrieval.search import search_ids
    from bigr_repr_cli.search.stdin import given_ids, listed_ids

    ids = listed_ids("-") if query == ["-"] else given_ids(query)
    return search_ids(opened, ids, images=show.images, image_column=show.image_column, **options)


def _by_picture(
    opened: HammingIndex | StoreIndex, query: list[str], model: str | None, show: Show, options: dict[str, Any]
) -> Searched:
    from bigr_repr.retrieval.search import search_images
    from bigr_repr_cli.search.stdin import read_queries
    from bigr_repr_cli.search.targets import check_inputs

    queries = read_queries(sys.stdin.buffer) if query == ["-"] else query
    if queries is not query:
        check_inputs(_targets(show), queries)
    return search_images(opened, queries, model=model, image_column=show.image_column or "image", **options)
