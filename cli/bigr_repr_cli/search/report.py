"""What `bigr-repr search` prints and writes. Independent of how images are found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from bigr_repr.images.find import one_line
from bigr_repr.retrieval import HammingIndex
from bigr_repr.retrieval.codes.columns import plain_rows
from bigr_repr.retrieval.codes.filters import Filter
from bigr_repr.retrieval.index.shard_list import is_sharded
from bigr_repr.retrieval.results.views import Searched
from bigr_repr.retrieval.stores.base import StoreIndex
from bigr_repr.retrieval.stores.open import is_store, open_store

if TYPE_CHECKING:
    from bigr_repr_cli.search.command import Show


def open_index(place: str, name: str, device: str, processes: int = 1) -> HammingIndex | StoreIndex:
    """Open an index in a folder, on a device, or in a store.  Raises BadParameter for options of the other."""
    if is_store(place) and device != "auto":
        raise typer.BadParameter(
            "does not apply to stores, which search by themselves; leave it out", param_hint="--device"
        )
    check_place(place, name, processes)
    return open_store(place, name) if is_store(place) else HammingIndex.load(place, processes=processes).to(device)


def check_place(place: str, name: str, processes: int) -> None:
    """Raise BadParameter if a folder is given an index name, or an unsharded index is given processes."""
    if name != "images" and not is_store(place):
        raise typer.BadParameter(
            "names an index in a store; a folder holds only one, so leave it out", param_hint="--name"
        )
    if processes > 1 and not is_sharded(Path(place)):
        raise typer.BadParameter(
            "applies only to sharded indexes, and this one has no shards; leave it out", param_hint="--processes"
        )


def print_hits(
    found: Searched, index: HammingIndex | StoreIndex, asked: Mapping[str, Any], *, as_json: bool, as_csv: bool = False
) -> None:
    """Print the hits of every query: ids and distances; in JSON and CSV, also the columns of an index folder.

    asked: the options of the search, which explain why a query has no hits.
    """
    kind = "cosine distance" if found.rescored else "bits"
    if as_json:
        listed = _hits(found, index, columns=True)
        answers: list[dict[str, Any]] = [{"query": name, "hits": hits} for name, hits in listed]
        answers += [{"query": name, "error": message} for name, message in found.failures]
        typer.echo(json.dumps(answers, indent=2))
        return
    for _, message in found.failures:
        typer.echo(f"error: {one_line(message)}", err=True)
    if as_csv:
        _print_csv(_hits(found, index, columns=True), 1 + asked["offset"])
        return
    for number, (name, hits) in enumerate(_hits(found, index)):
        if len(found.names) > 1:
            typer.echo(f"{chr(10) if number else ''}{one_line(name)}")
        width = max([len(kind), *(len(_text(hit["distance"])) for hit in hits)])
        typer.echo(f"{kind:>{width}}  image")
        for hit in hits:
            typer.echo(f"{_text(hit['distance']):>{width}}  {one_line(str(hit['id']))}")
            for id in hit.get("near_duplicates", ()):
                typer.echo(f"{'':>{width}}    {one_line(id)}")
        if not hits:
            typer.echo(_why_none(index, asked), err=True)


def _why_none(index: HammingIndex | StoreIndex, asked: Mapping[str, Any]) -> str:
    """Why a query has no hits."""
    chosen, radius, offset = asked["where"], asked["radius"], asked["offset"]
    limits = [
        *(["matches the filter"] if chosen is not None and chosen != Filter() else []),
        *([f"is within {radius:g} of the query"] if radius is not None else []),
    ]
    if limits:
        after = f" after the first {offset:,} (--offset)" if offset else ""
        return f"no image {' and '.join(limits)}{after}"
    if offset >= len(index):
        return f"no image after the first {offset:,} (--offset): the index holds {len(index):,}"
    return "the approximate search found no image; raise --effort, or build the index with --kind flat"


def write_views(
    found: Searched,
    index: HammingIndex | StoreIndex,
    model: str | None,
    show: Show,
    *,
    quiet: bool,
) -> None:
    """Write the requested page and montage, and say so on stderr."""
    from bigr_repr.retrieval.results.montage import save_montage
    from bigr_repr.retrieval.results.page import save_page
    from bigr_repr.retrieval.search import views_of

    views = views_of(found, index, model=model, images=show.images, image_column=show.image_column)
    if show.html is not None:
        save_page(views, show.html)
    if show.montage is not None:
        save_montage(views, show.montage)
    if not quiet:
        written = " and ".join(str(path) for path in (show.html, show.montage) if path is not None)
        typer.echo(f"written: {written}", err=True)
    if any(view.hits for view in views) and not any(hit.photo for view in views for hit in view.hits):
        typer.echo("no photograph of a hit was found; name the folder that was embedded with --images FOLDER", err=True)


def _hits(
    found: Searched, index: HammingIndex | StoreIndex, *, columns: bool = False
) -> list[tuple[str, list[dict[str, Any]]]]:
    listed = []
    kept = index.rows.columns if columns and isinstance(index, HammingIndex) else None
    for number, (name, places, ids, distances) in enumerate(zip(found.names, *found.found, strict=True)):
        held = np.flatnonzero(places >= 0)
        pairs = zip(ids[held].tolist(), distances[held].tolist(), strict=True)
        hits = [{"id": id, "distance": value} for id, value in pairs]
        if kept is not None:
            hits = [hit | {"columns": values} for hit, values in zip(hits, plain_rows(kept, places[held]), strict=True)]
        if found.near:
            groups = found.near[number]
            hits = [hit | {"near_duplicates": list(group)} for hit, group in zip(hits, groups, strict=True)]
        listed.append((name, hits))
    return listed


def _print_csv(listed: list[tuple[str, list[dict[str, Any]]]], first: int) -> None:
    """One line for each hit: query, rank from `first`, id, distance, and kept columns."""
    names = list(dict.fromkeys(name for _, hits in listed for hit in hits for name in hit.get("columns", ())))
    grouped = any("near_duplicates" in hit for _, hits in listed for hit in hits)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["query", "rank", "id", "distance", *(["near_duplicate_of"] if grouped else []), *names])
    for query, hits in listed:
        for rank, hit in enumerate(hits, first):
            values = [hit.get("columns", {}).get(name) for name in names]
            writer.writerow([query, rank, hit["id"], hit["distance"], *([""] if grouped else []), *values])
            for id in hit.get("near_duplicates", ()):
                writer.writerow([query, rank, id, "", hit["id"], *[""] * len(names)])
    typer.echo(text.getvalue(), nl=False)


def _text(distance: float) -> str:
    return f"{distance:,}" if isinstance(distance, int) else f"{distance:.4f}"
