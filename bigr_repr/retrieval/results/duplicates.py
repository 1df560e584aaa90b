"""Writes clusters of near-duplicates as a list of what to keep and delete, and as a page. Deletes nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.index.clusters import Cluster, Kept
from bigr_repr.retrieval.results.photos import PhotoFinder, thumbnail
from bigr_repr.system.files import replacing
from bigr_repr.system.pages import data_url, render

__all__ = ["duplicates_page", "file_sizes", "save_duplicates_page", "save_keep_list"]

_TEMPLATE: Final = Path(__file__).with_name("duplicates.html")
_PIXELS: Final = 192  # longer side of a thumbnail
_CLUSTERS: Final = 200  # maximum per page
_PICTURES: Final = 24  # maximum per cluster


def file_sizes(cluster: Cluster, finder: PhotoFinder) -> list[int]:
    """Size in bytes of the file behind each row of a cluster; -1 if there is none."""
    pairs = zip(cluster.ids.tolist(), cluster.rows.tolist(), strict=True)
    return [next(_sizes(finder.encoded(str(id), row, thumbnails=False)), -1) for id, row in pairs]


def _sizes(found: Iterable[str | bytes]) -> Iterator[int]:
    """The sizes of those pictures that exist."""
    for picture in found:
        try:
            size = len(picture) if isinstance(picture, bytes) else Path(picture).stat().st_size
        except OSError:
            continue
        yield size


def save_keep_list(clusters: Sequence[Cluster], kept: Sequence[Kept], path: PathLike) -> None:
    """Write a CSV file atomically: cluster (1, 2, …), action ("keep" or "delete"), image, and for each one to delete,
    the most similar kept image and the number of differing bits.  Raises OSError.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["cluster", "action", "image", "like", "distance"])
    for number, (cluster, chosen) in enumerate(zip(clusters, kept, strict=True), 1):
        parts = zip(cluster.ids, chosen.keep, cluster.ids[chosen.like], chosen.distances, strict=True)
        for id, keep, like, distance in parts:
            rows.writerow([number, "keep", id, "", ""] if keep else [number, "delete", id, like, distance])
    with replacing(Path(path)) as file:
        file.write(text.getvalue().encode())


def save_duplicates_page(page: str, path: PathLike) -> None:
    """Write a page to a file atomically.  Raises OSError."""
    with replacing(Path(path)) as file:
        file.write(page.encode())


def duplicates_page(
    clusters: Sequence[Cluster],
    kept: Sequence[Kept],
    photo_of: Callable[[str, int], Image.Image | None],
    *,
    found: str,
) -> str:
    """A self-contained page of clusters, the largest first, with what to keep and what to delete of each.

    photo_of(id, row): a photograph, or None. found: a one-line summary. At most 200 clusters with 24 pictures each are
    shown; the page says how many are left out.
    """
    shown = list(zip(clusters, kept, strict=True))[:_CLUSTERS]
    return render(
        _TEMPLATE,
        found=found,
        left_out=len(clusters) - len(shown),
        clusters=[_cluster(cluster, chosen, photo_of) for cluster, chosen in shown],
    )


def _cluster(cluster: Cluster, chosen: Kept, photo_of: Callable[[str, int], Image.Image | None]) -> dict[str, Any]:
    places = sorted(range(len(cluster.rows)), key=lambda place: (not chosen.keep[place], place))
    pictures = [
        {
            "name": str(cluster.ids[place]),
            "keep": bool(chosen.keep[place]),
            "distance": int(chosen.distances[place]),
            "like": str(cluster.ids[chosen.like[place]]),
            "photo": _small(photo_of(str(cluster.ids[place]), int(cluster.rows[place]))),
        }
        for place in places[:_PICTURES]
    ]
    return {
        "pictures": pictures,
        "images": len(places),
        "delete": int((~chosen.keep).sum()),
        "left_out": len(places) - len(pictures),
    }


def _small(photo: Image.Image | None) -> str | None:
    if photo is None:
        return None
    file = io.BytesIO()
    thumbnail(photo, _PIXELS).save(file, "JPEG", quality=80, optimize=True)
    return data_url(file.getvalue(), "image/jpeg")
