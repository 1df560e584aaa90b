"""Writes a search as one self-contained HTML file: photographs, decoded codes, and where bits differ. Knows no index.

The page's three views are radio buttons and style rules of the template `search.html`.
"""

# h w token grid

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.retrieval.results.views import HitView, SearchView
from bigr_repr.system.files import replacing
from bigr_repr.system.pages import data_url, render

__all__ = ["save_page", "search_page"]

_TEMPLATE: Final = Path(__file__).with_name("search.html")
_VIEWS: Final = (("photo", "Photographs"), ("decoded", "Decoded from bits"), ("bits", "Where bits differ"))


def search_page(views: Sequence[SearchView]) -> str:
    """The page of one or more queries, nearest hits first.  Raises ValueError if there are none."""
    if not views:
        raise ValueError("no search to show")
    shown = _VIEWS if any(view.decoded for view in views) else _VIEWS[:1]
    photos = any(view.photo or any(hit.photo for hit in view.hits) for view in views)
    return render(
        _TEMPLATE,
        title=views[0].name if len(views) == 1 else f"{len(views)} searches",
        found=_found(views[0]),
        shown=shown,
        start="photo" if photos else shown[-1][0],
        searches=[_search(view) for view in views],
    )


def save_page(views: Sequence[SearchView], path: PathLike) -> None:
    """Write search_page(views) to a file atomically.  Raises OSError."""
    text = search_page(views)
    with replacing(Path(path)) as file:
        file.write(text.encode())


def _found(view: SearchView) -> str:
    how = "cosine distance of features" if not view.n_bits else f"{view.n_bits:,} bits compared"
    where = " inside the region" if view.region else ""
    return f"the nearest of {view.rows:,} images by {view.provenance} · {how}{where}"


def _search(view: SearchView) -> dict[str, Any]:
    region = None if view.region is None else [f"{100 * value:g}" for value in view.region]
    pictures = _pictures(view.photo, view.decoded)
    return {"name": view.name, "region": region, "hits": [_hit(hit, view) for hit in view.hits], **pictures}


def _hit(hit: HitView, view: SearchView) -> dict[str, Any]:
    if view.n_bits:
        # Unrelated codes differ in half of the bits: the bar is then empty.
        same = 100 * (1 - hit.distance / view.n_bits)
        numbers, alike = [f"{hit.distance:,.0f} bits", f"{same:.1f} % same"], 1 - 2 * hit.distance / view.n_bits
    else:
        numbers, alike = ["cosine distance", f"{hit.distance:.3f}"], 1 - hit.distance
    bar = f"{100 * min(1, max(0, alike)):.1f}"
    heat = None if hit.differing is None else _heat(hit, view)
    return {"name": hit.id, "numbers": numbers, "alike": bar, **_pictures(hit.photo, hit.decoded), "heat": heat}


def _pictures(photo: Image.Image | None, decoded: Image.Image | None) -> dict[str, str | None]:
    shown = None if photo is None else _url(photo, "JPEG", quality=85)
    return {"photo": shown, "decoded": None if decoded is None else _url(decoded, "PNG"), "heat": None}


def _heat(hit: HitView, view: SearchView) -> str:
    """A picture of h x w pixels, redder where more of a token's bits differ; half of them give full red."""
    assert hit.differing is not None
    share = np.clip(2 * hit.differing / max(1, view.bits_per_token), 0, 1)[..., None]
    red = np.broadcast_to(np.array([222, 60, 20, 0]), (*hit.differing.shape, 4))
    return _url(Image.fromarray((red + share * np.array([0, 0, 0, 225])).round().astype(np.uint8), "RGBA"), "PNG")


def _url(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **options)
    return data_url(file.getvalue(), f"image/{kind.lower()}")
