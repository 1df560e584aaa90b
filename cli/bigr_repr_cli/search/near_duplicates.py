"""`bigr-repr near-duplicates`: finds groups of images whose codes lie close together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.options import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bigr_repr.retrieval import HammingIndex
    from bigr_repr.retrieval.near_duplicates import Cluster, Kept

Best = StrEnum("Best", ["first", "largest"])


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write in addition to the printed list."""

    keep_list: Annotated[
        Path | None,
        typer.Option(
            "--list",
            help="Also write which images of each cluster to keep and which to delete to this CSV file. Each "
            "image to delete differs in at most RADIUS bits from one to keep. Nothing is deleted.",
        ),
    ] = None
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page of the clusters to this file.")] = None
    keep: Annotated[
        Best, typer.Option(help="Which image of a cluster to keep: the first in the index, or the largest file.")
    ] = Best.first
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder that was embedded, for the photographs and their sizes "
            r"\[default: as recorded with the embeddings, or else the current folder]."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Compare:
    """What to compare, and what to show."""

    radius: Annotated[
        int | None,
        typer.Option(
            min=0, help=r"Maximum number of bits in which near-duplicates differ \[default: 5 % of a code's bits]."
        ),
    ] = None
    new: Annotated[
        str | None,
        typer.Option(
            help="Compare only images whose paths match this pattern, such as 'incoming/*', with each other and "
            r"with all others; old images are not compared with each other, and all are kept \[default: "
            "compare all].",
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help=r"Show only this many of the largest clusters \[default: all].")
    ] = None


@flattened
def command(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that bigr-repr index build wrote.")],
    compare: Compare,
    write: Write,
    as_json: Json = False,
) -> None:
    """List clusters of near-duplicates: each image differs from another in its cluster in at most RADIUS bits.

    Exact for every kind of index. A small radius is fast: a million images of 256 bits take seconds at 8.
    """
    from bigr_repr.retrieval import Filter, HammingIndex, find_near_duplicates
    from bigr_repr_cli.search.targets import check_photographs, check_targets

    targets = {"--list": write.keep_list, "--html": write.html}
    check_targets(targets, index=str(index))
    opened = HammingIndex.load(index)
    check_photographs(targets, opened, write.images)
    chosen = opened.n_bits // 20 if compare.radius is None else compare.radius
    rows = None if compare.new is None else opened.rows.selected(Filter(match=compare.new))
    if rows is not None and not len(rows):
        raise ValueError(f"--new: no image of the index matches {compare.new!r}; give paths as the index lists them")
    clusters = find_near_duplicates(opened, chosen, new=rows)
    images = sum(len(cluster.ids) for cluster in clusters)
    word = "cluster" if len(clusters) == 1 else "clusters"
    found = f"{len(clusters):,} {word} of {images:,} of {len(opened):,} images within {chosen:,} bits"
    shown = clusters[: compare.limit]
    listed = shown if write.keep_list is None else clusters
    kept = _kept(opened, listed, chosen, write, rows)
    if as_json:
        typer.echo(json.dumps({"radius": chosen, "clusters": _records(shown, kept[: compare.limit])}, indent=2))
    else:
        typer.echo(found)
        _print(shown)
    _write(opened, listed, kept, write, found, compare.limit)


def _kept(
    index: HammingIndex, clusters: Sequence[Cluster], radius: int, write: Write, new: NDArray[np.int64] | None
) -> list[Kept]:
    from bigr_repr.retrieval.near_duplicates import choose_kept
    from bigr_repr.retrieval.results.duplicates import file_sizes
    from bigr_repr.retrieval.results.photos import PhotoFinder

    if write.keep != Best.largest:
        return [choose_kept(index, cluster, radius, new=new) for cluster in clusters]
    finder = PhotoFinder(write.images, index.source)
    sizes = [file_sizes(cluster, finder) for cluster in clusters]
    if unknown := sum(its.count(-1) for its in sizes):
        what = f"{unknown:,} of {sum(map(len, sizes)):,} image sizes are unknown, and these images count as smallest"
        typer.echo(f"warning: {what}; name the folder that was embedded with --images FOLDER", err=True)
    pairs = zip(clusters, sizes, strict=True)
    return [choose_kept(index, cluster, radius, rank=its, new=new) for cluster, its in pairs]


def _write(
    index: HammingIndex,
    clusters: Sequence[Cluster],
    kept: Sequence[Kept],
    write: Write,
    found: str,
    limit: int | None,
) -> None:
    from bigr_repr.retrieval.results.duplicates import duplicates_page, save_duplicates_page, save_keep_list
    from bigr_repr.retrieval.results.photos import PhotoFinder

    if write.keep_list is not None:
        save_keep_list(clusters, kept, write.keep_list)
    if write.html is not None:
        finder = PhotoFinder(write.images, index.source)
        save_duplicates_page(duplicates_page(clusters[:limit], kept[:limit], finder, found=found), write.html)
    if written := [str(path) for path in (write.keep_list, write.html) if path is not None]:
        typer.echo(f"written: {' and '.join(written)}", err=True)


def _records(clusters: Sequence[Cluster], kept: Sequence[Kept]) -> list[dict[str, object]]:
    return [
        {
            "ids": cluster.ids.tolist(),
            "distances": cluster.distances.tolist(),
            "keep": cluster.ids[chosen.keep].tolist(),
            "delete": cluster.ids[~chosen.keep].tolist(),
        }
        for cluster, chosen in zip(clusters, kept, strict=True)
    ]


def _print(clusters: Sequence[Cluster]) -> None:
    from bigr_repr.images.find import one_line

    for cluster in clusters:
        typer.echo("")
        for id, distance in zip(cluster.ids, cluster.distances, strict=True):
            typer.echo(f"{distance:>6,}  {one_line(str(id))}")
