"""Draws a search as one picture: the query, its hits, and their decoded codes below. Knows no index."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from bigr_repr._typing import PathLike
from bigr_repr.images.find import one_line
from bigr_repr.images.sheets import contact_sheet
from bigr_repr.retrieval.results.views import SearchView
from bigr_repr.system.files import replacing

__all__ = ["montage", "save_montage"]

_SIDE: Final = 160
_GAP: Final = 12
_BETWEEN: Final = 4  # from a photograph to its decoded code
_TEXT: Final = 40
_COLUMNS: Final = 7  # the query and six hits
_PAPER: Final = 246
_INK, _SOFT, _ACCENT, _EMPTY = "#23211d", "#6f6a61", "#b4532a", "#e9e3d7"


class _Tile(NamedTuple):
    photo: Image.Image | None
    decoded: Image.Image | None
    name: str
    text: str


def montage(views: Sequence[SearchView]) -> Image.Image:
    """Tiles in rows, with new rows for each query: its framed photograph first, decoded codes below photographs.

    The compared region, if any, is outlined.

    Raises ValueError if there are no views.
    """
    if not views:
        raise ValueError("no search to show")
    listed = [_tiles(view) for view in views]
    every = [tile for tiles in listed for tile in tiles]
    decoded = any(tile.decoded for tile in every)
    photos = not decoded or any(tile.photo for tile in every)
    columns = min(_COLUMNS, max(map(len, listed)))
    drawn = []
    for view, tiles in zip(views, listed, strict=True):
        drawn += [_draw(tile, photos, decoded, view, framed=not number) for number, tile in enumerate(tiles)]
        drawn += [Image.new("RGB", drawn[0].size, (_PAPER,) * 3)] * (-len(drawn) % columns)
    return contact_sheet(drawn, columns, gap=_GAP, gray=_PAPER)


def save_montage(views: Sequence[SearchView], path: PathLike) -> None:
    """Write montage(views) as a PNG file atomically.  Raises OSError."""
    sheet = montage(views)
    with replacing(Path(path)) as file:
        sheet.save(file, "PNG", optimize=True)


def _tiles(view: SearchView) -> list[_Tile]:
    tiles = [_Tile(view.photo, view.decoded, view.name, "the query")]
    for hit in view.hits:
        text = f"{hit.distance:,.0f} of {view.n_bits:,} bits" if view.n_bits else f"distance {hit.distance:.3f}"
        tiles.append(_Tile(hit.photo, hit.decoded, hit.id, text))
    return tiles


def _draw(tile: _Tile, photos: bool, decoded: bool, view: SearchView, *, framed: bool) -> Image.Image:
    pictures = [_fitted(tile.photo, Image.Resampling.BICUBIC)] * photos
    pictures += [_fitted(tile.decoded, Image.Resampling.NEAREST)] * decoded
    high = len(pictures) * (_SIDE + _BETWEEN) - _BETWEEN
    drawn = Image.new("RGB", (_SIDE, high + _TEXT), (_PAPER,) * 3)
    for level, picture in enumerate(pictures):
        if view.region is not None:
            _outline(picture, view.region)
        drawn.paste(picture, (0, level * (_SIDE + _BETWEEN)))
    _caption(drawn, high + _BETWEEN, tile)
    if framed:
        ImageDraw.Draw(drawn).rectangle(((0, 0), (_SIDE - 1, high - 1)), outline=_ACCENT, width=3)
    return drawn


def _fitted(picture: Image.Image | None, resampling: Image.Resampling) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (_SIDE, _SIDE), _EMPTY)
    return ImageOps.fit(picture, (_SIDE, _SIDE), resampling)


def _outline(picture: Image.Image, region: tuple[float, float, float, float]) -> None:
    left, top, wide, high = (round(share * _SIDE) for share in region)
    ImageDraw.Draw(picture).rectangle(((left, top), (left + wide - 1, top + high - 1)), outline=_ACCENT, width=2)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font that matplotlib includes; Pillow's own covers only ASCII."""
    import matplotlib as mpl

    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 12)


def _caption(drawn: Image.Image, top: int, tile: _Tile) -> None:
    draw, font = ImageDraw.Draw(drawn), _font()
    printable = one_line(tile.name)
    shown = printable
    while shown and draw.textlength(shown, font) > _SIDE:
        printable = printable[1:]
        shown = f"…{printable}"
    draw.text((0, top), shown, _INK, font)
    draw.text((0, top + 17), tile.text, _SOFT, font)
