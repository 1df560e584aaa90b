"""`bigr-repr near-duplicates`: groups of images whose codes lie close together."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.options import Json


def command(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that bigr-repr index build wrote.")],
    radius: Annotated[
        int | None,
        typer.Option(min=0, help=r"Bits in which near-duplicates may differ \[default: 5 % of a code's bits]."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=r"Print only this many clusters, the largest \[default: all].")
    ] = None,
    as_json: Json = False,
) -> None:
    """List clusters of near-duplicates: each differs from another of its cluster in at most RADIUS bits.

    Every pair is compared, which takes minutes for 100,000 images, whatever the kind of index.
    """
    from bigr_repr.images.formats import one_line
    from bigr_repr.retrieval import HammingIndex, find_near_duplicates

    opened = HammingIndex.load(index)
    chosen = opened.n_bits // 20 if radius is None else radius
    clusters = find_near_duplicates(opened, chosen)
    shown = clusters[:limit]
    if as_json:
        listed = [{"ids": c.ids.tolist(), "distances": c.distances.tolist()} for c in shown]
        typer.echo(json.dumps({"radius": chosen, "clusters": listed}, indent=2))
        return
    images = sum(len(cluster.ids) for cluster in clusters)
    typer.echo(f"{len(clusters):,} clusters of {images:,} of {len(opened):,} images within {chosen:,} bits")
    for cluster in shown:
        typer.echo("")
        for id, distance in zip(cluster.ids, cluster.distances, strict=True):
            typer.echo(f"{distance:>6,}  {one_line(str(id))}")
