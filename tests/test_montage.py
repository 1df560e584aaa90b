"""Laws of a search as one picture: every tile in its place, framed, outlined and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigr_repr.images.sheets import contact_sheet
from bigr_repr.retrieval import HammingIndex, Region
from bigr_repr.retrieval.results import montage as module
from bigr_repr.retrieval.results.montage import montage, save_montage
from bigr_repr.retrieval.results.views import HitView, Searched, SearchView, look_at

SIDE, GAP, ACCENT, PAPER = 160, 12, (180, 83, 42), (246, 246, 246)


def color(value: int) -> Image.Image:
    return Image.new("RGB", (40, 30), (value, 100, 200))


def view(count: int, *, decoded: bool = False, **fields: Any) -> SearchView:
    listed = [
        HitView(
            id=f"h{n}", distance=float(n), photo=color(10 * n), decoded=color(200 + n) if decoded else None,
            differing=None,
        )
        for n in range(count)
    ]  # fmt: skip
    usual = {"name": "q", "photo": color(250), "decoded": color(199) if decoded else None, "hits": listed}
    return SearchView(**{**usual, "n_bits": 64, "bits_per_token": 8, "provenance": "", "rows": 9, **fields})


def tile(sheet: Image.Image, column: int, row: int = 0, *, high: int = SIDE + 40) -> np.ndarray:
    left, top = GAP + column * (SIDE + GAP), GAP + row * (high + GAP)
    return np.asarray(sheet.crop((left, top, left + SIDE, top + high)))


def test_the_query_is_framed_and_every_hit_is_in_its_place() -> None:
    sheet = montage([view(3)])
    assert sheet.size == (4 * (SIDE + GAP) + GAP, SIDE + 40 + 2 * GAP)
    query = tile(sheet, 0)[:SIDE]
    frame = (query == ACCENT).all(axis=2)
    assert frame[:3].all()
    assert frame[-3:].all()
    assert frame[:, :3].all()
    assert frame[:, -3:].all()
    assert not frame[3:-3, 3:-3].any()
    for number in range(3):
        assert (tile(sheet, 1 + number)[:SIDE] == (10 * number, 100, 200)).all()
    assert sheet.getpixel((0, 0)) == PAPER


def test_decoded_codes_lie_below_photographs_and_what_is_missing_is_empty() -> None:
    high = 2 * SIDE + 4 + 40
    lost = HitView(id="lost", distance=1.0, photo=None, decoded=None, differing=None)
    hits = [*view(2, decoded=True).hits, lost]
    sheet = montage([view(0, decoded=True, hits=hits)])
    assert sheet.size == (4 * (SIDE + GAP) + GAP, high + 2 * GAP)
    for number in range(2):
        found = tile(sheet, 1 + number, high=high)
        assert (found[:SIDE] == (10 * number, 100, 200)).all()
        assert (found[SIDE : SIDE + 4] == PAPER).all()
        assert (found[SIDE + 4 : 2 * SIDE + 4] == (200 + number, 100, 200)).all()
    empty = tile(sheet, 3, high=high)
    assert (empty[:SIDE] == (233, 227, 215)).all()
    assert (empty[SIDE + 4 : 2 * SIDE + 4] == (233, 227, 215)).all()
    codes = montage([view(0, photo=None, decoded=color(9))])  # without any photograph, codes alone
    assert codes.size == (SIDE + 2 * GAP, SIDE + 40 + 2 * GAP)


def test_each_query_begins_a_row_and_a_row_holds_seven() -> None:
    sheet = montage([view(9), view(1)])
    assert sheet.size == (7 * (SIDE + GAP) + GAP, 3 * (SIDE + 40 + GAP) + GAP)
    assert (tile(sheet, 0, 1)[:SIDE] == (60, 100, 200)).all()  # the seventh hit
    assert (tile(sheet, 4, 1) == PAPER).all()
    assert (tile(sheet, 0, 2)[0, 0] == ACCENT).all()
    assert (tile(sheet, 1, 2)[:SIDE] == (0, 100, 200)).all()


def test_the_region_that_was_compared_is_outlined() -> None:
    sheet = montage([view(1, region=(0.25, 0.5, 0.5, 0.25))])
    marked = (tile(sheet, 1)[:SIDE] == ACCENT).all(axis=2)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[80:120, 40:120] = True
    expected[82:118, 42:118] = False
    assert np.array_equal(marked, expected)


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({}, ["the query", "0 of 64 bits", "1 of 64 bits"]),
        ({"n_bits": 0}, ["the query", "distance 0.000", "distance 1.000"]),
    ],
)
def test_tiles_say_their_name_and_distance(
    fields: dict[str, Any], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[tuple[int, int], str]] = []

    class Draw:
        def __init__(self, image: Image.Image) -> None:
            pass

        def rectangle(self, *given: Any, **named: Any) -> None:
            pass

        def textlength(self, text: str, font: Any) -> float:
            return 10.0 * len(text)

        def text(self, place: tuple[int, int], text: str, color: str, font: Any) -> None:
            said.append((place, text))

    monkeypatch.setattr(module.ImageDraw, "Draw", Draw)
    montage([view(2, name="a/very/long/path/to/0123456789.jpg", **fields)])
    assert [text for _, text in said[1::2]] == texts
    assert said[0] == ((0, SIDE + 4), "…/0123456789.jpg")  # its end, and no wider than the tile
    assert said[2] == ((0, SIDE + 4), "h0")
    assert said[1][0] == (0, SIDE + 21)


def test_no_search_is_refused_and_a_file_is_the_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no search to show"):
        montage([])
    save_montage([view(1)], tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as found:
        assert np.array_equal(np.asarray(found), np.asarray(montage([view(1)])))


def test_a_sheet_has_a_narrow_edge_around_every_picture() -> None:
    assert contact_sheet([color(0)] * 3, 2).size == (2 * 40 + 3 * 2, 2 * 30 + 3 * 2)
    assert contact_sheet([color(0)], 1, gap=5).size == (50, 40)
    assert contact_sheet([color(0)], 1).getpixel((1, 1)) == (255, 255, 255)
    assert contact_sheet([color(0)] * 3, 2, edge=0).size == (2 * 40 + 2, 2 * 30 + 2)
    assert contact_sheet([color(0)], 1, edge=0).size == (40, 30)


def test_a_view_of_a_part_counts_and_places_what_was_compared() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (9, 16), np.uint8)
    index = HammingIndex.build(codes, bits_per_token=8)  # 4 x 4 tokens

    def seen(region: Region | None, *, rescored: bool = False) -> SearchView:
        found = index.find(codes[:1], 3) if region is None else index.find_region(codes[:1], region, 3)
        asked = Searched(
            names=["q"], titles=["q"], found=found, tokens=None, photos=[None], region=region, rescored=rescored
        )
        return look_at(index, asked, lambda id, row: None)[0]

    part = seen(Region(x=1, y=2, w=2, h=1))
    assert (part.n_bits, part.region, part.bits_per_token) == (2 * 8, (0.25, 0.5, 0.5, 0.25), 8)
    assert (seen(None).n_bits, seen(None).region) == (128, None)
    assert (seen(None, rescored=True).n_bits, next(hit.id for hit in part.hits)) == (0, "0")
