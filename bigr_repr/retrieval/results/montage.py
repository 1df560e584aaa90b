"""A search as one picture: the query, its hits, and their decoded codes below. Knows no index."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont, ImageOps

from bigr_repr._typing import PathLike
from bigr_repr.images.formats import one_line
from bigr_repr.retrieval.results.views import SearchView
from bigr_repr.system.files import replacing

__all__ = ["montage", "save_montage"]

_TILE: Final = 160
_GAP: Final = 12
_TEXT: Final = 40
_PAPER, _INK, _SOFT, _ACCENT, _EMPTY = "#f6f4ef", "#23211d", "#7a756b", "#b4532a", "#e9e3d7"
_COLUMNS: Final = 7  # the query and six hits


def montage(views: Sequence[SearchView]) -> Image.Image:
    """Blocks of tiles, one per query: photographs with decoded codes below, the query first, in a frame.

    The region that was compared, if one was, is outlined.

    Raises ValueError for no search.
    """
    if not views:
        raise ValueError("no search to show")
    blocks = [_block(view) for view in views]
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width + 2 * _GAP, sum(block.height + _GAP for block in blocks) + _GAP), _PAPER)
    top = _GAP
    for block in blocks:
        sheet.paste(block, (_GAP, top))
        top += block.height + _GAP
    return sheet


def save_montage(views: Sequence[SearchView], path: PathLike) -> None:
    """Write montage(views) as a PNG file, whole or not at all.  Raises OSError."""
    sheet = montage(views)
    with replacing(Path(path)) as file:
        sheet.save(file, "PNG", optimize=True)


def _block(view: SearchView) -> Image.Image:
    decoded = view.decoded is not None
    photos = view.photo is not None or any(hit.photo is not None for hit in view.hits)
    tiles = [(view.photo, view.decoded, view.name, "the query")]
    for hit in view.hits:
        text = f"{hit.distance:,.0f} of {view.n_bits:,} bits" if view.n_bits else f"distance {hit.distance:.3f}"
        tiles.append((hit.photo, hit.decoded, hit.id, text))
    high = (photos or not decoded) + decoded
    columns = min(_COLUMNS, len(tiles))
    step = high * _TILE + (high - 1) * 4 + _TEXT + _GAP
    rows = -(-len(tiles) // columns)
    block = Image.new("RGB", (columns * (_TILE + _GAP) - _GAP, rows * step - _GAP), _PAPER)
    for number, (photo, code, name, text) in enumerate(tiles):
        left, top = number % columns * (_TILE + _GAP), number // columns * step
        pictures = [photo] * (photos or not decoded) + [code] * decoded
        for level, picture in enumerate(pictures):
            resampling = Image.Resampling.BICUBIC if picture is photo else Image.Resampling.NEAREST
            tile = _tile(picture, resampling)
            if view.region is not None:
                _outline(tile, view.region)
            block.paste(tile, (left, top + level * (_TILE + 4)))
        _caption(block, (left, top + high * _TILE + (high - 1) * 4 + 4), name, text)
        if number == 0:
            corner = (left + _TILE - 1, top + high * _TILE + (high - 1) * 4 - 1)
            ImageDraw.Draw(block).rectangle(((left, top), corner), outline=_ACCENT, width=3)
    return block


def _tile(picture: Image.Image | None, resampling: Image.Resampling) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (_TILE, _TILE), _EMPTY)
    return ImageOps.fit(picture, (_TILE, _TILE), resampling)


def _outline(tile: Image.Image, region: tuple[float, float, float, float]) -> None:
    left, top, wide, high = (round(share * _TILE) for share in region)
    ImageDraw.Draw(tile).rectangle(((left, top), (left + wide - 1, top + high - 1)), outline=_ACCENT, width=2)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings; Pillow's own knows only ASCII."""
    import matplotlib as mpl

    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 12)


def _caption(block: Image.Image, corner: tuple[int, int], name: str, text: str) -> None:
    draw, font = ImageDraw.Draw(block), _font()
    printable = one_line(name)
    shown = printable
    while shown and draw.textlength(shown, font) > _TILE:
        printable = printable[1:]
        shown = f"…{printable}"
    draw.text(corner, shown, _INK, font)
    draw.text((corner[0], corner[1] + 17), text, _SOFT, font)
